"""Tar shards (WebDataset): folders of images that are one file, read in place and never unpacked.

A shard is listed like a folder, so every caption rule holds inside it; a member's path goes through it as if it were
one: `00000.tar/000000012.jpg`. Everything that opens a path of a source comes through here.
"""

import errno
import io
import os
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import IO

from pictures.decode import BadImage

SUFFIX = ".tar"
_SHARDS_KNOWN = 1024


def shard_of(path: Path) -> Path | None:
    """Return the shard that a path leads into, if it leads into one."""
    if SUFFIX not in str(path).lower():
        return None
    return next((part for part in path.parents if part.suffix.lower() == SUFFIX and part.is_file()), None)


def picture_at(path: Path) -> Path | IO[bytes]:
    """Return what `pictures` opens for a path: itself, or a member's content; `BadImage` if that cannot be read."""
    if shard_of(path) is None:
        return path
    try:
        return open_binary(path)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from error


def open_binary(path: Path) -> IO[bytes]:
    """Open a file, also a shard's member. Raises OSError."""
    return path.open("rb") if shard_of(path) is None else io.BytesIO(read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's content, also of a shard's member. Raises OSError."""
    shard = shard_of(path)
    if shard is None:
        return path.read_bytes()
    member = path.relative_to(shard).as_posix()
    if member not in (members := _places(shard)):
        raise FileNotFoundError(2, f"no {member} in the shard", str(shard))
    offset, size = members[member]
    with shard.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def list_shard(path: Path) -> list[str]:
    """Return the names of a shard's files, in its order. Raises OSError if it cannot be read to its end."""
    return list(_places(path))


def _places(path: Path) -> Mapping[str, tuple[int, int]]:
    stat = path.stat()
    try:
        return _scan(os.fspath(path), stat.st_mtime_ns, stat.st_size)
    except tarfile.TarError as error:
        raise OSError(errno.EIO, f"damaged tar file ({error})", str(path)) from error


@lru_cache(_SHARDS_KNOWN)
def _scan(path: str, mtime_ns: int, size: int) -> Mapping[str, tuple[int, int]]:
    """Return (offset, size) of each member; anew when the shard has changed."""
    with tarfile.open(path, "r:") as tar:
        places = {_safe(member.name): (member.offset_data, member.size) for member in tar if member.isfile()}
        # What is no header ends the reading without a word; only zeros, or nothing, are the end.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"it breaks off after {len(places)} files")
        return places


def _safe(name: str) -> str:
    """Return a member's name so that it leads nowhere but into its shard, as tar itself unpacks it."""
    parts = name.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))
