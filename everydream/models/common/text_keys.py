"""Names of CLIP text encoders in transformers and in single files, where they go by transformers' or OpenCLIP's.

Inside this project text encoder tensors go by transformers' names without the `text_model.` level:
transformers dropped that level in memory and on disk with 5.6, every other tool still expects it, and
a reader that misses it gets random weights with no more than a warning. So it is taken off whatever
is read and put back on whatever is written.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch

from everydream.formats.files import StateDict

T = TypeVar("T")
LEVEL = "text_model."
SD1_PREFIX = "cond_stage_model.transformer."
SD2_PREFIX = "cond_stage_model.model."
PROJECTION = "text_projection.weight"
"""Beside that level, not below it."""

_OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_PROJECTION = "text_projection"
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def without_level(state: Mapping[str, T]) -> dict[str, T]:
    """Take the `text_model.` level off, where there is one."""
    return {key.removeprefix(LEVEL): value for key, value in state.items()}


def with_level(state: StateDict) -> StateDict:
    """Put the `text_model.` level on."""
    return {key if key == PROJECTION else LEVEL + key.removeprefix(LEVEL): tensor for key, tensor in state.items()}


def clip_to_single(state: StateDict, prefix: str = SD1_PREFIX) -> StateDict:
    """Return single-file names for a text encoder that goes by transformers' there."""
    return {prefix + key: tensor for key, tensor in with_level(state).items()}


def clip_from_single(state: StateDict, prefix: str = SD1_PREFIX) -> StateDict:
    """Return such a text encoder of a single file, with or without the `text_model.` level there."""
    return without_level({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def open_clip_to_single(state: StateDict, prefix: str = SD2_PREFIX) -> StateDict:
    """Return OpenCLIP's names, with the three attention inputs in one matrix and the projection transposed."""
    out = {prefix + theirs: state[ours] for ours, theirs in _OPEN_CLIP_TOP.items()}
    if PROJECTION in state:
        out[prefix + _OPEN_CLIP_PROJECTION] = state[PROJECTION].t().contiguous()
    layers = sorted({int(key.split(".")[2]) for key in state if key.startswith("encoder.layers.")})
    for i in layers:
        ours, theirs = f"encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
        for part in ("weight", "bias"):
            fused = [state[f"{ours}self_attn.{projection}_proj.{part}"] for projection in "qkv"]
            out[f"{theirs}attn.in_proj_{part}"] = torch.cat(fused)
            out |= {f"{theirs}{b}.{part}": state[f"{ours}{a}.{part}"] for a, b in _OPEN_CLIP_LAYER.items()}
    return out


def open_clip_layers(state: StateDict, prefix: str = SD2_PREFIX) -> int:
    """Return how many layers an OpenCLIP text encoder of a single file has."""
    layers = prefix + "transformer.resblocks."
    return len({key.removeprefix(layers).split(".")[0] for key in state if key.startswith(layers)})


def open_clip_from_single(
    state: StateDict, num_layers: int, prefix: str = SD2_PREFIX, projected: bool = False
) -> StateDict:
    """Return the first `num_layers` layers of an OpenCLIP text encoder, with its projection if it is `projected`."""
    out = {ours: state[prefix + theirs] for ours, theirs in _OPEN_CLIP_TOP.items()}
    if projected:
        out[PROJECTION] = state[prefix + _OPEN_CLIP_PROJECTION].t().contiguous()
    for i in range(num_layers):
        ours, theirs = f"encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
        for part in ("weight", "bias"):
            split = state[f"{theirs}attn.in_proj_{part}"].chunk(3)
            out |= {f"{ours}self_attn.{p}_proj.{part}": tensor for p, tensor in zip("qkv", split, strict=True)}
            out |= {f"{ours}{a}.{part}": state[f"{theirs}{b}.{part}"] for a, b in _OPEN_CLIP_LAYER.items()}
    return out
