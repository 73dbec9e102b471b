"""The user's folders: which images lie there, what must not happen to them, and writing whole files elsewhere."""

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from everydream.data.captions import Siblings, index_siblings, sidecars_of
from everydream.data.shards import shard_of
from everydream.data.walking import show, walk
from everydream.errors import ConfigError, DataError, DiskError
from everydream.formats.atomic import atomic_file
from pictures.decode import image_extensions

_SHOWN = 20
JUNK = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in any folder that is looked at."""


class Picture(NamedTuple):
    """An image file in a folder, not opened yet."""

    folder: str
    """Relative to the root, with forward slashes; "" is the root."""
    name: str
    siblings: Siblings
    """The possible sidecars in its folder."""

    @property
    def path(self) -> str:
        """Its path relative to the root."""
        return posixpath.join(self.folder, self.name)


class Rejected(NamedTuple):
    """A file that nothing was made of, and why."""

    path: str
    reason: str


class Listing(NamedTuple):
    """What a folder holds, in sorted order."""

    pictures: list[Picture]
    rejected: list[Rejected]
    folders: frozenset[str]
    """Relative paths of all folders."""


def list_pictures(root: Path) -> Listing:
    """List the images of a tree as the trainer finds them. Raises DataError if there is none, ConfigError if no folder.

    Images in tar shards are rejected: a shard has no place for new names and sidecars.
    """
    if not root.is_dir():
        raise ConfigError(f"{root}: {'is a file, not' if root.exists() else 'there is no such'} folder of images.")
    pictures: list[Picture] = []
    rejected: list[Rejected] = []
    folders: list[str] = []
    for folder in walk(root):
        if folder.problem:
            rejected.append(Rejected(show(folder.path) or ".", folder.problem))
        folders.append(folder.path)
        for picture in pictures_of(folder.path, folder.files):
            problem = _problem(root, picture)
            pictures += [] if problem else [picture]
            rejected += [Rejected(show(picture.path), problem)] if problem else []
    if not pictures:
        raise DataError(f"{root}: holds no image that could be used.{listing(rejected)}")
    return Listing(sorted(pictures, key=lambda item: item.path), rejected, frozenset(folders))


def pictures_of(folder: str, names: Sequence[str]) -> list[Picture]:
    """Return the images among the files of one folder, which is relative to the root."""
    siblings, extensions = index_siblings(names), image_extensions()
    return [Picture(folder, name, siblings) for name in names if posixpath.splitext(name)[1].lower() in extensions]


def _problem(root: Path, picture: Picture) -> str:
    if shard_of(root / picture.path) is not None:
        return "lies in a tar shard; unpack the shard first"
    try:
        picture.path.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not valid UTF-8; rename it"
    return ""


def renamed_sidecars(picture: Picture, name: str) -> dict[str, str]:
    """Return the sidecars of `picture`, each with what it has to be called beside a copy called `name`."""
    stem, _, extension = name.rpartition(".")
    old_stem, _, old_extension = picture.name.rpartition(".")
    with_extension = picture.siblings.get((old_stem, f"{old_extension.lower()}.txt"))
    return {
        sidecar: f"{stem}.{extension}.txt" if sidecar == with_extension else f"{stem}.{_ending(sidecar)}"
        for sidecar in sidecars_of(picture.name, picture.siblings)
    }


def _ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def listing(items: Sequence[Rejected]) -> str:
    """Return one line per file with its reason, the first twenty, each line with its line break before it."""
    more = f"\n  and {len(items) - _SHOWN:,} more" if len(items) > _SHOWN else ""
    return "".join(f"\n  {item.path}: {item.reason}" for item in items[:_SHOWN]) + more


def require_apart(source: Path, out: Path) -> None:
    """Raise ConfigError if one of the two folders lies inside the other, links followed."""
    inner, outer = source.resolve(), out.resolve()
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise ConfigError(
            f"--out {out} and {source} are the same folder or lie in one another, so results would mix with your "
            "originals. Choose an --out beside it."
        )


def require_new(out: Path) -> None:
    """Raise ConfigError unless `out` is not there, or an empty folder."""
    if out.is_dir() and all(entry.name in JUNK for entry in out.iterdir()):
        return
    if out.exists():
        raise ConfigError(f"--out {out} is there already and not empty; nothing is mixed into it. Choose a new folder.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says when `path` cannot be written into DiskError."""
    try:
        yield
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written: {error.strerror or error}. Files that were finished before are whole. "
            "Free some space or choose another folder, and run the same command again."
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, its folder too. Raises DiskError."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            partial.write_bytes(data)
