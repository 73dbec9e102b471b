"""A whole model to a file or folder, in the formats other tools open."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from everydream.formats.atomic import atomic_folder
from everydream.formats.files import METADATA_KEY, cast_floating, json_metadata, write_pickle, write_safetensors
from everydream.models.family import Family


def write_model(family: Family, stem: Path, format_name: str, dtype: torch.dtype) -> Path:
    """Write the model as `stem` with the format's ending (a diffusers folder has none); return the path.

    Floating tensors are cast to `dtype`.
    """
    return WRITERS[format_name](family, stem, dtype)


def _safetensors(family: Family, stem: Path, dtype: torch.dtype) -> Path:
    path = stem.with_name(stem.name + ".safetensors")
    write_safetensors(path, cast_floating(family.single_file(), dtype), _metadata(family))
    return path


def _ckpt(family: Family, stem: Path, dtype: torch.dtype) -> Path:
    path = stem.with_name(stem.name + ".ckpt")
    tensors = cast_floating(family.single_file(), dtype)
    write_pickle(path, {"state_dict": tensors, METADATA_KEY: {"model": family.description()}})
    return path


def _diffusers(family: Family, stem: Path, dtype: torch.dtype) -> Path:
    with atomic_folder(stem) as folder:
        family.write_folder(folder, dtype)
    return stem


WRITERS: dict[str, Callable[[Family, Path, torch.dtype], Path]] = {
    "safetensors": _safetensors,
    "ckpt": _ckpt,
    "diffusers": _diffusers,
}


def _metadata(family: Family) -> Mapping[str, str]:
    """Return safetensors metadata: our own description, and Stability's modelspec for other tools."""
    description: dict[str, Any] = family.description()
    return {
        METADATA_KEY: json_metadata({"model": description}),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": family.objective.prediction,
    }
