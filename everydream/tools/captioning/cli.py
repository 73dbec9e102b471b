"""`everydream caption ...`: captions of a folder of images, counted, edited, moved and made."""

import json
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everydream.told import told

if TYPE_CHECKING:
    from everydream.tools.captioning.edits import Lines
    from everydream.tools.captioning.items import Item
    from everydream.tools.captioning.rewording import Reword
    from everydream.tools.files import Rejected

caption_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Captions of a folder of images: counted, edited, moved between names and sidecars, written by a model.",
)


class LinesKind(str, Enum):
    """What the lines of a text sidecar are."""

    JOIN = "join"
    CHOOSE = "choose"


Folder = Annotated[Path, typer.Argument(help="Folder of images, searched recursively; no image in it is touched.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="New folder for a copy; else sidecars change in place.")]
Apply = Annotated[bool, typer.Option("--apply", help="Do it; without this it is only shown what would change.")]
LinesOption = Annotated[
    LinesKind | None, typer.Option(help="What the lines of a sidecar are: one caption, or one each.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace text sidecars that are there.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_STOPPED = "Stopped. Files that were written are whole; the same command goes on."


@caption_app.command("to-sidecars")
def to_sidecars(folder: Folder, overwrite: Overwrite = False, debug: Debug = False) -> None:
    """Write the captions that are in file names to text files beside the images."""
    with told(debug, _STOPPED):
        from everydream.data.captions import caption_from_name  # noqa: PLC0415
        from everydream.tools.captioning.sidecars import write_sidecars  # noqa: PLC0415
        from everydream.tools.files import listing  # noqa: PLC0415

        items, rejected = _read(folder)
        captions = {item.picture.path: text for item in items if (text := caption_from_name(item.picture.name))}
        written = write_sidecars(folder, items, captions, overwrite)
        without = len(items) - len(captions)
        print(f"{len(written.files):,} captions written to text files beside their images"
              + (f"; {without:,} names hold no caption" if without else "") + ".")  # fmt: skip
        if written.kept:
            print(f"Left as they are ({len(written.kept):,}):{listing(written.kept)}")
        _say_rejected(rejected)


@caption_app.command("to-names")
def to_names(
    folder: Folder,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the copies.")],
    debug: Debug = False,
) -> None:
    """Copy images under names that are their captions; what a name cannot say stays in a sidecar."""
    with told(debug, _STOPPED):
        from everydream.tools.captioning.copies import copy_as, names_by_captions  # noqa: PLC0415

        items, rejected = _read(folder)
        copy_as(folder, out, items, names_by_captions(items), None)
        print(f"{len(items):,} images copied to {out}, named by their captions.")
        _say_rejected(rejected)


@caption_app.command()
def replace(
    folder: Folder,
    find: Annotated[str, typer.Argument(help="Words to find; parts of words are not.")],
    new: Annotated[str, typer.Argument(metavar="WITH", help='What stands there instead; "" takes them out.')],
    ignore_case: Annotated[bool, typer.Option("--ignore-case", help="Find them in capitals too.")] = False,
    lines: LinesOption = None,
    out: Out = None,
    apply: Apply = False,
    debug: Debug = False,
) -> None:
    """Replace whole words in all captions."""
    with told(debug, _STOPPED):
        from everydream.tools.captioning.rewording import replacing  # noqa: PLC0415

        _edit(folder, replacing(find, new, ignore_case), lines, out, apply)


Added = Annotated[str, typer.Argument(metavar="TEXT", help="What is added; a caption that has it already is left.")]


@caption_app.command()
def prefix(
    folder: Folder, text: Added, lines: LinesOption = None, out: Out = None, apply: Apply = False, debug: Debug = False
) -> None:
    """Put a text before all captions."""
    with told(debug, _STOPPED):
        from everydream.tools.captioning.rewording import prefixing  # noqa: PLC0415

        _edit(folder, prefixing(text), lines, out, apply)


@caption_app.command()
def suffix(
    folder: Folder, text: Added, lines: LinesOption = None, out: Out = None, apply: Apply = False, debug: Debug = False
) -> None:
    """Put a text behind all captions."""
    with told(debug, _STOPPED):
        from everydream.tools.captioning.rewording import suffixing  # noqa: PLC0415

        _edit(folder, suffixing(text), lines, out, apply)


@caption_app.command()
def tags(
    folder: Folder,
    words: Annotated[bool, typer.Option("--words", help="Count words instead of comma-separated tags.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
) -> None:
    """Count in how many images' captions each tag stands."""
    with told(debug, _STOPPED):
        from everydream.tools.captioning.counts import count, describe_counts  # noqa: PLC0415

        items, rejected = _read(folder)
        counts = count(items, words)
        if as_json:
            print(json.dumps({"images": len(items), "counts": counts}, ensure_ascii=False, indent=1))
        else:
            print(describe_counts(counts, len(items)))
        _say_rejected(rejected)


@caption_app.command()
def auto(
    folder: Folder,
    model: Annotated[str, typer.Option(help="Folder or hub id of an image-text-to-text model: BLIP, LLaVA, ...")],
    prompt: Annotated[
        str,
        typer.Option(help="What it is asked; {folder}, {name}, {caption} and keys of .json sidecars are filled in."),
    ] = "",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the text files; else they go beside the images.")
    ] = None,
    overwrite: Overwrite = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a caption at most, in tokens.")] = 60,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")] = None,
    dry_run: Annotated[int | None, typer.Option(min=1, help="Show the captions of so many images, write none.")] = None,
    debug: Debug = False,
) -> None:
    """Write a caption for every image that has no text sidecar, by a model."""
    with told(debug, _STOPPED):
        from everydream.errors import DataError  # noqa: PLC0415
        from everydream.tools.captioning.auto import caption_all, plan_jobs  # noqa: PLC0415
        from everydream.tools.captioning.model import load_captioner  # noqa: PLC0415
        from everydream.tools.files import listing, require_apart  # noqa: PLC0415
        from everydream.tools.progress import counting  # noqa: PLC0415

        items, rejected = _read(folder)
        if out is not None:
            require_apart(folder, out)
        jobs, done = plan_jobs(folder, items, out, prompt, overwrite)
        jobs = jobs[:dry_run]
        if jobs:
            caption = load_captioner(model, device, max_new_tokens)
            with counting("Captioning", len(jobs)) as show:
                for number in caption_all(folder, jobs, caption, batch_size, dry_run is None, done):
                    show(number, f"{len(done.rejected):,} rejected")
        for path, text in done.captions.items() if dry_run is not None else ():
            print(f"{path}: {text}")
        if done.kept:
            print(f"{len(done.kept):,} images have captions already, which are kept:{listing(done.kept)}")
        _say_rejected(rejected + done.rejected)
        if jobs and not done.captions:
            raise DataError("The model captioned no image; the reasons stand above.")
        print(f"{len(done.captions):,} captions {'written' if dry_run is None else 'shown, none written'}.")


def _read(folder: Path) -> "tuple[list[Item], list[Rejected]]":
    from everydream.tools.captioning.items import read_items  # noqa: PLC0415
    from everydream.tools.files import list_pictures  # noqa: PLC0415

    return read_items(folder, list_pictures(folder))


def _edit(folder: Path, reword: "Reword", lines: LinesKind | None, out: Path | None, apply: bool) -> None:
    """Plan an edit, show it, and do it if it was asked for; what cannot be done is said in the rehearsal too."""
    from everydream.tools.captioning import copies, edits  # noqa: PLC0415

    items, rejected = _read(folder)
    kind: Lines = None if lines is None else lines.value
    planned = edits.plan_edits(folder, items, reword, kind)
    _say_rejected(rejected)
    if not apply:
        print(edits.describe_edits(planned, applied=False))
    if out is None:
        edits.require_in_place(planned)
    else:
        edits.require_possible(planned.refused)
    names = copies.names_after(planned, items)
    if not apply:
        return
    if out is None:
        edits.apply_in_place(folder, planned)
    else:
        copies.copy_as(folder, out, items, names, planned)
        print(f"{len(items):,} images copied to {out}.")
    print(edits.describe_edits(planned, applied=True))


def _say_rejected(rejected: "Sequence[Rejected]") -> None:
    from everydream.tools.files import listing  # noqa: PLC0415

    if rejected:
        print(f"Rejected ({len(rejected):,}):{listing(rejected)}", file=sys.stderr)
