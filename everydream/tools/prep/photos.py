"""One photo: what is made of it, in which words, and what goes along with each of its crops."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from everydream.data.captions import Caption, caption_from_name, read_caption
from everydream.data.folders import FolderSettings, Values
from everydream.data.settings import DataSettings
from everydream.data.texts import BadText
from everydream.tools.files import Picture, renamed_sidecars
from everydream.tools.prep.frames import Box, Frame, centre_square, ladder
from everydream.tools.prep.pixels import subject_square
from everydream.tools.prep.settings import PrepSettings
from pictures.decode import opened, upright_rgb

_MAX_MEGAPIXELS = DataSettings.model_fields["max_megapixels"].default

FindFaces = Callable[[str, Image.Image], list[Box]]
"""(path of a photo, its upright pixels) -> its faces, the largest first."""


@dataclass
class Photo:
    """What became of one photo; a line of the report."""

    path: str
    outcome: str = "prepared"
    """prepared, no face, several faces, too small, or rejected."""
    reason: str = ""
    """Why it was not prepared."""
    notes: list[str] = field(default_factory=list)
    """What is to be said of it although it was prepared."""
    faces: list[Box] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """One image per frame, relative to the output folder."""

    def left_out(self, outcome: str, reason: str) -> None:
        """Note that nothing is made of it."""
        self.outcome, self.reason, self.frames = outcome, reason, []


@dataclass(frozen=True)
class Beside:
    """What a photo has beside its pixels."""

    caption: Caption
    settings: Values


def read_beside(root: Path, picture: Picture, folders: FolderSettings) -> Beside:
    """Return a photo's caption and the folder settings that count for it. Raises BadText."""
    values = folders.values(picture.folder)
    return Beside(read_caption(root / picture.folder, picture.folder, picture.name, picture.siblings, "join"), values)


def open_photo(file: Path) -> Image.Image:
    """Decode a photo as the trainer does. Raises BadImage."""
    with opened(file, _MAX_MEGAPIXELS) as image:
        return upright_rgb(image)


def plan_photo(photo: Photo, image: Image.Image, find_faces: FindFaces | None, settings: PrepSettings) -> None:
    """Decide on the frames of a photo; without `find_faces` it is framed once, whatever it shows."""
    if find_faces is not None:
        photo.faces = find_faces(photo.path, image)
        if not _plan_faces(photo, image, settings):
            return
    if not photo.frames:
        photo.frames = [Frame("", _whole_frame(image, settings))]
    _leave_out_small(photo, image, settings)


def _plan_faces(photo: Photo, image: Image.Image, settings: PrepSettings) -> bool:
    """Make the ladder of a photo's faces; return False if the photo is skipped."""
    count = len(photo.faces)
    if settings.faces == "skip" and count != 1:
        what = f"{count} faces were found" if count else "no face was found"
        photo.left_out("several faces" if count else "no face", f"{what}, and --faces skip leaves such photos out")
        return False
    if count == 0:
        photo.notes.append("no face was found: the photo is framed as one without a person")
    if count > 1:
        photo.notes.append(f"{count} faces were found: {'the largest' if settings.faces == 'largest' else 'each'} "
                           "is cropped")  # fmt: skip
    chosen = photo.faces if settings.faces == "all" else photo.faces[:1]
    for number, face in enumerate(chosen, 1):
        frames, notes = ladder(face, settings.ladder, image.size)
        prefix = f"face{number}_" if len(chosen) > 1 else ""
        photo.frames += [Frame(prefix + frame.label, frame.box) for frame in frames]
        photo.notes += [prefix + note for note in notes]
    return True


def _whole_frame(image: Image.Image, settings: PrepSettings) -> Box:
    if settings.pad is not None or settings.crop == "none":
        return Box(0, 0, *image.size)
    return centre_square(image.size) if settings.crop == "center" else subject_square(image)


def _leave_out_small(photo: Photo, image: Image.Image, settings: PrepSettings) -> None:
    """Leave out the frames that would have to be enlarged, unless that is wanted."""
    small = [frame for frame in photo.frames if max(frame.box.width, frame.box.height) < settings.size]
    whole = [frame for frame in photo.frames if not frame.label]
    if settings.upscale:
        return
    if whole and settings.crop == "none":
        if min(image.size) < settings.size:
            photo.notes.append(f"smaller than {settings.size}: kept at {image.width} x {image.height}")
        return
    sizes = ", ".join(f"{frame.label or 'the photo'} has {max(frame.box[2:])} px" for frame in small)
    photo.frames = [frame for frame in photo.frames if frame not in small]
    if not photo.frames:
        photo.left_out("too small", f"{sizes} of {settings.size}; --upscale enlarges")
    elif small:
        photo.notes.append(f"left out as smaller than {settings.size} px: {sizes}; --upscale enlarges them")


def sidecars(root: Path, picture: Picture, caption: Caption, name: str) -> dict[str, bytes]:
    """Return the sidecars of a crop called `name`, file name -> content: those of its photo. Raises BadText.

    And a text sidecar, where the photo's name says the caption and was too long to be kept.
    """
    found: dict[str, bytes] = {}
    for sidecar, new_name in renamed_sidecars(picture, name).items():
        try:
            found[new_name] = (root / picture.folder / sidecar).read_bytes()
        except OSError as error:
            raise BadText(f"{sidecar}: cannot be read ({error.strerror or error})") from error
    said = caption_from_name(picture.name)
    if caption_from_name(name) != said and caption.variants == (said,):
        found[f"{name.rpartition('.')[0]}.txt"] = f"{said}\n".encode()
    return found
