"""A whole model to a file or folder, in the formats other tools open."""

from collections.abc import Callable
from pathlib import Path

import torch

from everydream.errors import ConfigError
from everydream.formats.atomic import atomic_folder
from everydream.formats.files import METADATA_KEY, cast_floating, json_metadata, write_pickle, write_safetensors
from everydream.formats.provenance import PROVENANCE, About, modelspec, own_metadata
from everydream.models.family import Family


def write_model(family: Family, stem: Path, format_name: str, dtype: torch.dtype, about: About | None = None) -> Path:
    """Write the model as `stem` with the format's ending (a diffusers folder has none); return the path.

    `about`: how it was made, for the files that can say it. Floating tensors are cast to `dtype`. Raises ConfigError
    for a format that the family does not have.
    """
    require_format(family, format_name)
    return WRITERS[format_name](family, stem, dtype, about)


def require_format(family: Family, format_name: str) -> None:
    """Raise ConfigError for a format that the family cannot be written in."""
    if format_name not in family.formats:
        raise ConfigError(
            f"A {family.name} model is written as {', '.join(family.formats)} only, not as {format_name}: its single "
            "files have other names, which are not converted. Set checkpoints.formats, or name a folder."
        )


def _safetensors(family: Family, stem: Path, dtype: torch.dtype, about: About | None) -> Path:
    path = stem.with_name(stem.name + ".safetensors")
    metadata = {
        **own_metadata(about, family.description()),
        **modelspec(family.architecture, family.objective.prediction, about),
    }
    write_safetensors(path, cast_floating(family.single_file(), dtype), metadata)
    return path


def _ckpt(family: Family, stem: Path, dtype: torch.dtype, about: About | None) -> Path:
    path = stem.with_name(stem.name + ".ckpt")
    tensors = cast_floating(family.single_file(), dtype)
    ours = {"model": family.description(), **({PROVENANCE: json_metadata(about)} if about else {})}
    write_pickle(path, {"state_dict": tensors, METADATA_KEY: ours})
    return path


def _diffusers(family: Family, stem: Path, dtype: torch.dtype, about: About | None) -> Path:
    with atomic_folder(stem) as folder:
        family.write_folder(folder, dtype)
    return stem


WRITERS: dict[str, Callable[[Family, Path, torch.dtype, About | None], Path]] = {
    "safetensors": _safetensors,
    "ckpt": _ckpt,
    "diffusers": _diffusers,
}
