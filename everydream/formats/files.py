"""Named tensors from and to files, by content where reading, by ending where writing."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from everydream.errors import DiskError, FormatError
from everydream.formats.atomic import atomic_file
from everydream.formats.pickles import load_pickle
from everydream.formats.sharded import is_sharded, read_sharded

StateDict = dict[str, torch.Tensor]
METADATA_KEY = "everydream"
"""Where our own files keep what is not a tensor, in either format."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TensorFile:
    """What a model file holds."""

    tensors: StateDict
    metadata: dict[str, Any] = field(default_factory=dict)
    """Safetensors' string metadata, or what stood beside the weights in a pickle."""
    skipped: list[str] = field(default_factory=list)
    """Names in a pickle that were not taken up, because they are not tensors."""


def read_file(path: Path) -> TensorFile:
    """Read a .safetensors, .ckpt, .pt or .bin file, whatever its ending says, or a last.ckpt that is a folder.

    A `state_dict` inside is unwrapped. Raises FormatError, naming the path, for anything that is not
    a set of tensors.
    """
    if not path.is_file() and not is_sharded(path):
        raise FormatError(f"There is no model file at {path.absolute()}.")
    if is_safetensors(path):
        return _read_safetensors(path)
    contents, skipped = read_contents(path)
    if not isinstance(contents, Mapping):
        contents = {}
    inner = contents.get("state_dict")
    tensors = inner if isinstance(inner, Mapping) else contents
    metadata = {k: v for k, v in contents.items() if k != "state_dict"} if tensors is not contents else {}
    state = {
        k: torch.Tensor.detach(v) for k, v in tensors.items() if isinstance(k, str) and isinstance(v, torch.Tensor)
    }
    if not state:
        held = f" It names {', '.join(skipped[:5])}; none of that was run." if skipped else ""
        raise FormatError(f"{path} holds no tensors, so it is not a model.{held} Nothing was loaded.")
    return TensorFile(state, metadata, skipped)


def read_contents(path: Path) -> tuple[Any, list[str]]:
    """Return (contents, names not taken up) of a pickled file, or of a last.ckpt that is a folder."""
    return (read_sharded(path), []) if is_sharded(path) else load_pickle(path)


def is_safetensors(path: Path) -> bool:
    """Tell by the first bytes: a little-endian header length, then JSON."""
    if path.is_dir():
        return False
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:9] == b"{"


def _read_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:
            return TensorFile({key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {}))  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(
            f"{path} is not a whole safetensors file: {error}. "
            "Compare its size with the download page, and fetch it again."
        ) from error


def cast_floating(tensors: StateDict, dtype: torch.dtype | None) -> StateDict:
    """Return the tensors with the floating ones in `dtype` (None: as they are); integer tensors stay untouched."""
    return {k: v.to(dtype) if dtype is not None and v.is_floating_point() else v for k, v in tensors.items()}


def write_safetensors(path: Path, tensors: StateDict, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file atomically. The same tensors and metadata give the same bytes."""
    taken: set[int] = set()
    owned = {key: _owned(tensors[key], taken) for key in sorted(tensors)}
    with atomic_file(path) as partial, _told_as_disk_error(path):
        save_file(owned, partial, {"format": "pt", **(metadata or {})})
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order; the library writes it in another one each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, "the header's length changed"
        file.seek(8)
        file.write(text)


def write_pickle(path: Path, contents: Mapping[Any, Any]) -> None:
    """Write a .ckpt atomically: plain containers and tensors only, readable with `weights_only=True`.

    The same contents give the same bytes, whatever path led to them: see `canonical`.
    """
    with atomic_file(path) as partial, _told_as_disk_error(path), partial.open("wb") as file:
        # Through a file object: given a path, torch.save writes the file's name into the archive.
        torch.save(canonical(contents), file)


@contextmanager
def _told_as_disk_error(path: Path) -> Iterator[None]:
    """Turn what the libraries raise when a write fails, each in its own way, into a DiskError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DiskError(
            f"{path} could not be written: {reason}. The disk is full, or the folder cannot be written to; "
            "an older file of that name is as it was."
        ) from error


def canonical(value: Any, taken: set[int] | None = None) -> Any:
    """Return an equal value whose pickle depends on nothing but its value.

    Pickle writes an object that it has met before as a reference, and a tensor's whole storage. So
    strings are interned, containers rebuilt and views copied; otherwise a resumed run would write
    other bytes than the uninterrupted one. `taken` holds the addresses of the tensors so far.
    """
    taken = set() if taken is None else taken
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, torch.Tensor):
        return _owned(value, taken)
    if isinstance(value, Mapping):
        return {canonical(key, taken): canonical(item, taken) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item, taken) for item in value]
    assert value is None or isinstance(value, (bool, int, float)), f"not a plain value: {type(value)}"
    return value


def _owned(tensor: torch.Tensor, taken: set[int]) -> torch.Tensor:
    """Return the tensor on the CPU, alone in its storage and laid out as a new one would be.

    Being contiguous is not enough: the strides of sides of length 1 may still be anything.
    """
    tensor = tensor.detach().cpu()
    is_own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    is_plain = tensor.stride() == torch.empty(tensor.shape, device="meta").stride() and not tensor.storage_offset()
    if not is_own or not is_plain or tensor.data_ptr() in taken:
        tensor = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    if tensor.numel():
        taken.add(tensor.data_ptr())
    return tensor


def json_metadata(value: Mapping[str, Any]) -> str:
    """Return a mapping as canonical JSON, for safetensors' string metadata."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def total_bytes(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> int:
    """Return the size of the tensors in bytes, once cast."""
    itemsize = dtype.itemsize if dtype is not None else None
    return sum(
        t.numel() * (itemsize if itemsize is not None and t.is_floating_point() else t.element_size())
        for t in tensors.values()
    )
