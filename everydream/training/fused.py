"""The optimizer's step inside the backward pass: each gradient is used and freed as soon as it is there.

Clipping needs the norm of all gradients before the first is used. So with `train.max_grad_norm` the micro-batch is
computed twice: the first time each gradient leaves its norm, the second time, from the same seeds and so with the same
numbers, it steps. That costs a second pass and is exact. Without clipping one pass does.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from everydream.methods.method import ParameterGroup
from everydream.training.lean import Lean, clip_factor, norm_of

Backward = Callable[[torch.Tensor], None]


class FusedBackward:
    """Takes the place of backward pass, clipping and step."""

    def __init__(self, optimizer: Lean, groups: Sequence[ParameterGroup], max_norm: float | None) -> None:
        self._optimizer, self._max_norm = optimizer, max_norm
        self._group = {parameter: group for group in groups for parameter in group.parameters}
        self._norms: dict[nn.Parameter, torch.Tensor] = {}
        self._epoch, self._steps, self._factor = 0, False, torch.ones(())
        self.norm = math.nan
        """Of the latest gradients, all together; not finite if they, or the loss, were not."""
        for parameter in self._group:
            parameter.register_post_accumulate_grad_hook(self._take)  # type: ignore[no-untyped-call]

    def run(self, loss: torch.Tensor, again: Callable[[], torch.Tensor], epoch: int, backward: Backward) -> None:
        """Go back from a loss and step; `again` computes the same loss anew.

        Nothing steps for a loss that is not finite. Of gradients that are not, nothing steps either with clipping;
        without it the other parameters have stepped by then, and `norm` tells.
        """
        self._norms, self._epoch, self.norm = {}, epoch, math.nan
        if not bool(torch.isfinite(loss)):
            return
        if self._max_norm is not None:
            self._pass(loss, backward, steps=False)
            norm = norm_of(self._in_order())
            self.norm, self._factor = float(norm), clip_factor(norm, self._max_norm)
            if not math.isfinite(self.norm):
                return
            loss = again()
        self._pass(loss, backward, steps=True)
        self.norm = float(norm_of(self._in_order())) if self._max_norm is None else self.norm
        self._optimizer.finish()

    def step_through(self, loss: torch.Tensor, backward: Backward) -> None:
        """Go back from a loss and step, without a look at any number: for a count of what that takes."""
        self._max_norm = self._max_norm or math.inf
        self._pass(loss, backward, steps=True)

    def _pass(self, loss: torch.Tensor, backward: Backward, steps: bool) -> None:
        self._steps = steps
        backward(loss)

    def _in_order(self) -> list[torch.Tensor]:
        # The order of the parameters, not the one in which the backward pass met them: sums round by their order.
        return [self._norms[parameter] for parameter in self._group if parameter in self._norms]

    def _take(self, parameter: torch.Tensor) -> None:
        """Use and free a gradient that has just become whole."""
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        if self._group[parameter].trains_in(self._epoch):
            if self._max_norm is None or not self._steps:
                self._norms[parameter] = torch.linalg.vector_norm(parameter.grad.float())
            if self._steps and (self._max_norm is not None or bool(torch.isfinite(self._norms[parameter]))):
                self._optimizer.update(parameter, self._factor)
        parameter.grad = None
