"""`everydream prep`: photos into training images."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from everydream.told import told


class Crop(str, Enum):
    """Which square is kept of a photo."""

    SUBJECT = "subject"
    CENTER = "center"
    NONE = "none"


class Faces(str, Enum):
    """What happens to photos that do not show exactly one face."""

    SKIP = "skip"
    LARGEST = "largest"
    ALL = "all"


class Format(str, Enum):
    """What the images are written as."""

    PNG = "png"
    JPG = "jpg"


def prep(
    photos: Annotated[Path, typer.Argument(help="Folder of photos, searched recursively; nothing in it is touched.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results: new, or made by an earlier prep.")],
    size: Annotated[
        int, typer.Option(help="Side of the square in pixels; of the shorter side with --crop none.")
    ] = 512,
    crop: Annotated[
        Crop | None, typer.Option(help="Which square is kept; none: all of it, scaled down.  [default: subject]")
    ] = None,
    pad: Annotated[
        str | None, typer.Option(help='Fill up to a square instead of cropping: "#RRGGBB", or edge.')
    ] = None,
    upscale: Annotated[bool, typer.Option("--upscale", help="Enlarge what is smaller than --size.")] = False,
    person: Annotated[bool, typer.Option("--person", help="Crop around faces.")] = False,
    ladder: Annotated[
        str, typer.Option(help="Sides of the squares around a face, in sides of its box.")
    ] = "1.1,1.6,2.0,2.64",
    faces: Annotated[Faces, typer.Option(help="Photos with several faces, and with none.")] = Faces.LARGEST,
    boxes: Annotated[
        Path | None, typer.Option(help="JSON file of faces that another detector found; includes --person.")
    ] = None,
    image_format: Annotated[Format, typer.Option("--format", help="What the images are written as.")] = Format.PNG,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Prepare photos for training: crops of one size, around faces if you like, with their captions."""
    with told(debug, "Stopped. The same command starts again from the first photo."):
        from everydream.tools.prep.settings import check_settings  # noqa: PLC0415
        from everydream.tools.prep.work import describe, prepare  # noqa: PLC0415

        settings = check_settings(
            size=size, crop=crop.value if crop else None, pad=pad, upscale=upscale, person=person or boxes is not None,
            ladder=_numbers(ladder), faces=faces.value, format=image_format.value,
        )  # fmt: skip
        print(describe(prepare(photos, out, settings, boxes), out))


def _numbers(text: str) -> list[float | str]:
    """Return the numbers of a list; what is none stays as it is, for the settings to refuse."""
    found: list[float | str] = []
    for piece in text.split(","):
        try:
            found.append(float(piece))
        except ValueError:
            found.append(piece)
    return found
