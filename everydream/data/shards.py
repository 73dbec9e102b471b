"""Tar shards (WebDataset): folders of images that are one file, read in place and never unpacked, here or on a server.

A shard is listed like a folder, so every caption rule holds inside it; a member's path goes through it as if it were
one: `00000.tar/000000012.jpg`. Everything that opens a path of a source comes through here. Where members lie is found
once and kept in the user's cache; the index of a set has it for each image, so training reads one range of bytes an
image and asks for no listing. The header before a member is read with it, which finds out a shard that was rewritten.
"""

import errno
import io
import json
import os
import sqlite3
import tarfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everydream.data import fetched, remote
from everydream.data.base import Base, cache_folder
from everydream.data.strings import Strings
from everydream.types import Span
from pictures.decode import BadImage

SUFFIX = ".tar"
_SHARDS_KNOWN = 16
_FETCH_BYTES = 8 << 20
_ASK_AGAIN_S, _JUST_NOW_S = 60.0, 2.0
_NAME_BYTES = 100
"""Of a tar header; longer names stand elsewhere."""
_TABLE = "CREATE TABLE IF NOT EXISTS shards (path BLOB PRIMARY KEY, stamp TEXT, members BLOB)"


class Members(NamedTuple):
    """The files of a shard, in its order."""

    names: Strings
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def shard_of(path: Path) -> Path | None:
    """Return the shard that a path leads into, if it leads into one."""
    if SUFFIX not in str(path).lower():
        return None
    found = (part for part in path.parents if part.suffix.lower() == SUFFIX)
    return next((part for part in found if remote.url_of(part) is not None or part.is_file()), None)


def picture_at(path: Path, span: Span | None = None) -> Path | IO[bytes]:
    """Return what `pictures` opens for a path: itself, or a member's content; `BadImage` if that cannot be read.

    With the `span` of a member nothing is asked of its shard but these bytes.
    """
    if shard_of(path) is None and remote.url_of(path) is None:
        return path
    try:
        return io.BytesIO(read_bytes(path, span))
    except OSError as error:
        raise BadImage(f"cannot be read: {why(error)}") from error


def why(error: OSError) -> str:
    """Return what is said of an OSError: which server or shard said what."""
    where = f"{error.filename}: " if isinstance(error.filename, str) and "://" in error.filename else ""
    return f"{where}{error.strerror or error}"


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, also a shard's member. Raises OSError."""
    is_plain = shard_of(path) is None and remote.url_of(path) is None
    return path.open("rb") if is_plain else io.BytesIO(read_bytes(path))


def read_bytes(path: Path, span: Span | None = None) -> bytes:
    """Return a file's content, also of a shard's member; `span`: where the index says it lies. Raises OSError."""
    shard = shard_of(path)
    if shard is None:
        return path.read_bytes() if remote.url_of(path) is None else _remote_file(path, span)
    name = path.relative_to(shard).as_posix()
    if span is None and (span := span_of(path)) is None:
        raise FileNotFoundError(errno.ENOENT, f"no {name} in the shard", str(shard))
    block = _range(shard, span.offset - tarfile.BLOCKSIZE, span.offset + span.size)
    if not _is_header_of(block[: tarfile.BLOCKSIZE], name, span.size):
        raise OSError(
            errno.ESTALE, f"{name} does not lie where the index says; the shard was written anew since", str(shard)
        )
    return block[tarfile.BLOCKSIZE :]


def span_of(path: Path) -> Span | None:
    """Return where a member lies in its shard; None for what is none, or is not there. Raises OSError."""
    shard = shard_of(path)
    if shard is None:
        url = remote.url_of(path)
        return Span(0, _remote_stamp(url).size) if url is not None else None
    place = _places(shard).get(path.relative_to(shard).as_posix())
    members = _members(*_identity(shard))
    return None if place is None else Span(int(members.offsets[place]), int(members.sizes[place]))


def list_shard(path: Path) -> list[str]:
    """Return the names of a shard's files, in its order. Raises OSError if it cannot be read to its end."""
    return list(_members(*_identity(path)).names)


