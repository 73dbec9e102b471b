"""A whole model to a file or folder, in the formats other tools open."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from everydream.errors import ConfigError
from everydream.formats.atomic import atomic_folder
from everydream.formats.files import METADATA_KEY, cast_floating, json_metadata, write_pickle, write_safetensors
from everydream.models.family import Family


def write_model(family: Family, stem: Path, format_name: str, dtype: torch.dtype) -> Path:
    """Write the model as `stem` with the format's ending (a diffusers folder has none); return the path.

    Floating tensors are cast to `dtype`. Raises ConfigError for a format that the family does not have.
    """
    require_format(family, format_name)
    return WRITERS[format_name](family, stem, dtype)


def require_format(family: Family, format_name: str) -> None:
    """Raise ConfigError for a format that the family cannot be written in."""
    if format_name not in family.formats:
        raise ConfigError(
            f"A {family.name} model is written as {', '.join(family.formats)} only, not as {format_name}: its single "
            "files have other names, which are not converted. Set checkpoints.formats, or name a folder."
        )


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
