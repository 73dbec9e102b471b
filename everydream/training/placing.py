"""Networks to where and how they live while training: precision, device, recomputation, attention."""

from collections.abc import Sequence

import torch
from torch import nn

from everydream.errors import ConfigError
from everydream.formats.files import DTYPES
from everydream.methods.method import ParameterGroup
from everydream.models.common import memory as networks_memory
from everydream.models.family import Family
from everydream.training.memory import Memory
from everydream.training.settings import TrainSettings

ENCODERS_OF_PIXELS = ("vae",)
_CONVOLUTIONAL = 0.1
"""Part of its weights in convolutions from which on a network counts as one of them; a transformer has a hundredth."""


def place(
    family: Family, groups: Sequence[ParameterGroup], use: Memory, train: TrainSettings, device: torch.device
) -> None:
    """Put the networks in place once it is known what trains. Raises ConfigError for what this device cannot do.

    Precision before device, so that the device never holds more than it will.
    """
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    networks = family.modules()
    away = parts_away(family, use)
    for name, network in networks.items():
        for parameter in network.parameters():
            kept = use.weights if id(parameter) in trained else use.frozen if name not in away else "fp32"
            if parameter.is_floating_point() and parameter.dtype != DTYPES[kept]:
                parameter.data = parameter.data.to(DTYPES[kept])
        if name in away:
            networks_memory.keep_off_device(network, device, DTYPES[use.frozen])
        elif any(tensor.device.type != device.type for tensor in (*network.parameters(), *network.buffers())):
            network.to(device)
    if use.gradient_checkpointing:
        family.enable_gradient_checkpointing()
    if use.gradient_checkpointing == "selective":
        networks_memory.checkpoint_top_blocks(networks.values())
    for name in ENCODERS_OF_PIXELS:
        if use.sliced_vae:
            networks_memory.slice_vae(networks[name])
        if train.precision == "fp16":
            networks_memory.keep_whole(networks[name], device)
    if train.channels_last:
        _lay_channels_last(networks[family.denoiser])
    denoisers = [net for name, net in networks.items() if name not in ENCODERS_OF_PIXELS]
    networks_memory.set_attention(denoisers, use.attention, device)


def _lay_channels_last(network: nn.Module) -> None:
    """Lay out kernels, and with them activations, gradients, moments and averages, with the channels last.

    Files are not touched by it: they are written with every tensor in its plain layout (`formats.files`).
    """
    kernels = [parameter for parameter in network.parameters() if parameter.dim() == 4]
    share = sum(p.numel() for p in kernels) / max(sum(p.numel() for p in network.parameters()), 1)
    if share < _CONVOLUTIONAL:
        raise ConfigError(
            f"train.channels_last: this denoiser has {share:.0%} of its weights in convolutions, so it would have no "
            "effect. Take it out."
        )
    for parameter in kernels:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def leave_device(family: Family, parts: Sequence[str], use: Memory, device: torch.device) -> None:
    """Keep frozen networks off the device from now on, but for their calls: caches have what they were needed for."""
    already = parts_away(family, use)
    for name in parts:
        if name not in already:
            networks_memory.keep_off_device(family.modules()[name], device, DTYPES[use.frozen])


def parts_away(family: Family, use: Memory) -> list[str]:
    """Return the networks that come to the device for their calls only, once it is known what trains.

    A denoiser that is frozen has gradients pass through it, so it cannot be away between forward and backward.
    """
    networks = family.modules()
    able = [name for name in networks if name != family.denoiser]
    return [name for name in able if use.offload_frozen and _is_frozen(networks[name])]


def _is_frozen(network: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in network.parameters())


def require_one_process(use: Memory, world: int, shards: bool) -> None:
    """Raise ConfigError for what cannot be done by several processes, or with weights that are cut over them."""
    if shards and use.is_lean:
        raise ConfigError(
            "memory: bf16 weights or state, offload_optimizer and fused_backward step whole weights one by one, and "
            "with FSDP each process has a part of every weight. FSDP cuts weights, gradients and state by itself: use "
            "memory.level: balanced."
        )
    if use.fused_backward and world > 1:
        raise ConfigError(
            f"memory.fused_backward steps before the gradients of the {world} processes are added up. Set it to false, "
            "or train in one process."
        )


def require_unsharded(train: TrainSettings, shards: bool) -> None:
    """Raise ConfigError for settings of the step that cannot be had with weights that are cut over the processes."""
    if shards and train.channels_last:
        raise ConfigError("train.channels_last: FSDP cuts weights in their plain layout only. Take it out.")
    if shards and train.compile != "none":
        raise ConfigError(
            f"train.compile: {train.compile} does not go with FSDP here, which gathers and frees weights inside the "
            "networks. Set train.compile: none, or use plain data parallelism."
        )
