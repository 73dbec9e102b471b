"""Which family weights belong to, from what stands beside them and from their names and shapes; for `info`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from everydream.formats.files import METADATA_KEY
from everydream.models.load import FAMILIES

_BY_WIDTH = {768: "sd1", 1024: "sd2", 1280: "sdxl", 2048: "sdxl"}
"""Of what attention is told of the caption, or of a word's vectors."""
_KOHYA = {"sd_v1": "sd1", "sd_v2": "sd2", "sdxl": "sdxl", "sd3": "sd3", "flux": "flux"}
_CROSS = ("attn2_to_k.", "attn2.to_k.", "attn2.processor.to_k_lora.")
_DOWN = ("lora_down.weight", "down.weight", "lora_A.weight", "hada_w1_b")


def family_of(tensors: Mapping[Any, Any], metadata: Mapping[str, Any]) -> str | None:
    """Return the family of a file's tensors (those of any device will do), None if it cannot be told.

    What our own files and those of kohya and Stability say of themselves goes before names and shapes.
    """
    return _said(metadata) or _by_names(tensors) or _by_width(tensors)


def family_of_folder(folder: Path) -> str | None:
    """Return the family of a diffusers folder, None if it is no family's."""
    try:
        pipeline = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        unet_file = folder / "unet" / "config.json"
        unet = json.loads(unet_file.read_text(encoding="utf-8")) if unet_file.is_file() else {}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    fitting = [name for name, module in FAMILIES.items() if pipeline in module.PIPELINES]
    return next((name for name in fitting if len(fitting) == 1 or FAMILIES[name].owns(unet)), None)


def _said(metadata: Mapping[str, Any]) -> str | None:
    ours = metadata.get(METADATA_KEY)
    try:
        ours = json.loads(ours) if isinstance(ours, str) else ours
        return str(ours["model"]["family"])  # type: ignore[index]
    except (ValueError, RecursionError, KeyError, TypeError):
        pass
    architecture = str(metadata.get("modelspec.architecture", "")).split("/")[0]
    by_kohya = str(metadata.get("ss_base_model_version", ""))
    names = {module.KIND.architecture: name for name, module in FAMILIES.items()}
    found = next((name for start, name in names.items() if architecture.startswith(start)), None)
    return found or next((name for start, name in _KOHYA.items() if by_kohya.startswith(start)), None)


def _by_names(tensors: Mapping[Any, Any]) -> str | None:
    state = {key: value for key, value in tensors.items() if isinstance(key, str)}
    for name, module in FAMILIES.items():
        if hasattr(module, "matches") and module.matches(state):
            return name
    if any(mark in key for key in state for mark in ("single_blocks.", "single_transformer_blocks.", "single_blocks_")):
        return "flux"
    return "sd3" if any("joint_blocks" in key for key in state) else None


def _by_width(tensors: Mapping[Any, Any]) -> str | None:
    """Tell adapters by what they take of the caption, words and hypernetworks by their width."""
    if {"clip_l", "clip_g"} <= tensors.keys():
        return "sdxl"
    crossing = [
        tensor.shape[-1]
        for key, tensor in tensors.items()
        if isinstance(key, str) and any(mark in key for mark in _CROSS) and key.endswith(_DOWN)
    ]
    if crossing:
        return _BY_WIDTH.get(crossing[0])
    widths = [key for key in tensors if isinstance(key, int)]  # a hypernetwork's: of captions and of the UNet itself
    if widths:
        return next((_BY_WIDTH[width] for width in (2048, 1024, 768) if width in widths), None)
    rows = [t.shape[-1] for t in tensors.values() if isinstance(t, torch.Tensor) and t.dim() in (1, 2)]
    return _BY_WIDTH.get(rows[0]) if 0 < len(rows) < 3 else None
