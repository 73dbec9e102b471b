"""Weights, gradients and optimizer state cut over the processes: FSDP2, PyTorch's `fully_shard`.

PyTorch's own rather than accelerate's, which shards one model a run; here several networks train. `accelerate launch
--use_fsdp --fsdp_version 2`, or ACCELERATE_USE_FSDP=true with torchrun, asks for it. Sharding puts other parameters in
the place of a network's, so it comes before the optimizer and the average are made.

With FSDP_RESHARD_AFTER_FORWARD=false, accelerate's word for it, weights stay whole from the forward to the end of the
backward pass, and gradients and state are cut: what DeepSpeed calls ZeRO-2.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from everydream.errors import ConfigError
from everydream.methods.method import ParameterGroup
from everydream.models.family import Family

_BLOCKS = ("resnets", "attentions", "transformer_blocks", "single_transformer_blocks", "layers", "block")
"""Lists of modules, by diffusers' and transformers' names, whose members are gathered one at a time."""


_OPTIMIZERS = ("adamw", "adam", "sgd", "lion")
"""Those that compute each number of a weight by itself, so that a part of a weight can be stepped alone."""


def require_shardable(optimizer: str) -> None:
    """Raise ConfigError for an optimizer that would step parts of weights otherwise than whole ones."""
    if optimizer not in _OPTIMIZERS:
        raise ConfigError(
            f"optimizer.name: {optimizer} does not go with FSDP, which gives each process a part of every weight; "
            f"it needs whole ones. Use {', '.join(_OPTIMIZERS)}, or plain data parallelism."
        )


def shard(
    family: Family, groups: Sequence[ParameterGroup], device: torch.device, reshard: bool
) -> list[ParameterGroup]:
    """Cut every network that trains over all processes; return the groups with the parameters as they are now.

    `reshard`: whether a block's weights are given up between forward and backward pass.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for network in _trained(family):
        for block in _blocks(network):
            fully_shard(block, mesh=mesh, reshard_after_forward=reshard)
        fully_shard(network, mesh=mesh)
    now = {f"{part}.{name}": p for part, network in family.modules().items() for name, p in network.named_parameters()}
    return [replace(group, parameters=[now[name] for name in group.names]) for group in groups]


def _trained(family: Family) -> list[nn.Module]:
    return [network for network in family.modules().values() if any(p.requires_grad for p in network.parameters())]


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost members of the lists in `_BLOCKS`."""
    chosen: list[str] = []
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if not inside and len(parts := name.split(".")) > 1 and parts[-2] in _BLOCKS and parts[-1].isdigit():
            chosen.append(name)
            yield module


@contextmanager
def whole(family: Family, reshard: bool) -> Iterator[None]:
    """Hold every network whole on every process inside the block, so that one of them can use it alone."""
    sharded = [module for network in family.modules().values() for module in network.modules()]
    sharded = [module for module in sharded if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()  # type: ignore[operator]
        module.set_reshard_after_forward(False, recurse=False)  # type: ignore[operator]
    try:
        yield
    finally:
        for module in sharded:
            is_root = module in family.modules().values()
            module.set_reshard_after_forward(reshard and not is_root, recurse=False)  # type: ignore[operator]
            module.reshard()  # type: ignore[operator]


def clip(parameters: Sequence[nn.Parameter], max_norm: float) -> torch.Tensor:
    """Clip the gradients of sharded parameters together and return their norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def like(parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """Return a whole saved tensor cut and laid out as `parameter` is; as it is where it is a number.

    Fused optimizers walk through weight, gradient and moments side by side in memory, whatever their strides.
    """
    if isinstance(parameter, DTensor) and saved.shape == parameter.shape:
        return distribute_tensor(saved.to(parameter.device), parameter.device_mesh, parameter.placements)
    if saved.shape == parameter.shape and saved.stride() != parameter.stride():
        return torch.empty_like(parameter, dtype=saved.dtype, device=saved.device).copy_(saved)
    return saved
