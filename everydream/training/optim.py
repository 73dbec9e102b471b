"""Optimizers by name, and their state by parameter name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from everydream.methods.method import ParameterGroup
from everydream.training.settings import OptimizerSettings

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerSettings], Optimizer]] = {
    "adamw": lambda groups, s: torch.optim.AdamW(
        groups, betas=(s.betas[0], s.betas[1]), weight_decay=s.weight_decay, eps=s.eps, fused=True
    ),
    "adam": lambda groups, s: torch.optim.Adam(
        groups, betas=(s.betas[0], s.betas[1]), weight_decay=s.weight_decay, eps=s.eps, fused=True
    ),
    "sgd": lambda groups, s: torch.optim.SGD(groups, momentum=s.betas[0], weight_decay=s.weight_decay, fused=True),
    "adafactor": lambda groups, s: torch.optim.Adafactor(groups, weight_decay=s.weight_decay),
}


def make_optimizer(groups: Sequence[ParameterGroup], settings: OptimizerSettings) -> Optimizer:
    """Return the optimizer over the groups, in their order."""
    return OPTIMIZERS[settings.name]([{"params": group.parameters, "lr": group.lr} for group in groups], settings)


def optimizer_state(optimizer: Optimizer, groups: Sequence[ParameterGroup]) -> dict[str, Any]:
    """Return the optimizer's state by parameter name, so that it survives a change of what trains."""
    state = optimizer.state
    return {
        name: dict(state[parameter])
        for group in groups
        for name, parameter in zip(group.names, group.parameters, strict=True)
        if parameter in state
    }


def load_optimizer_state(optimizer: Optimizer, groups: Sequence[ParameterGroup], saved: dict[str, Any]) -> list[str]:
    """Put saved state back; return the names of parameters that have none and start afresh."""
    names = [name for group in groups for name in group.names]
    state = {number: saved[name] for number, name in enumerate(names) if name in saved}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return [name for name in names if name not in saved]
