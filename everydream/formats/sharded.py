"""Checkpoints that several processes write together: a folder.

    shard-*.safetensors    the tensors, each process its part (torch.distributed.checkpoint, its safetensors layout)
    run.ckpt               all else, with the names of tensors in their places

The layout of DCP that pickles its table of contents is not used: a checkpoint of somebody else's is never unpickled.
Any number of processes can read what any other number has written.
"""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from everydream.errors import DiskError, FormatError
from everydream.formats.atomic import PARTIAL, put_in_place
from everydream.formats.pickles import load_pickle

RUN_FILE = "run.ckpt"
_TENSOR = "tensor:"


def is_sharded(path: Path) -> bool:
    """Tell whether a path is such a folder."""
    return (path / RUN_FILE).is_file()


def write_sharded(
    path: Path,
    contents: Mapping[str, Any],
    write_rest: Callable[[Path, Mapping[str, Any]], None],
    is_main: bool,
    from_main: Callable[[str], str],
) -> None:
    """Write `contents`, nested mappings and lists of plain values and tensors; every process calls this together.

    `write_rest` writes what is no tensor, `from_main` gives everybody what the main process has. The older checkpoint
    stays until the new one is whole. Raises DiskError, on all processes alike.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter  # noqa: PLC0415 - slow, and for few
    from torch.distributed.checkpoint.state_dict_saver import save  # noqa: PLC0415

    partial = path.with_name(path.name + PARTIAL)
    tensors: dict[str, torch.Tensor] = {}
    plain = _take_out(contents, "", tensors)

    def on_main(action: Callable[[], object]) -> None:
        """Let the main process act; where it fails, all do, or the others would wait for it for ever."""
        problem = ""
        if is_main:
            try:
                action()
            except (OSError, DiskError) as error:
                problem = str(error) or type(error).__name__
        if problem := from_main(problem):
            raise DiskError(f"{path} could not be written: {problem}. An older checkpoint of that name is as it was.")

    def begin() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    def finish() -> None:
        write_rest(partial / RUN_FILE, plain)
        put_in_place(partial, path)

    on_main(begin)
    try:
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True))
    except Exception as error:  # DCP wraps whatever went wrong on any process, and raises on all
        raise DiskError(
            f"{path} could not be written: {error}. An older checkpoint of that name is as it was."
        ) from error
    on_main(finish)


def read_sharded(folder: Path) -> dict[str, Any]:
    """Return the contents, every tensor whole and on the CPU. Raises FormatError."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # noqa: PLC0415 - slow, and for few
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # noqa: PLC0415
    from torch.distributed.checkpoint.state_dict_loader import load  # noqa: PLC0415

    plain, _ = load_pickle(folder / RUN_FILE)
    try:
        held = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(meta.size, dtype=meta.properties.dtype)
            for name, meta in held.items()
            if isinstance(meta, TensorStorageMetadata)
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        return dict(_put_back(plain, tensors))
    except Exception as error:  # the files may hold anything
        raise FormatError(f"{folder} cannot be read as a checkpoint: {type(error).__name__}: {error}") from error


def _take_out(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Return the value with a name in the place of each tensor; the tensors go to `tensors`."""
    if isinstance(value, torch.Tensor):
        assert name not in tensors, f"two tensors are called {name}"
        tensors[name] = value.detach()
        return _TENSOR + name
    if isinstance(value, Mapping):
        return {key: _take_out(item, f"{name}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_out(item, f"{name}/{number}", tensors) for number, item in enumerate(value)]
    return value


def _put_back(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, dict):
        return {key: _put_back(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_put_back(item, tensors) for item in value]
    return value
