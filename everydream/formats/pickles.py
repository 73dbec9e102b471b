"""Reads pickled checkpoints without executing what they name.

A pickle is a program: it can call any function it can name. Files by PyTorch itself name only a
handful of tensor builders, which `torch.load(weights_only=True)` allows. Lightning checkpoints name
callbacks and settings classes as well, hostile ones `os.system`. For those, a second reader hands
out the real tensor builders and for every other name an inert stand-in that accepts any call, stores
nothing and does nothing. So the tensors come out and no foreign code runs.
"""

import pickle
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from everydream.errors import FormatError


class _Builder:
    """A tensor builder that a file can call and not change.

    Of a bare function a pickle can set `__defaults__`, `__name__` and the like, for the whole process; with
    `dump_patches` set, torch.load would even write a file under that name (its check of a legacy module's source).
    """

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: object) -> Any:
        return self._build(*args)

    def __setstate__(self, state: object) -> None: ...


class _Dict(dict[Any, Any]):
    """Stands for OrderedDict, whose pickles may also set attributes such as `items`; those are left out."""

    def __setstate__(self, state: object) -> None: ...


class _ParameterDict(_Dict):
    """Stands for torch.nn.ParameterDict, in which the first textual-inversion files keep their tensors."""

    def __setstate__(self, state: object) -> None:
        held = state.get("_parameters") if isinstance(state, dict) else None
        if isinstance(held, dict):
            self.update((key, value) for key, value in dict.items(held) if isinstance(value, torch.Tensor))


# Storages are not in the list: torch.load answers for those names itself, with descriptions of a type.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch.nn.modules.container", "ParameterDict"): _ParameterDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor"): _Builder(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Builder(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Builder(torch._utils._rebuild_parameter),
}


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

    def add(self, value: object) -> None:
        """Accept what a pickled set subclass would collect."""


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

    Raises FormatError when the file cannot be read: cut short, not a checkpoint, or an archive that is a program.
    """
    # Anything can be in a foreign file, so any error can come out of it; none is ours.
    # Through file objects: given a path, torch.load goes by the file's ending.
    with suppress(Exception), path.open("rb") as file:
        return _plain(torch.load(file, map_location="cpu", weights_only=True), {}), []
    # Not plain, or not whole: the restricted reader says which.
    skipped: list[str] = []
    try:
        _refuse_archives(path)
        restricted = _restricted_pickle(skipped)
        with path.open("rb") as file:
            contents = _plain(torch.load(file, map_location="cpu", weights_only=False, pickle_module=restricted), {})
    except FormatError:
        raise
    except Exception as error:
        raise FormatError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {error}. "
            "It may be cut short (compare its size with the download page) or not be a model file at all."
        ) from error
    return contents, sorted(set(skipped))


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """Return the containers as plain dicts and lists: an OrderedDict from a pickle may have any attribute replaced."""
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, dict):
        mapping = done[id(value)] = {}
        for key, item in dict.items(value):
            mapping[key] = _plain(item, done)
        return mapping
    if isinstance(value, list):
        items = done[id(value)] = []
        items.extend(_plain(item, done) for item in value)
        return items
    return value


def _refuse_archives(path: Path) -> None:
    """Raise FormatError for archives that torch.load would hand to other readers, by the means it tells them by."""
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    # torch's own zip reader: with another one, a file could show each of them another list of contents.
    if is_zip and "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise FormatError(
            f"{path} is a TorchScript archive, which is a program and not a set of weights; it was not opened. "
            "Ask for the model as .safetensors."
        )
    with suppress(tarfile.TarError), tarfile.open(path, "r:") as archive:
        if archive.next() is not None:
            raise FormatError(
                f"{path} is a tar archive; as a model that is PyTorch's format of before 2017, and it was not opened. "
                "Ask for the model as .safetensors."
            )
