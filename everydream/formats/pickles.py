"""Reads pickled checkpoints without executing what they name.

A pickle is a program: it can call any function it can name. Files by PyTorch itself name only a
handful of tensor builders, which `torch.load(weights_only=True)` allows. Lightning checkpoints name
callbacks and settings classes as well, hostile ones `os.system`. For those, a second reader hands
out the real tensor builders and for every other name an inert stand-in that accepts any call, stores
nothing and does nothing. So the tensors come out and no foreign code runs.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from everydream.errors import FormatError

_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
_STORAGES = [
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "DoubleStorage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "CharStorage",
    "ByteStorage",
    "BoolStorage",
]
_ALLOWED |= {("torch", name): getattr(torch, name) for name in _STORAGES}


class Inert:
    """Stands for an object of a class that was not loaded: callable, mutable, without effect."""

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        """Take any arguments."""
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __call__(self, *args: object, **kwargs: object) -> "Inert":
        """Take any arguments and do nothing."""
        return Inert()

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, value: object) -> None:
        """Accept what a pickled list subclass would collect."""

    def extend(self, values: object) -> None:
        """Accept what a pickled list subclass would collect."""


def _restricted_pickle(skipped: list[str]) -> ModuleType:
    """Return something with pickle's interface for torch.load; names not taken up are added to `skipped`."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found = _ALLOWED.get((module, name))
            if found is None:
                skipped.append(f"{module}.{name}")
                # A class of its own: pickle may call it, or create it through copyreg-style protocols.
                return type("Inert", (Inert,), {})
            return found

    restricted = ModuleType("restricted_pickle")
    restricted.Unpickler = Unpickler  # type: ignore[attr-defined]
    restricted.load = lambda file, **kwargs: Unpickler(file, **kwargs).load()  # type: ignore[attr-defined]
    return restricted


def load_pickle(path: Path) -> tuple[Any, list[str]]:
    """Return (contents, names that were not taken up) of a file written by torch.save, on the CPU.

    Raises FormatError when the file cannot be read: cut short, not a checkpoint, or a TorchScript archive.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True), []
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, OSError):
        pass  # not plain, or not whole: the restricted reader says which
    _refuse_torchscript(path)
    skipped: list[str] = []
    try:
        contents = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_restricted_pickle(skipped))
    except Exception as error:
        # Anything can be in a foreign file, so any error can come out of it; none is ours.
        raise FormatError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}. "
            "It may be cut short (compare its size with the download page) or not be a model file at all."
        ) from error
    return contents, sorted(set(skipped))


def _refuse_torchscript(path: Path) -> None:
    """Raise FormatError for a TorchScript archive, which torch.load would run."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") for name in archive.namelist()):
                raise FormatError(
                    f"{path} is a TorchScript archive, which is a program and not a set of weights; it was not opened. "
                    "Ask for the model as .safetensors."
                )
