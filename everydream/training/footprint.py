"""What a step holds in memory: counted from shapes, without computing anything, or read off a GPU.

Counting runs the real step on fake tensors (PyTorch's FakeTensorMode: shapes and types, no data) and follows every
storage from its birth to its end, as an allocator would see them; what an allocator loses between them is not counted.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from everydream.models.family import Family
from everydream.training.ema import Ema
from everydream.training.lean import Lean


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device at the worst moment of a step, and what they are for."""

    peak: int
    held: Mapping[str, int]
    """What is there between steps, by what it is for."""

    @property
    def working(self) -> int:
        """Activations, and what else lives only within a step."""
        return self.peak - sum(self.held.values())


# The library knows the kernels of GPUs.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, **named: sdpa_flop_count(
        q, k, v
    ),  # type: ignore[no-untyped-call]
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *rest, **named: (
        sdpa_backward_flop_count(grad, q, k, v)  # type: ignore[no-untyped-call]
    ),
}


class Trained(Protocol):
    """A model with everything that moves it, see `outputs.Trainee`."""

    @property
    def family(self) -> Family: ...  # noqa: D102
    @property
    def optimizer(self) -> Any: ...  # noqa: D102
    @property
    def ema(self) -> Ema | None: ...  # noqa: D102


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, counts the bytes of all storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, for as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in tree_iter(out):
            if isinstance(item, torch.Tensor):
                self.add(item)
        return out


@contextmanager
def without_data(family: Family) -> Iterator[None]:
    """Put tensors of the same shapes and types without data in the place of all weights; for good.

    Inside the block every new tensor is without data too.
    """
    # All is on one device here, and tensors without data cannot be moved inside a module.
    stay = mock.patch.object(nn.Module, "to", lambda module, *where, **how: module)
    with FakeTensorMode(allow_non_fake_inputs=True), stay:
        for network in family.modules().values():
            for module in network.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None:
                        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                        module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)
                for name, buffer in module._buffers.items():
                    module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)
        yield


def count_step(trainee: Trained, away: Sequence[str], step: Callable[[], None]) -> tuple[Footprint, int]:
    """Return what the second of two steps holds, and the floating-point operations of the first.

    Inside `without_data` nothing is computed; with real tensors everything is. `away` are the networks whose weights
    visit the device for their calls only.
    """
    live, flops = LiveStorages(), FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    for tensor in [*_weights(trainee.family), *_average(trainee)]:
        live.add(tensor)
    with live:
        with flops:
            step()
        # The first step made the optimizer's state; what counts is a step that finds it there.
        live.peak = live.now
        step()
    elsewhere = _bytes(p for part in away for p in trainee.family.modules()[part].parameters())
    state = _bytes(_state(trainee.optimizer))
    offloaded = state if isinstance(trainee.optimizer, Lean) and trainee.optimizer.offloads else 0
    held = _held(trainee, elsewhere, state - offloaded)
    return Footprint(live.peak - elsewhere - offloaded, held), int(flops.get_total_flops())


def measure_step(trainee: Trained, away: Sequence[str], step: Callable[[], None]) -> Footprint:
    """Return what a step holds on a GPU, by its allocator; the optimizer's state must be there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    elsewhere = _bytes(p for part in away for p in trainee.family.modules()[part].parameters())
    state = _bytes(value for value in _state(trainee.optimizer) if value.device.type == "cuda")
    return Footprint(torch.cuda.max_memory_allocated(), _held(trainee, elsewhere, state))


def _held(trainee: Trained, elsewhere: int, state: int) -> dict[str, int]:
    weights = _weights(trainee.family)
    return {
        "weights that train": _bytes(p for p in weights if p.requires_grad),
        "frozen weights": _bytes(p for p in weights if not p.requires_grad) - elsewhere,
        "optimizer state": state,
        "average": _bytes(_average(trainee)),
    }


def _weights(family: Family) -> list[nn.Parameter]:
    return [parameter for network in family.modules().values() for parameter in network.parameters()]


def _average(trainee: Trained) -> list[torch.Tensor]:
    return list(trainee.ema.state_dict().values()) if trainee.ema is not None else []


def _state(optimizer: Any) -> Iterator[torch.Tensor]:
    for values in optimizer.state.values():
        yield from (value for value in values.values() if isinstance(value, torch.Tensor))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
