"""What the images of a prep are called, so that each keeps its photo's caption and none takes another's name."""

import posixpath
import unicodedata
from collections.abc import Iterable

_MAX_BYTES = 200
"""Of a photo's stem; leaves room for the crop's label, a sidecar's ending and `.partial` under the 255 of a disk."""


class Names:
    """The names given so far, in every folder; equal here is what any file system takes for equal."""

    def __init__(self, folders: Iterable[str]) -> None:
        """Begin with the folders that come over from the photos."""
        self._taken = {_key(folder) for folder in folders}

    def take(self, folder: str, stem: str) -> str:
        """Return `stem`, or where that is taken in `folder`, `stem_2` and so on: behind `_` no caption changes."""
        name, number = stem, 1
        while _key(posixpath.join(folder, name)) in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(_key(posixpath.join(folder, name)))
        return name


def stem_of(name: str) -> str:
    """Return a photo's name without its extension, cut to what leaves room for a label."""
    return name.rpartition(".")[0].encode("utf-8")[:_MAX_BYTES].decode("utf-8", "ignore")


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
