"""An exponential moving average of what trains.

Our own thirty lines rather than a library's: it spans several networks, is addressed by parameter
name in the checkpoint, and its state is tensors alone (the decay follows from the step).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor

from everydream.methods.method import ParameterGroup
from everydream.training.settings import EmaSettings
from everydream.training.sharding import like


def ema_decay(step: int, settings: EmaSettings) -> float:
    """Return the decay after `step` optimizer steps: (1 + s) / (10 + s), s = step - update_after - 1, at most `decay`.

    The warm-up of diffusers' EMAModel (there without inverse gamma and power); 0 until it starts.
    """
    since = max(0, step - settings.update_after - 1)
    return 0.0 if since <= 0 else min((1 + since) / (10 + since), settings.decay or 0.0)


class Ema:
    """The averaged weights, float32, on the device of the weights."""

    def __init__(self, groups: Sequence[ParameterGroup], settings: EmaSettings) -> None:
        self._settings = settings
        self._names = [name for group in groups for name in group.names]
        self._live = [parameter for group in groups for parameter in group.parameters]
        self._average = [parameter.detach().to(torch.float32, copy=True) for parameter in self._live]

    @torch.no_grad()
    def update(self, step: int, skipped: torch.Tensor | None = None) -> None:
        """Move the average towards the weights as they are after `step` steps.

        `skipped`: where it is true, on the device of the weights, nothing moves.
        """
        weight: float | torch.Tensor = 1.0 - ema_decay(step, self._settings)
        if skipped is not None:
            weight = torch.where(skipped, 0.0, weight)
        elif all(parameter.dtype == torch.float32 for parameter in self._live):
            torch._foreach_lerp_(self._average, [parameter.detach() for parameter in self._live], float(weight))
            return
        # One by one, or the copies in fp32 would take as much room as the whole average.
        for average, parameter in zip(self._average, self._live, strict=True):
            average.lerp_(parameter.detach().float(), weight)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the average by parameter name."""
        return dict(zip(self._names, self._average, strict=True))

    def load_state_dict(self, saved: dict[str, torch.Tensor]) -> None:
        """Take a saved average; a parameter that has none keeps its present weight."""
        for name, average in zip(self._names, self._average, strict=True):
            if name in saved:
                average.copy_(like(average, saved[name]))

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Put the average in the place of the weights for the length of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, average in zip(self._live, self._average, strict=True):
            if isinstance(parameter, DTensor):
                # FSDP knows its part of a weight by its place in memory: what is there changes, not what is looked at.
                live, kept = parameter.to_local(), average.to_local()  # type: ignore[attr-defined]
                held = live.detach().clone()
                live.detach().copy_(kept)
                kept.copy_(held)
            else:
                parameter.data, average.data = average.data, parameter.data
