"""Which file says an image's caption, and what it says; or why it is not written here."""

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

from everydream.data.captions import sidecars_of
from everydream.data.folders import SETTING_FILES
from everydream.data.settings import SourceSettings
from everydream.data.shards import shard_of
from everydream.data.sources import source_root
from everydream.data.texts import BadText, decode_text, normalise, read_text
from everydream.data.walking import walk
from everydream.errors import ConfigError
from everydream.tools.captioning.items import TEXT_SUFFIXES, has_text, own_sidecars
from everydream.tools.files import Picture, pictures_of

LONGEST = 20_000
"""Characters of a caption file that are taken; a prompt has hundreds."""

_WHY_FIXED = {
    "label": "every image of this source has the caption in its label; change it in the YAML",
    "manifest": "its caption is in the manifest; change it there",
    "joepenna": "its caption is made of folders' names and its own (captions: joepenna); rename them",
}


class Image(NamedTuple):
    """An image and what it is called now."""

    name: str
    """Its source's name and its path, with a `/` in between."""
    source: SourceSettings
    path: str
    captions: Sequence[str]
    """None where it has no caption and so is rejected."""


class Sidecar(NamedTuple):
    """The text file that says, or will say, an image's caption."""

    file: Path
    text: str
    """What is to be edited."""
    before: bytes | None
    """What the file holds; None if it is not there."""
    lines: Literal["join", "choose"]
    note: str
    """Where the caption stands now, if not in this file."""

    @property
    def stamp(self) -> str:
        """Return what changes when another program writes the file, or another file becomes the one that counts."""
        return blake2b(b"\0".join((str(self.file).encode(), self.before or b"", self.text.encode())),
                       digest_size=12).hexdigest()  # fmt: skip


class Fixed(NamedTuple):
    """Why an image's caption cannot be edited here."""

    reason: str


class Folder(NamedTuple):
    """The images of one folder by name, and the text sidecar that is each one's own."""

    pictures: dict[str, Picture]
    own: dict[str, str]
    stems: Counter[str]


Listed = Callable[[Path, str], Folder]


def list_folder(root: Path, folder: str) -> Folder:
    """List one folder of a source; `folder` is relative to the source's own."""
    names = next(walk(root / folder)).files
    pictures = pictures_of(folder, names)
    stems = Counter(picture.name.rpartition(".")[0] for picture in pictures)
    return Folder({picture.name: picture for picture in pictures}, own_sidecars(pictures), stems)


def sidecar_of(image: Image, listed: Listed = list_folder) -> Sidecar | Fixed:
    """Return where an image's caption is written, by the caption rule of its source."""
    if reason := _WHY_FIXED.get(image.source.caption_rule):
        return Fixed(reason)
    root = source_root(image.source)
    if shard_of(root / image.path) is not None:
        return Fixed("it lies in a tar shard; unpack the shard to edit its captions")
    folder, _, name = image.path.rpartition("/")
    here = listed(root, folder)
    if name not in here.pictures:
        return Fixed("the image is not there any more; look again")
    try:
        return _of(image, here, here.pictures[name], root)
    except BadText as error:
        return Fixed(f"{error}. Correct that file by hand")


def _of(image: Image, here: Folder, picture: Picture, root: Path) -> Sidecar | Fixed:
    """Decide by the sidecar that counts now."""
    stem, _, extension = picture.name.rpartition(".")
    siblings, sidecars, own = picture.siblings, sidecars_of(picture.name, picture.siblings), here.own.get(picture.path)
    shared = here.stems[stem] > 1
    if image.source.caption_rule == "kohya":
        sidecars = [siblings[stem, suffix] for suffix in ("caption", "txt") if (stem, suffix) in siblings]
        name = siblings.get((stem, "txt"), f"{stem}.txt")
        own = None if shared or name.lower() in SETTING_FILES else _join(picture.folder, name)
    origin = next((name for name in sidecars if has_text(root / picture.folder / name, name)), "")
    if origin.lower().endswith((".yaml", ".yml")):
        return Fixed(f"{origin} says its caption, and rewriting a YAML would lose its comments; edit it by hand")
    is_text = origin.lower().endswith(TEXT_SUFFIXES)
    counts = _join(picture.folder, origin) if is_text else own
    its_own = counts == own or origin == siblings.get((stem, f"{extension.lower()}.txt"))
    if counts is None or (shared and not its_own):
        return Fixed("a sidecar of its name would count for another file too; rename one of the two")
    lines: Literal["join", "choose"] = "choose" if image.source.caption_rule == "kohya" else image.source.lines
    file, text = root / counts, "\n".join(image.captions if lines == "choose" else image.captions[:1])
    if is_text:
        written = read_text(file, origin)
        text = "\n".join(filter(None, map(normalise, written.splitlines())))
    return Sidecar(file, text, _bytes(file), lines, "" if is_text else _note(origin, file.name))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _note(origin: str, target: str) -> str:
    now = f"now in {origin}" if origin else "not in a text file yet"
    return f"{now}; an edit is written to {target}, which counts first"


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def content_of(text: str, file: str) -> bytes:
    """Return what a text sidecar holds for a caption, a line for each of its own. Raises ConfigError."""
    rows = list(filter(None, map(normalise, text.removeprefix("\ufeff").splitlines())))
    if not rows:
        raise ConfigError(
            f"Nothing would be left of the caption, and an empty {file} is passed over, so the image's name would "
            "count. Write something, or switch the image off."
        )
    if len(text) > LONGEST:
        raise ConfigError(f"The caption has {len(text):,} characters; at most {LONGEST:,} are taken.")
    try:
        content = "".join(f"{row}\n" for row in rows).encode("utf-8")
        decode_text(content, file)
    except (UnicodeEncodeError, BadText) as error:
        raise ConfigError(f"The caption cannot be written: {error}.") from error
    return content
