"""Room on the device: which blocks recompute, who visits only for its call, how attention is computed.

Works on any network of the reference libraries by what it has (blocks, processors), whatever its family.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from everydream.errors import ConfigError


def checkpoint_top_blocks(networks: Iterable[nn.Module]) -> None:
    """Recompute only where activations are largest, once gradient checkpointing is on everywhere.

    Of a UNet these are the first block down and the last one up, which see the full resolution and hold most bytes.
    Of a stack of equal blocks every second recomputes; of what has neither, none.
    """
    for network in networks:
        top = {id(module) for block in _top_blocks(network) for module in block.modules()}
        for module in network.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.gradient_checkpointing = id(module) in top  # type: ignore[assignment]


def _top_blocks(network: nn.Module) -> list[nn.Module]:
    down, up = getattr(network, "down_blocks", None), getattr(network, "up_blocks", None)
    if isinstance(down, nn.ModuleList) and isinstance(up, nn.ModuleList):
        return [down[0], up[-1]]
    stack = getattr(network, "transformer_blocks", None)
    return list(stack)[::2] if isinstance(stack, nn.ModuleList) else []


def keep_off_device(network: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Keep a frozen network's weights in CPU memory; each module's come to the device for its call, in `dtype`.

    The ones in CPU memory stay as they were, so files that are written from them lose nothing.
    """
    for parameter in network.parameters():
        assert not parameter.requires_grad, "only what is frozen may be away when gradients are computed"
        parameter.data = parameter.data.cpu()
    for buffer in network.buffers():
        buffer.data = buffer.data.to(device)
    network.register_forward_pre_hook(partial(_enter, device), with_kwargs=True)
    for module in network.modules():
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if own:
            home: list[torch.Tensor] = []
            module.register_forward_pre_hook(partial(_arrive, own, home, device, dtype), with_kwargs=True)
            module.register_forward_hook(partial(_leave, own, home), always_call=True)


def _enter(device: torch.device, module: nn.Module, arguments: Any, keywords: Any) -> Any:
    return _moved(arguments, device), _moved(keywords, device)


def _arrive(
    own: list[nn.Parameter], home: list[torch.Tensor], device: torch.device, dtype: torch.dtype,
    module: nn.Module, arguments: Any, keywords: Any,
) -> Any:  # fmt: skip
    home[:] = [parameter.data for parameter in own]
    for parameter in own:
        parameter.data = parameter.data.to(device, dtype)
    return _moved(arguments, device), _moved(keywords, device)


def _leave(own: list[nn.Parameter], home: list[torch.Tensor], *call: Any) -> None:
    for parameter, at_home in zip(own, home, strict=True):
        parameter.data = at_home


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return type(value)(_moved(item, device) for item in value) if type(value) in (tuple, list) else value


def keep_whole(network: Any, device: torch.device) -> None:
    """Let a VAE compute in its own precision whatever autocast says: fp16 overflows in some, and gives black images."""
    for verb in ("encode", "decode"):
        setattr(network, verb, torch.autocast(device.type, enabled=False)(getattr(network, verb)))


def slice_vae(network: nn.Module) -> None:
    """Encode and decode the images of a batch one after the other, where the network can."""
    slicing = getattr(network, "enable_slicing", None)
    if slicing is not None:
        slicing()


def set_attention(networks: Iterable[nn.Module], backend: str, device: torch.device) -> None:
    """Choose how the denoiser among the networks computes attention. Raises ConfigError if it cannot be done here."""
    _ATTENTION[backend](list(networks), device)


def _flash(networks: list[nn.Module], device: torch.device) -> None:
    if device.type != "cuda":
        raise ConfigError(
            f"memory.attention: flash runs on NVIDIA GPUs, and this is a {device.type}. Use auto, which takes the best "
            "kernel that there is, or sliced."
        )
    for module in (module for network in networks for module in network.modules()):
        processor = getattr(module, "processor", None)
        if processor is not None and hasattr(module, "set_processor"):
            module.set_processor(_FlashOnly(processor))  # type: ignore[operator]


class _FlashOnly:
    """Lets a processor of diffusers use PyTorch's flash kernel and no other."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(
        self, attention: Any, hidden_states: Any, encoder_hidden_states: Any = None, attention_mask: Any = None,
        *further: Any, **keywords: Any,
    ) -> Any:  # fmt: skip
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return self._processor(
                attention, hidden_states, encoder_hidden_states, attention_mask, *further, **keywords
            )


def _xformers(networks: list[nn.Module], device: torch.device) -> None:
    try:
        _call(networks, "enable_xformers_memory_efficient_attention", "xformers")
    except (ImportError, ModuleNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"memory.attention: xformers cannot be used here ({reason}). Install it in the version for your PyTorch, "
            "or use auto: PyTorch's own attention is as fast and as small."
        ) from error


def _sliced(networks: list[nn.Module], device: torch.device) -> None:
    _call(networks, "set_attention_slice", "sliced", "max")


def _call(networks: list[nn.Module], verb: str, backend: str, *arguments: object) -> None:
    able = [network for network in networks if hasattr(network, verb)]
    if not able:
        raise ConfigError(f"memory.attention: {backend} is not there for this model's networks. Use auto.")
    for network in able:
        getattr(network, verb)(*arguments)


def _plain(networks: list[nn.Module], device: torch.device) -> None:
    """Leave it at PyTorch's scaled_dot_product_attention, which the libraries use by themselves."""


_ATTENTION: dict[str, Callable[[list[nn.Module], torch.device], None]] = {
    "auto": _plain,
    "sdpa": _plain,
    "flash": _flash,
    "xformers": _xformers,
    "sliced": _sliced,
}
