"""Writing beside the training: a copy of what is to be written stays in memory, and a thread writes it to disk."""

import mmap
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import torch

from everydream.errors import DiskError


class Background:
    """Does one job at a time beside the training."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; the one before has to be taken in by `ended` first."""
        assert self._thread is None, "one job at a time"
        self._error = None
        self._thread = threading.Thread(target=self._do, args=(job,), name="everydream-writer")
        self._thread.start()

    def ended(self, wait: bool) -> bool:
        """Tell, once, that the job under way is done, waiting for it if asked to; raises what went wrong in it."""
        if self._thread is None or (not wait and self._thread.is_alive()):
            return False
        self._thread.join()
        self._thread = None
        if isinstance(self._error, Exception) and not isinstance(self._error, DiskError | OSError):
            raise DiskError(f"{type(self._error).__name__}: {self._error}") from self._error
        if self._error is not None:
            raise self._error
        return True

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error


class Snapshot:
    """A copy on the CPU that training cannot change, into the same memory each time: fresh memory is slow to fill."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def has_room(self, num_bytes: int) -> bool:
        """Tell whether a copy of so many bytes fits into memory, with a quarter left over; once made it stays."""
        return bool(self._kept) or psutil.virtual_memory().available > 1.25 * num_bytes

    def of(self, value: Any, place: str = "") -> Any:
        """Return a copy of nested mappings, sequences and tensors; it is good until the next one is taken."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), place)
        if isinstance(value, Mapping):
            return {key: self.of(item, f"{place}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.of(item, f"{place}/{number}") for number, item in enumerate(value)]
        return value

    def _tensor(self, tensor: torch.Tensor, place: str) -> torch.Tensor:
        kept = self._kept.get(place)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = self._kept[place] = _new(tensor)
        return kept.copy_(tensor)

    def drop(self) -> None:
        """Give the memory back."""
        self._kept.clear()


def _new(tensor: torch.Tensor) -> torch.Tensor:
    """Return memory for a copy, shared with processes that are forked: they would keep what is written over later."""
    if not tensor.numel():
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size())
    return torch.frombuffer(memory, dtype=tensor.dtype).reshape(tensor.shape)
