"""Names of the UNet and the VAE in single-file checkpoints (CompVis latent diffusion) and in diffusers.

One list of module pairs per network, made from its configuration, serves both directions, so what is
read is what is written. Works for any number of levels and layers.
"""

from collections.abc import Mapping
from typing import Any

import torch

from everydream.formats.files import StateDict

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
Pairs = list[tuple[str, str]]
"""(diffusers module, single-file module)."""

_UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_pairs(config: Mapping[str, Any]) -> Pairs:
    """Return the module pairs of a UNet2DConditionModel with this configuration."""
    pairs = [
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        *_resnet("mid_block.resnets.0", "middle_block.0", _UNET_RESNET),
        ("mid_block.attentions.0", "middle_block.1"),
        *_resnet("mid_block.resnets.1", "middle_block.2", _UNET_RESNET),
    ]
    layers, levels = int(config["layers_per_block"]), len(config["block_out_channels"])
    for i in range(levels):
        first_in, first_out = 1 + i * (layers + 1), i * (layers + 1)
        for j in range(layers):
            pairs += _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{first_in + j}.0", _UNET_RESNET)
            pairs.append((f"down_blocks.{i}.attentions.{j}", f"input_blocks.{first_in + j}.1"))
        pairs.append((f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{first_in + layers}.0.op"))
        for j in range(layers + 1):
            pairs += _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{first_out + j}.0", _UNET_RESNET)
            pairs.append((f"up_blocks.{i}.attentions.{j}", f"output_blocks.{first_out + j}.1"))
        upsampler = 2 if "CrossAttn" in config["up_block_types"][i] else 1
        pairs.append((f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{first_out + layers}.{upsampler}.conv"))
    return pairs


def vae_pairs(config: Mapping[str, Any]) -> Pairs:
    """Return the module pairs of an AutoencoderKL with this configuration."""
    layers, levels = int(config["layers_per_block"]), len(config["block_out_channels"])
    pairs = [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    for half in ("encoder", "decoder"):
        pairs += [(f"{half}.{end}", f"{half}.{end}") for end in ("conv_in", "conv_out")]
        pairs.append((f"{half}.conv_norm_out", f"{half}.norm_out"))
        pairs += _resnet(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1", _VAE_RESNET)
        pairs += _resnet(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1", _VAE_ATTENTION)
        pairs += _resnet(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2", _VAE_RESNET)
    for i in range(levels):
        for j in range(layers):
            pairs += _resnet(f"encoder.down_blocks.{i}.resnets.{j}", f"encoder.down.{i}.block.{j}", _VAE_RESNET)
        pairs.append((f"encoder.down_blocks.{i}.downsamplers.0.conv", f"encoder.down.{i}.downsample.conv"))
        up = levels - 1 - i  # the single file counts the decoder's levels from the output
        for j in range(layers + 1):
            pairs += _resnet(f"decoder.up_blocks.{i}.resnets.{j}", f"decoder.up.{up}.block.{j}", _VAE_RESNET)
        pairs.append((f"decoder.up_blocks.{i}.upsamplers.0.conv", f"decoder.up.{up}.upsample.conv"))
    return pairs


def _resnet(diffusers: str, single: str, parts: Mapping[str, str]) -> Pairs:
    return [(f"{diffusers}.{ours}", f"{single}.{theirs}") for ours, theirs in parts.items()]


def to_single(state: StateDict, pairs: Pairs, prefix: str) -> StateDict:
    """Rename a diffusers state dict to single-file names; the VAE's attention matrices become 1x1 convolutions."""
    out = {}
    for key, tensor in state.items():
        name = prefix + _rename(key, dict(pairs))
        if prefix == VAE_PREFIX and _is_attention_matrix(name):
            tensor = tensor.reshape(*tensor.shape[:2], 1, 1)  # noqa: PLW2901
        out[name] = tensor
    return out


def from_single(state: StateDict, pairs: Pairs, prefix: str) -> StateDict:
    """Rename the part of a single-file state dict below `prefix` to diffusers names."""
    out = {}
    names = {theirs: ours for ours, theirs in pairs}
    for key, tensor in state.items():
        if not key.startswith(prefix):
            continue
        if prefix == VAE_PREFIX and _is_attention_matrix(key):
            tensor = tensor.reshape(*tensor.shape[:2])  # noqa: PLW2901
        out[_rename(key.removeprefix(prefix), names)] = tensor
    return out


def rename(module: str, pairs: Pairs) -> str:
    """Return a module of diffusers under its single-file name."""
    end = ".weight"
    return _rename(module + end, dict(pairs)).removesuffix(end)


def _is_attention_matrix(single_key: str) -> bool:
    return ".attn_1." in single_key and single_key.endswith(".weight") and ".norm." not in single_key


def _rename(key: str, modules: Mapping[str, str]) -> str:
    """Replace the longest known module at the start of `key`; an unknown key is returned as it is."""
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:length])
        if module in modules:
            return ".".join([modules[module], *parts[length:]])
    return key


def shape(state: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...]:
    """Return a tensor's shape as plain integers."""
    return tuple(int(size) for size in state[key].shape)
