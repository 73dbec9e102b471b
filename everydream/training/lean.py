"""An optimizer for weights and state that are kept small: bf16 by stochastic rounding, state in CPU memory.

For each parameter in turn: its weight and state in fp32, one update by the optimizer that was chosen, both written
back. So only one parameter at a time takes fp32's room. bf16 has 8 bits of precision, and an update of less than 1/512
of a weight would always be rounded away; rounding up or down by chance, in proportion, is right on average (Gupta et
al. 2015, arXiv 1502.02551). The chances are drawn from derived seeds, so a resumed run rounds as the uninterrupted one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from everydream.methods.method import ParameterGroup
from everydream.methods.settings import PartOptimizerSettings
from everydream.seeding import derive
from everydream.training.memory import Memory
from everydream.training.optim import live_groups
from everydream.training.optimizers import construct
from everydream.training.settings import OptimizerSettings


def round_by_chance(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return float32 values in bf16, each rounded to one of its neighbours with the odds that keep the mean.

    The 16 bits that bf16 lacks are a number in [0, 2^16); 16 random bits added to them carry just that often.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    return ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).bfloat16()


def norm_of(norms: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all gradients together from the norms of each, as torch's clip_grad_norm_ does."""
    return torch.linalg.vector_norm(torch.stack(list(norms))) if norms else torch.zeros(())


def clip_factor(norm: torch.Tensor, max_norm: float | None) -> torch.Tensor:
    """Return what torch's clip_grad_norm_ multiplies the gradients by."""
    return torch.ones_like(norm) if max_norm is None else torch.clamp(max_norm / (norm + 1e-6), max=1.0)


class Lean:
    """Steps each parameter by itself, over a temporary fp32 copy; what the loop asks of an optimizer, no more."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        settings: OptimizerSettings,
        parts: Mapping[str, PartOptimizerSettings],
        memory: Memory,
        seed: int,
    ) -> None:
        self._inner = [construct([live], settings) for live in live_groups(groups, settings, parts)]
        self.param_groups: list[dict[str, Any]] = [{**inner.param_groups[0], "updates": 0} for inner in self._inner]
        self.state: dict[nn.Parameter, dict[str, Any]] = {}
        self._place = {
            parameter: (number, name)
            for number, group in enumerate(groups)
            for name, parameter in zip(group.names, group.parameters, strict=True)
        }
        self._memory, self._seed = memory, seed
        self._factor: torch.Tensor | None = None

    @property
    def offloads(self) -> bool:
        """Whether state is in CPU memory between steps."""
        return self._memory.offload_optimizer

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> torch.Tensor:
        """Return the norm of all gradients together; the next step scales them, in fp32."""
        norm = norm_of([torch.linalg.vector_norm(p.grad.float()) for p in parameters if p.grad is not None])
        self._factor = clip_factor(norm, max_norm)
        return norm

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for parameter in self._place:
            if parameter.grad is not None:
                self.update(parameter, self._factor)
        self._factor = None
        self.finish()

    def finish(self) -> None:
        """End the step: the next one rounds by other chances."""
        for live in self.param_groups:
            live["updates"] += 1

    @torch.no_grad()
    def update(self, parameter: nn.Parameter, factor: torch.Tensor | None = None) -> None:
        """Update one parameter and free its gradient, which is scaled by `factor` first."""
        number, name = self._place[parameter]
        live, inner = self.param_groups[number], self._inner[number]
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        parameter.grad = None
        whole = parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
        whole.grad = gradient if factor is None else gradient.mul_(factor.to(gradient.device))
        inner.param_groups[0].update({**live, "params": [whole]})
        if parameter in self.state:
            inner.state[whole] = self._fetched(parameter)
        inner.step()
        inner.param_groups[0]["params"] = []  # or the copy would stay until this group's next update
        whole.grad = None
        generator = torch.Generator(parameter.device)
        generator.manual_seed(derive(self._seed, "rounding", live["updates"], name))
        if whole is not parameter:
            parameter.copy_(self._rounded(whole.detach(), generator))
        self.state[parameter] = self._kept(inner.state.pop(whole, {}), parameter, generator)

    def _rounded(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return round_by_chance(values, generator) if self._memory.rounding == "stochastic" else values.bfloat16()

    def _fetched(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Return a parameter's state as the optimizer wants it: on its device, moments in fp32."""
        return {
            key: value.to(parameter.device, torch.float32 if _is_moment(value, parameter) else value.dtype)
            if isinstance(value, torch.Tensor)
            else value
            for key, value in self.state[parameter].items()
        }

    def _kept(
        self, state: Mapping[str, Any], parameter: nn.Parameter, generator: torch.Generator | None
    ) -> dict[str, Any]:
        """Return a state as it is kept between steps; without a generator what has to be rounded is to the nearest."""
        kept = dict(state)
        for key, value in sorted(state.items()):
            if not isinstance(value, torch.Tensor):
                continue
            if _is_moment(value, parameter) and self._memory.optimizer_state == "bf16" and value.dtype == torch.float32:
                kept[key] = self._rounded(value, generator) if generator is not None else value.bfloat16()
            offload = self._memory.offload_optimizer and value.dim() > 0
            kept[key] = kept[key].to("cpu" if offload else parameter.device)
        return kept

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free all gradients."""
        assert set_to_none
        for parameter in self._place:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state by number, in PyTorch's form."""
        numbers = {parameter: number for number, parameter in enumerate(self._place)}
        state = {numbers[parameter]: values for parameter, values in self.state.items()}
        return {"state": state, "param_groups": [{**live, "params": []} for live in self.param_groups]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take saved state, kept in this run's precision and place; what is kept by group is not its business."""
        parameters = list(self._place)
        self.state = {
            parameters[number]: self._kept(values, parameters[number], None)
            for number, values in saved["state"].items()
        }


def _is_moment(value: torch.Tensor, parameter: nn.Parameter) -> bool:
    """Tell what is as large as its parameter from counts, factors and scales, which stay as they are."""
    return value.is_floating_point() and value.shape == parameter.shape and value.dim() > 0
