"""A network with what a method put into it, and the same network without.

Additions follow peft's convention: a module that wraps another keeps it as `base_layer`, and a module that
brings tensors of its own lists their attributes in `adapter_layer_names`. So a checkpoint of the network
holds its own tensors under its own names, whatever trains on top.
"""

from collections.abc import Iterator

import torch
from torch import nn

from everydream.formats.files import StateDict

_WRAPPED = "base_layer"


def own_state(network: nn.Module) -> StateDict:
    """Return the network's state dict without additions, under the names it has without them.

    Not by `state_dict()`, which cuts weights over the processes again that FSDP has put together to be looked at.
    """
    added = _added(network)
    state = {**dict(network.named_parameters()), **_persistent_buffers(network)}
    return {_own_name(key): t.detach() for key, t in state.items() if not _is_under(key, added)}


def _persistent_buffers(network: nn.Module) -> StateDict:
    return {
        f"{prefix}.{name}".lstrip("."): buffer
        for prefix, module in network.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def own_weights(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name without additions, weight) of every linear layer and convolution of the network's own."""
    added = _added(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not _is_under(name, added):
            yield _own_name(name), module.weight


def added_names(network: nn.Module) -> set[str]:
    """Return the names, in the network as it is, of the parameters that are additions."""
    added = _added(network)
    return {name for name, _ in network.named_parameters() if _is_under(name, added)}


def _added(network: nn.Module) -> tuple[str, ...]:
    """Return the names below which everything is an addition."""
    return tuple(
        f"{name}.{attribute}".lstrip(".")
        for name, module in network.named_modules()
        for attribute in getattr(module, "adapter_layer_names", ())
    )


def _is_under(name: str, prefixes: tuple[str, ...]) -> bool:
    return name.startswith(prefixes) and any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _own_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != _WRAPPED)
