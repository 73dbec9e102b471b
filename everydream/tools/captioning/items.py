"""The images of a folder with their captions, and where each caption stands."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from everydream.data.captions import (
    Caption,
    parse_json_sidecar,
    parse_yaml_sidecar,
    read_caption,
    sidecars_of,
)
from everydream.data.folders import SETTING_FILES
from everydream.data.texts import BadText, normalise, read_text
from everydream.tools.files import Listing, Picture, Rejected

TEXT_SUFFIXES = (".txt", ".caption")


class Item(NamedTuple):
    """An image and what it is called."""

    picture: Picture
    caption: Caption
    origin: str
    """The sidecar that says the caption; "" if the image's name does, or nothing."""

    @property
    def file(self) -> str:
        """The path of that sidecar, relative to the root."""
        return f"{self.picture.folder}/{self.origin}" if self.picture.folder else self.origin


def read_items(root: Path, listed: Listing) -> tuple[list[Item], list[Rejected]]:
    """Read the caption of every image; those whose sidecars cannot be understood are rejected with the reason."""
    items: list[Item] = []
    rejected = list(listed.rejected)
    for picture in listed.pictures:
        try:
            caption = read_caption(root / picture.folder, picture.folder, picture.name, picture.siblings, "join")
            items.append(Item(picture, caption, _origin(root, picture)))
        except BadText as error:
            rejected.append(Rejected(picture.path, str(error)))
    return items, rejected


def _origin(root: Path, picture: Picture) -> str:
    """Return the first sidecar that holds text, in the order in which they count."""
    sidecars = sidecars_of(picture.name, picture.siblings)
    return next((name for name in sidecars if has_text(root / picture.folder / name, name)), "")


def has_text(path: Path, name: str) -> bool:
    """Tell whether a sidecar holds a caption. Raises BadText."""
    text = read_text(path, name)
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return bool(normalise(text))
    return bool((parse_json_sidecar if suffix == ".json" else parse_yaml_sidecar)(text, name).variants)


def own_sidecars(pictures: Sequence[Picture]) -> dict[str, str]:
    """Return for each image the path of the text sidecar that counts for it alone; it may not be there yet.

    An image that has a `.txt` in common with another image of its name has none, and is left out.
    """
    stems = Counter((picture.folder, _stem(picture)) for picture in pictures)
    own: dict[str, str] = {}
    for picture in pictures:
        stem, extension = _stem(picture), picture.name.rpartition(".")[2].lower()
        is_shared = stems[picture.folder, stem] > 1
        there = picture.siblings.get((stem, "txt"))
        if is_shared or f"{stem}.txt".lower() in SETTING_FILES:
            name = picture.siblings.get((stem, f"{extension}.txt"), f"{picture.name}.txt")
        else:
            name = there or f"{stem}.txt"
        if not (is_shared and there):
            own[picture.path] = f"{picture.folder}/{name}" if picture.folder else name
    return own


def _stem(picture: Picture) -> str:
    return picture.name.rpartition(".")[0]
