"""Captions out of file names, into text sidecars beside the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from everydream.tools.captioning.items import Item, own_sidecars
from everydream.tools.files import Rejected, write_bytes


@dataclass
class Written:
    """What became of the images of a folder."""

    files: list[str] = field(default_factory=list)
    """Sidecars that were written."""
    kept: list[Rejected] = field(default_factory=list)
    """Images whose sidecars were left alone, and why."""


def write_sidecars(root: Path, items: Sequence[Item], captions: dict[str, str], overwrite: bool) -> Written:
    """Write the caption of each image that has one in `captions` beside it. Raises DiskError.

    A sidecar that is there is kept, unless `overwrite`; one of another kind that counts before a `.txt` always.
    """
    written = Written()
    own = own_sidecars([item.picture for item in items])
    for item in items:
        path = item.picture.path
        if path not in captions:
            continue
        if reason := why_kept(root, item, own.get(path), overwrite):
            written.kept.append(Rejected(path, reason))
        else:
            write_bytes(root / own[path], f"{captions[path]}\n".encode())
            written.files.append(own[path])
    return written


def why_kept(root: Path, item: Item, own: str | None, overwrite: bool) -> str:
    """Return why the sidecar `own` of an image is not written, "" if it is."""
    if own is None:
        return "shares a .txt with another image of its name; rename one of the two"
    if item.origin and item.file != own:
        return f"{item.file} says its caption and is left alone"
    if (root / own).exists() and not overwrite:
        return f"{own} is there already; --overwrite replaces it"
    return ""
