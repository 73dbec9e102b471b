"""From gradients to weights: clip, judge, step, average. Nothing of it has to wait for the device.

A step whose loss or gradients are not finite changes nothing. PyTorch's fused Adam and AdamW can be told so on the
device, by the `found_inf` that its loss scaler uses: the host goes on to the next step and reads the numbers later.
For any other optimizer, and on a CPU, which is the host, it reads them first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from everydream.methods.method import ParameterGroup
from everydream.training.ema import Ema
from everydream.training.fused import FusedBackward
from everydream.training.launch import Launch

READ_AT_ONCE = ("cpu",)
"""Devices whose numbers need no waiting for."""
MAX_BAD_STEPS = 3
"""Steps in a row that are not finite, after which the weights stay as they are until the host ends the run."""


@dataclass(frozen=True)
class Stepped:
    """What became of a step; the tensors have no dimensions, and may still be under way on the device."""

    norm: torch.Tensor
    """Of all gradients together, before clipping."""
    skipped: torch.Tensor
    """True where nothing changed, for something was not finite, or no process had an image."""
    by_scaler: bool
    """Whether it was the fp16 loss scaler that skipped."""


@dataclass
class Stepper:
    """Makes the steps of a run out of its gradients."""

    launch: Launch
    groups: Sequence[ParameterGroup]
    optimizer: Any
    clip: Callable[[Sequence[torch.nn.Parameter], float | None], torch.Tensor]
    """Clips all gradients together; returns their norm before."""
    max_norm: float | None
    fused: FusedBackward | None
    """What has stepped in the backward pass already; None: nothing."""
    ema: Ema | None
    _bad_in_a_row: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._bad_in_a_row = torch.zeros((), device=self.launch.device)

    @property
    def skips_on_device(self) -> bool:
        """Whether a step is judged without the host.

        Not for fused SGD, which leaves its momentum uninitialised where its first step is skipped (torch 2.13), nor for
        weights cut over processes, with which a whole `found_inf` does not go.
        """
        if self.launch.device.type in READ_AT_ONCE:
            return False
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        is_adam = isinstance(inner, torch.optim.Adam | torch.optim.AdamW) and bool(inner.defaults["fused"])
        return is_adam and self.fused is None and not self.launch.scales_loss and not self.launch.shards

    def step(self, losses_B: torch.Tensor, epoch: int, number: int) -> Stepped:
        """Make the run's step `number` of the gradients that are there, and of this process's losses, and free them."""
        for group in self.groups:
            if not group.trains_in(epoch):
                # Left out by its gradients and not by freezing it: DDP expects what required them when it was wrapped.
                for parameter in group.parameters:
                    parameter.grad = None
        images = torch.full_like(self._bad_in_a_row, len(losses_B))
        counts = self.launch.total(torch.stack([(~losses_B.isfinite()).sum().to(images), images]))
        is_unsound, is_empty = counts[0] > 0, counts[1] == 0
        if self.fused is not None:
            norm = torch.tensor(self.fused.norm)
            stepped = Stepped(norm, is_empty | ~norm.isfinite(), False)
        else:
            norm = self.clip([p for group in self.groups for p in group.parameters], self.max_norm)
            stepped = self._step(norm, is_unsound, is_empty)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            if self.skips_on_device:
                self.ema.update(number, stepped.skipped)
            elif not bool(stepped.skipped):
                self.ema.update(number)
        return stepped

    def _step(self, norm: torch.Tensor, is_unsound: torch.Tensor, is_empty: torch.Tensor) -> Stepped:
        if self.launch.scales_loss:
            # Under fp16 an overflow of the scaled gradients is ordinary: the scaler skips by itself and adapts.
            by_scaler = not bool(is_empty) and self.launch.step(self.optimizer)
            return Stepped(norm, is_unsound | is_empty | by_scaler, by_scaler)
        is_bad = (is_unsound | ~norm.isfinite()) & ~is_empty
        is_skipped = is_bad | is_empty | (self._bad_in_a_row >= MAX_BAD_STEPS)
        self._bad_in_a_row = torch.where(is_skipped, self._bad_in_a_row + is_bad, 0.0)
        if self.skips_on_device:
            getattr(self.optimizer, "optimizer", self.optimizer).found_inf = is_skipped.float()
            self.launch.step(self.optimizer)
        elif not bool(is_skipped):
            self.launch.step(self.optimizer)
        return Stepped(norm, is_skipped, False)