def stamp_of(path: Path) -> str:
    """Return what tells a file from another one of the same name, "" for nothing. Raises OSError."""
    url = remote.url_of(path)
    if url is not None:
        return remote_stamp_of(_remote_stamp(url))
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def remote_stamp_of(found: remote.Stamp) -> str:
    """Return a remote file's stamp as a text; "" where its server says nothing of changes, so nothing is known."""
    return f"{found.size} {found.mark}" if found.mark else ""


def forget() -> None:
    """Ask servers and shards anew: a scan begins."""
    _seen.cache_clear()
    _members.cache_clear()
    _places_in.cache_clear()


# Reading


def _range(path: Path, start: int, end: int) -> bytes:
    url = remote.url_of(path)
    if url is None:
        return _pread(path, start, end)
    stamp = _unchanged(url)
    place = fetched.place_of(url, stamp, start, end)
    for kept, size, first in ((fetched.place_of(url, stamp), stamp.size, start), (place, end - start, 0)):
        if _is_kept(stamp, size) and fetched.find(kept, size) is not None:
            with suppress(FileNotFoundError):  # another process made room just now
                return _pread(kept, first, first + end - start)
    block = remote.read_range(url, start, end)
    # What is kept outlives this process, so it must be of the file that it is called by.
    if _is_kept(stamp, len(block)) and _unchanged(url, _JUST_NOW_S) == stamp:
        fetched.keep(place, [block])
    return block


def _is_kept(stamp: remote.Stamp, num_bytes: int) -> bool:
    """Tell whether what a server gave is kept: not where it would not say that the file has changed."""
    return bool(stamp.mark) and fetched.is_kept(num_bytes)


def _unchanged(url: str, within_s: float | None = None) -> remote.Stamp:
    """Return a remote file's stamp as it was first seen. Raises OSError where it is another one now.

    Its server is asked again where that was not done `within_s`; None: within a minute.
    """
    seen = _seen(url)
    if time.monotonic() - seen.asked_at >= (_ASK_AGAIN_S if within_s is None else within_s):
        # Twice: of several servers behind one name, one may be behind.
        if all(remote.stamp_of(url) != seen.stamp for _ in range(2)):
            raise OSError(errno.ESTALE, "it is not the file that was scanned: its size, ETag or date has changed", url)
        seen.asked_at = time.monotonic()
    return seen.stamp


def _pread(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        block = file.read(end - start)
    if len(block) != end - start:
        raise OSError(errno.EIO, "it is shorter than it was", str(path))
    return block


def _remote_file(path: Path, span: Span | None) -> bytes:
    url = remote.url_of(path)
    assert url is not None
    size = span.size if span is not None else _remote_stamp(url).size
    content = _range(path, 0, size)
    if span is not None and _remote_stamp(url).size != size:
        raise OSError(errno.ESTALE, f"it has {_remote_stamp(url).size} bytes, and {size} when it was scanned", url)
    return content


@dataclass
class _Seen:
    stamp: remote.Stamp
    asked_at: float


@lru_cache(4096)
def _seen(url: str) -> _Seen:
    """Return what a server said of a file, and when; of the latest 4096 files, for there may be millions."""
    return _Seen(remote.stamp_of(url), time.monotonic())


def _remote_stamp(url: str) -> remote.Stamp:
    return _seen(url).stamp


def _is_header_of(header: bytes, name: str, size: int) -> bool:
    """Tell whether this is the tar header of a member of this name and size."""
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    # Longer names, and those of other alphabets, may stand in a header before this one.
    elsewhere = len(found.name) >= _NAME_BYTES - 1 or not name.isascii()
    return found.size == size and (_safe(found.name) == name or elsewhere)


# Listing


def _identity(path: Path) -> tuple[str, str]:
    return path.as_posix() if remote.url_of(path) else os.fspath(path), stamp_of(path)


@lru_cache(_SHARDS_KNOWN)
def _members(path: str, stamp: str) -> Members:
    """Return the files of a shard, from the cache if they are known; anew when the shard has changed."""
    base = Base(cache_folder() / "shards-1.sqlite", _TABLE, "where the images lie in shards", lambda _: None)
    try:
        key = os.fsencode(os.path.abspath(path))  # noqa: PTH100 - a text goes in
        query = "SELECT members FROM shards WHERE path = ? AND stamp = ?"
        row = base.run(lambda sqlite: sqlite.execute(query, (key, stamp)).fetchone()) if stamp else None
        known = _unpacked(row[0]) if row is not None else None
        if known is not None:
            names, offsets, sizes = known
        else:
            names, offsets, sizes = _listed(Path(path), stamp)
            packed = zlib.compress(json.dumps([names, offsets, sizes]).encode(), 1)

            def write(sqlite: sqlite3.Connection) -> None:
                with sqlite:
                    sqlite.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?)", (key, stamp, packed))

            if stamp:
                base.run(write)
    finally:
        base.close()
    return Members(Strings.of(names), np.array(offsets, np.int64), np.array(sizes, np.int64))


