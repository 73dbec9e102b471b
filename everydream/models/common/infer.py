"""Configurations of the networks, read off the shapes of their tensors in a single-file checkpoint.

What shapes cannot say (numbers of heads and of norm groups) follows the released models: eight heads
in SD1's UNet, heads of 64 channels in the later ones' and in all text encoders, 32 norm groups.
"""

from math import gcd
from typing import Any

from everydream.formats.files import StateDict
from everydream.models.common.layout import UNET_PREFIX, VAE_PREFIX, shape
from everydream.models.common.text_keys import PROJECTION

Config = dict[str, Any]
_SIZE_WIDTH = 256
"""Of the sinusoids that each of the sizes becomes."""


def unet_config(state: StateDict, sample_size: int) -> Config:
    """Return a UNet2DConditionModel configuration for the tensors under model.diffusion_model."""
    inputs = _indices(state, UNET_PREFIX + "input_blocks.")
    down = [i for i in inputs if f"{UNET_PREFIX}input_blocks.{i}.0.op.weight" in state]
    layers = (down[0] if down else len(inputs)) - 1
    levels = len(down) + 1

    def depth(block: str) -> int:
        return len(_indices(state, f"{UNET_PREFIX}{block}.transformer_blocks."))

    channels = [
        shape(state, f"{UNET_PREFIX}input_blocks.{1 + i * (layers + 1)}.0.in_layers.2.weight")[0] for i in range(levels)
    ]
    attention = f"{UNET_PREFIX}middle_block.1."
    linear = len(shape(state, attention + "proj_in.weight")) == 2
    first = shape(state, UNET_PREFIX + "input_blocks.0.0.weight")
    downs = [depth(f"input_blocks.{1 + i * (layers + 1)}.1") for i in range(levels)]
    # The middle is as deep as the last level, whether or not that attends itself.
    depths = [*(number or 1 for number in downs[:-1]), depth("middle_block.1")]
    return {
        "in_channels": first[1],
        "out_channels": shape(state, UNET_PREFIX + "out.2.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": [
            "CrossAttnDownBlock2D" if number else "DownBlock2D" for number in downs],
        "up_block_types": [
            "CrossAttnUpBlock2D" if number else "UpBlock2D" for number in reversed(downs)],
        "cross_attention_dim": shape(state, attention + "transformer_blocks.0.attn2.to_k.weight")[1],
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        "use_linear_projection": linear,
        "attention_head_dim": [max(width // 64, 1) for width in channels] if linear else 8,
        "norm_num_groups": _groups(channels),
        "sample_size": sample_size,
        **_additions(state),
    }  # fmt: skip


def _additions(state: StateDict) -> Config:
    """Return the configuration of SDXL's embedding of the pooled text and of six sizes, {} for UNets without."""
    embedding = UNET_PREFIX + "label_emb.0.0.weight"
    if embedding not in state:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": _SIZE_WIDTH,
        "projection_class_embeddings_input_dim": shape(state, embedding)[1],
    }


def vae_config(state: StateDict, scaling_factor: float) -> Config:
    """Return an AutoencoderKL configuration for the tensors under first_stage_model."""
    levels = _indices(state, VAE_PREFIX + "encoder.down.")
    channels = [shape(state, f"{VAE_PREFIX}encoder.down.{i}.block.0.conv1.weight")[0] for i in levels]
    return {
        "in_channels": shape(state, VAE_PREFIX + "encoder.conv_in.weight")[1],
        "out_channels": shape(state, VAE_PREFIX + "decoder.conv_out.weight")[0],
        "latent_channels": shape(state, VAE_PREFIX + "post_quant_conv.weight")[0],
        "block_out_channels": channels,
        "layers_per_block": len(_indices(state, VAE_PREFIX + "encoder.down.0.block.")),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "norm_num_groups": _groups(channels),
        "scaling_factor": scaling_factor,
    }


def text_config(state: StateDict, hidden_act: str) -> Config:
    """Return a CLIPTextModel configuration for tensors under transformers' names without `text_model.`."""
    vocabulary, width = shape(state, "embeddings.token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shape(state, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": len(_indices(state, "encoder.layers.")),
        "num_attention_heads": max(width // 64, 1),
        "max_position_embeddings": shape(state, "embeddings.position_embedding.weight")[0],
        "hidden_act": hidden_act,
        "projection_dim": shape(state, PROJECTION)[0] if PROJECTION in state else width,
    }


def _indices(state: StateDict, prefix: str) -> list[int]:
    """Return the sorted numbers that follow `prefix` in the keys."""
    return sorted({int(key[len(prefix) :].split(".", 1)[0]) for key in state if key.startswith(prefix)})


def _groups(channels: list[int]) -> int:
    """Return 32 where it divides every width, else the largest divisor of 32 that does (tiny models)."""
    return gcd(32, *channels)
