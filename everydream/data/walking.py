"""The files of a source's folders and shards, with what tells whether one has changed since: its size and its dates."""

import os
import posixpath
import stat as modes
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from everydream.data import remote
from everydream.data.shards import SUFFIX as SHARD
from everydream.data.shards import list_shard, remote_stamp_of, stamp_of, why

_REQUESTS = 16


class Folder(NamedTuple):
    """One folder of a source: its path relative to the root ("" is the root) and its visible files."""

    path: str
    files: list[str]
    problem: str = ""
    stamps: Sequence[str] = ()
    """Each file's size and dates; of a shard's members those of the shard."""
    newest_ns: int = 0
    """The latest date among them."""


def walk(root: Path, shards: Sequence[str] | None = None) -> Iterator[Folder]:
    """Yield the folders of a tree, hidden names left out; links are followed unless they lead back up.

    `shards`: only these of the root. Of remote places the tree is what their server lists.
    """
    if shards is not None:
        yield from _given_shards(root, shards)
    elif (url := remote.url_of(root)) is not None:
        yield from _remote_folders(root, url)
    else:
        yield from _local_folders(root)


def _local_folders(root: Path) -> Iterator[Folder]:
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        path, above = pending.pop()
        try:
            stat = (root / path).stat()
            with os.scandir(root / path) as listing:
                entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            yield Folder(path, [], f"the folder cannot be listed: {error.strerror or error}")
            continue
        identity = (stat.st_dev, stat.st_ino)
        if identity in above:
            continue
        folder, folders = _parted(path, entries)
        pending += [(posixpath.join(path, name), above | {identity}) for name in reversed(folders)]
        yield folder
        for name, stamp in zip(folder.files, folder.stamps, strict=True):
            if name.lower().endswith(SHARD):
                yield from _inside_shard(root, posixpath.join(path, name), stamp, folder.newest_ns)


def _parted(path: str, entries: Sequence[os.DirEntry[str]]) -> tuple[Folder, list[str]]:
    """Return a folder's files and the names of its folders.

    Dangling links are files, which are to be reported; pipes are not, on which reading would wait forever.
    """
    folders, files, stamps, newest = [], [], [], 0
    for entry in entries:
        try:
            found = entry.stat()
        except OSError:
            files.append(entry.name)
            stamps.append("")
            continue
        if modes.S_ISDIR(found.st_mode):
            folders.append(entry.name)
        elif modes.S_ISREG(found.st_mode):
            files.append(entry.name)
            # The second date is that of any change, which copying a file's own date over does not hide.
            stamps.append(f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}")
            newest = max(newest, found.st_mtime_ns, found.st_ctime_ns)
    return Folder(path, files, "", stamps, newest), folders


def _given_shards(root: Path, names: Sequence[str]) -> Iterator[Folder]:
    """Yield what is in some shards; servers are asked about several at once."""

    def stamp(name: str) -> str:
        try:
            return stamp_of(root / name)
        except OSError:
            return ""  # what lists it says why

    is_remote = remote.url_of(root) is not None
    with ThreadPoolExecutor(_REQUESTS if is_remote else 1) as pool:
        for name, found in zip(names, pool.map(stamp, names), strict=True):
            dates = [] if is_remote else [int(date) for date in found.split()[1:]]
            yield from _inside_shard(root, name, found, max(dates, default=0))


def _remote_folders(root: Path, url: str) -> Iterator[Folder]:
    try:
        by_folder: dict[str, list[tuple[str, str]]] = {}
        for path, stamp in remote.files_below(url):
            folder, name = posixpath.split(path)
            if name and not any(part.startswith(".") for part in path.split("/")):
                by_folder.setdefault(folder, []).append((name, remote_stamp_of(stamp)))
    except OSError as error:
        yield Folder("", [], f"the folder cannot be listed: {error.strerror or error}")
        return
    for folder, files in sorted(by_folder.items()):
        names, stamps = [name for name, _ in files], [stamp for _, stamp in files]
        yield Folder(folder, names, "", stamps)
        for name, found in files:
            if name.lower().endswith(SHARD):
                yield from _inside_shard(root, posixpath.join(folder, name), found, 0)


def _inside_shard(root: Path, path: str, stamp: str, newest_ns: int) -> Iterator[Folder]:
    """Yield the folders of a tar shard; mostly there is one."""
    try:
        names = list_shard(root / path)
    except OSError as error:
        yield Folder(path, [], f"the shard cannot be read: {why(error)}")
        return
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, file = posixpath.split(name)
        if not file.startswith("."):
            by_folder.setdefault(posixpath.join(path, folder) if folder else path, []).append(file)
    for folder, files in sorted(by_folder.items()):
        yield Folder(folder, sorted(files), "", [stamp] * len(files), newest_ns)


def show(path: str) -> str:
    """Return a path that can be printed and encoded, whatever bytes the file system gave."""
    return path.encode("utf-8", "backslashreplace").decode()
