"""Names of the CLIP text encoder in transformers, in SD1 single files and, as OpenCLIP, in SD2 single files.

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

_OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def without_level(state: Mapping[str, T]) -> dict[str, T]:
    """Take the `text_model.` level off, where there is one."""
    return {key.removeprefix(LEVEL): value for key, value in state.items()}


def with_level(state: StateDict) -> StateDict:
    """Put the `text_model.` level on."""
    return {LEVEL + key.removeprefix(LEVEL): tensor for key, tensor in state.items()}


def clip_to_single(state: StateDict) -> StateDict:
    """Return SD1's single-file names for a text encoder."""
    return {SD1_PREFIX + key: tensor for key, tensor in with_level(state).items()}


def clip_from_single(state: StateDict) -> StateDict:
    """Return the text encoder of an SD1 single file, with or without the `text_model.` level there."""
    return without_level({k.removeprefix(SD1_PREFIX): v for k, v in state.items() if k.startswith(SD1_PREFIX)})


def open_clip_to_single(state: StateDict) -> StateDict:
    """Return SD2's single-file names: OpenCLIP's, with the three attention inputs in one matrix."""
    out = {SD2_PREFIX + theirs: state[ours] for ours, theirs in _OPEN_CLIP_TOP.items()}
    layers = sorted({int(key.split(".")[2]) for key in state if key.startswith("encoder.layers.")})
    for i in layers:
        ours, theirs = f"encoder.layers.{i}.", f"{SD2_PREFIX}transformer.resblocks.{i}."
        for part in ("weight", "bias"):
            fused = [state[f"{ours}self_attn.{projection}_proj.{part}"] for projection in "qkv"]
            out[f"{theirs}attn.in_proj_{part}"] = torch.cat(fused)
            out |= {f"{theirs}{b}.{part}": state[f"{ours}{a}.{part}"] for a, b in _OPEN_CLIP_LAYER.items()}
    return out


def open_clip_from_single(state: StateDict, num_layers: int) -> StateDict:
    """Return the first `num_layers` layers of the text encoder of an SD2 single file."""
    out = {ours: state[SD2_PREFIX + theirs] for ours, theirs in _OPEN_CLIP_TOP.items()}
    for i in range(num_layers):
        ours, theirs = f"encoder.layers.{i}.", f"{SD2_PREFIX}transformer.resblocks.{i}."
        for part in ("weight", "bias"):
            split = state[f"{theirs}attn.in_proj_{part}"].chunk(3)
            out |= {f"{ours}self_attn.{p}_proj.{part}": tensor for p, tensor in zip("qkv", split, strict=True)}
            out |= {f"{ours}{a}.{part}": state[f"{theirs}{b}.{part}"] for a, b in _OPEN_CLIP_LAYER.items()}
    return out
