"""One shard: a safetensors file of entries, written once under a name that no other has, whole or not there.

The tensors are called by their keys in hex. `crc32` in the metadata has a checksum of each entry's key and bytes, and
`about` says what they are. Nothing lists the shards: what is in a folder is read off their headers.
"""

import json
import os
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from everydream.formats.atomic import atomic_file

SUFFIX = ".safetensors"
_PREFIX = "shard-"
_LARGEST_HEADER = 1 << 27
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Place(NamedTuple):
    """Where an entry is in its file."""

    key: bytes
    offset: int
    size: int
    crc32: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a shard says of itself."""

    about: dict[str, Any]
    places: list[Place]


class Damaged(Exception):  # noqa: N818 - not an error of the user's; it never leaves the room
    """A shard, or an entry of one, that is not as it was written; the text says why."""


def list_shards(folder: Path) -> list[Path]:
    """Return the shards of a folder, by name."""
    return sorted(folder.glob(f"{_PREFIX}*{SUFFIX}"))


def write_shard(folder: Path, entries: Mapping[bytes, torch.Tensor], about: Mapping[str, Any]) -> Path:
    """Write a new shard. Raises OSError; then nothing of it is left."""
    tensors = {key.hex(): tensor.contiguous() for key, tensor in entries.items()}
    sums = {name: _checksum(bytes.fromhex(name), _bytes_of(tensor)) for name, tensor in tensors.items()}
    path = folder / f"{_PREFIX}{secrets.token_hex(8)}{SUFFIX}"
    with atomic_file(path) as partial:
        partial.write_bytes(save(tensors, {"crc32": json.dumps(sums), "about": json.dumps(dict(about))}))
    return path


def read_header(path: Path) -> Header:
    """Return what is in a shard. Raises Damaged where it is cut short or its header is not as it should be; OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_LARGEST_HEADER, size - 8):
            raise Damaged("cut short")
        header = file.read(length)
    try:
        said = json.loads(header)
        metadata = said.pop("__metadata__")
        sums = json.loads(metadata["crc32"])
        places = [_place(name, facts, 8 + length, int(sums[name])) for name, facts in said.items()]
        about = dict(json.loads(metadata["about"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"header cannot be read ({type(error).__name__})") from error
    if any(place.offset + place.size > size for place in places):
        raise Damaged("cut short")
    return Header(about, places)


def _place(name: str, facts: dict[str, Any], start: int, crc32: int) -> Place:
    first, last = facts["data_offsets"]
    shape = tuple(int(side) for side in facts["shape"])
    place = Place(bytes.fromhex(name), start + int(first), int(last) - int(first), crc32, str(facts["dtype"]), shape)
    if place.offset < start or place.size != _DTYPES[place.dtype].itemsize * torch.Size(shape).numel():
        raise ValueError(name)
    return place


def read_entry(path: Path, place: Place) -> torch.Tensor:
    """Return an entry as it was written. Raises Damaged where its bytes have changed; OSError."""
    # Opened for each entry: a million images are in thousands of shards, more than a process may hold open.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.lseek(descriptor, place.offset, os.SEEK_SET)
        content = bytearray()
        while len(content) < place.size and (more := os.read(descriptor, place.size - len(content))):
            content += more
    finally:
        os.close(descriptor)
    if len(content) != place.size or _checksum(place.key, content) != place.crc32:
        raise Damaged("its bytes are not those that were written")
    return torch.frombuffer(content, dtype=_DTYPES[place.dtype]).view(place.shape)


def _checksum(key: bytes, content: bytes | bytearray | memoryview) -> int:
    return zlib.crc32(content, zlib.crc32(key))


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    found: memoryview = tensor.view(-1).view(torch.uint8).numpy().data
    return found
