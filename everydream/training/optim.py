"""The optimizer over what trains, and its state by parameter name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from everydream.methods.method import ParameterGroup
from everydream.methods.settings import PartOptimizerSettings
from everydream.training.optimizers import SETTINGS, construct, options
from everydream.training.settings import OptimizerSettings
from everydream.training.sharding import like

GROUP_STATE = (
    "k", "weight_sum", "lr_max", "scheduled_lr", "train_mode",  # schedulefree
    "k", "d", "d_max", "d_hat", "d_numerator", "d_denom",  # prodigyopt
    "updates",  # ours, see `lean`
)  # fmt: skip
"""What optimizers keep by group and not by parameter. By name: the rest of a group is settings, which may change."""


def make_optimizer(
    groups: Sequence[ParameterGroup],
    settings: OptimizerSettings,
    parts: Mapping[str, PartOptimizerSettings] | None = None,
) -> Optimizer:
    """Return the optimizer over the groups, in their order; `parts` holds what differs in a part."""
    optimizer: Optimizer = construct(live_groups(groups, settings, parts or {}), settings)
    return optimizer


def live_groups(
    groups: Sequence[ParameterGroup], settings: OptimizerSettings, parts: Mapping[str, PartOptimizerSettings]
) -> list[dict[str, Any]]:
    """Return the groups as PyTorch's optimizers want them."""
    return [
        {"params": group.parameters, "lr": group.lr, **_own(settings, parts.get(network_of(group)))} for group in groups
    ]


def network_of(group: ParameterGroup) -> str:
    """Return the network that a group is of: of `unet/mid_block` it is unet."""
    return group.part.partition("/")[0]


def _own(settings: OptimizerSettings, part: PartOptimizerSettings | None) -> dict[str, Any]:
    """Return what a part's settings put in the place of everyone's."""
    given = {key: getattr(part, key) for key in SETTINGS if getattr(part, key, None) is not None}
    return options(OptimizerSettings(name=settings.name, **given)) if given else {}


def optimizer_state(optimizer: Any, groups: Sequence[ParameterGroup]) -> dict[str, Any]:
    """Return the optimizer's state by parameter name, so that it survives a change of what trains."""
    state = optimizer.state
    return {
        name: dict(state[parameter])
        for group in groups
        for name, parameter in zip(group.names, group.parameters, strict=True)
        if parameter in state
    }


def group_state(optimizer: Any, groups: Sequence[ParameterGroup]) -> dict[str, Any]:
    """Return what the optimizer keeps by group, by the groups' parts; nothing for most optimizers."""
    found = {
        group.part: {key: live[key] for key in GROUP_STATE if key in live}
        for group, live in zip(groups, optimizer.param_groups, strict=True)
    }
    return {part: values for part, values in found.items() if values}


def load_optimizer_state(
    optimizer: Any,
    groups: Sequence[ParameterGroup],
    saved: dict[str, Any],
    saved_groups: Mapping[str, Any] | None = None,
) -> list[str]:
    """Put saved state back; return the names of parameters that have none and start afresh."""
    names = [name for group in groups for name in group.names]
    live = [parameter for group in groups for parameter in group.parameters]
    state = {
        number: {
            key: like(live[number], value) if isinstance(value, Tensor) else value for key, value in saved[name].items()
        }
        for number, name in enumerate(names)
        if name in saved
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group, held in zip(groups, optimizer.param_groups, strict=True):
        held.update((saved_groups or {}).get(group.part, {}))
    return [name for name in names if name not in saved]


@contextmanager
def evaluated(optimizer: Any) -> Iterator[None]:
    """Hold the weights that the optimizer wants shown inside the block, and afterwards the ones it trains, to the bit.

    Schedule-free optimizers (Defazio et al. 2024, arXiv 2405.15682) train y and show x. Their own way back from x to y
    rounds, so that looking would change the training; the weights are kept aside instead.
    """
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(parameters, trained, strict=True):
                parameter.copy_(values)
        for group in optimizer.param_groups:
            group["train_mode"] = True