def _unpacked(packed: bytes) -> tuple[list[str], list[int], list[int]] | None:
    """Return what was kept of a shard; None where it is damaged, so that the shard is listed anew."""
    try:
        names, offsets, sizes = json.loads(zlib.decompress(packed))
    except (zlib.error, ValueError):
        return None
    return names, offsets, sizes


def _places(shard: Path) -> dict[str, int]:
    return _places_in(*_identity(shard))


@lru_cache(2)
def _places_in(path: str, stamp: str) -> dict[str, int]:
    return {name: number for number, name in enumerate(_members(path, stamp).names)}


def _listed(path: Path, stamp: str) -> tuple[list[str], list[int], list[int]]:
    url = remote.url_of(path)
    try:
        if url is None:
            with path.open("rb") as file:
                return _scan(file)
        kept = _fetched_whole(url)
        if kept is None:
            return _scan(_Ranges(url, _remote_stamp(url).size))
        with kept.open("rb") as file:
            return _scan(file)
    except tarfile.TarError as error:
        raise OSError(errno.EIO, f"damaged tar file ({error})", url or str(path)) from error


def _scan(file: Any) -> tuple[list[str], list[int], list[int]]:
    """Return names, offsets and sizes of a tar's files."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        places = {}
        for member in tar:
            if member.isfile():
                places[_safe(member.name)] = (member.offset_data, member.size)
            tar.members = []  # type: ignore[attr-defined] # or the headers of all would be kept
        # What is no header ends the reading without a word; only zeros, or nothing, are the end.
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"it breaks off after {len(places)} files")
    return list(places), [offset for offset, _ in places.values()], [size for _, size in places.values()]


def _fetched_whole(url: str) -> Path | None:
    """Return a copy of a remote shard: a scan looks at all of it, once. None where it is too large to be kept."""
    stamp = _remote_stamp(url)
    place = fetched.place_of(url, stamp)
    if not _is_kept(stamp, stamp.size):
        return None
    if fetched.find(place, stamp.size) is not None:
        return place

    def blocks() -> Iterator[bytes]:
        for start in range(0, stamp.size, _FETCH_BYTES):
            yield remote.read_range(url, start, min(start + _FETCH_BYTES, stamp.size))
        if remote.stamp_of(url) != stamp:
            raise OSError(errno.ESTALE, "it changed while it was read", url)

    return place if fetched.keep(place, blocks()) else None


class _Ranges(io.RawIOBase):
    """A remote file as tarfile reads it: forwards, mostly; blocks are fetched as they are needed."""

    def __init__(self, url: str, size: int) -> None:
        super().__init__()
        self._url, self._size = url, size
        self._at, self._start, self._block = 0, 0, b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = 0) -> int:
        self._at = place + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if not self._start <= self._at <= end <= self._start + len(self._block):
            self._start = self._at
            self._block = remote.read_range(self._url, self._at, min(max(end, self._at + (1 << 18)), self._size))
        block = self._block[self._at - self._start : end - self._start]
        self._at = max(end, self._at)
        return block


def _safe(name: str) -> str:
    """Return a member's name so that it leads nowhere but into its shard, as tar itself unpacks it."""
    parts = name.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))
