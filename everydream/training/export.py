"""Exports: the model alone, in the formats other tools open, on their own cadence."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everydream.formats.atomic import atomic_folder
from everydream.formats.files import (
    DTYPES,
    METADATA_KEY,
    cast_floating,
    json_metadata,
    total_bytes,
    write_pickle,
    write_safetensors,
)
from everydream.models.family import Family
from everydream.training.settings import CheckpointSettings
from everydream.types import Progress


def export(family: Family, folder: Path, project: str, progress: Progress, settings: CheckpointSettings) -> list[Path]:
    """Write the model in every format asked for, then delete all but the newest exports; return what was written."""
    stem = f"{project}-e{progress.epoch:04d}-s{progress.step:06d}"
    written = [_WRITERS[name](family, folder / stem, settings) for name in settings.formats]
    _delete_old(folder, project, settings.keep)
    return written


def export_bytes(family: Family, settings: CheckpointSettings) -> int:
    """Return the size of one export in all its formats."""
    return total_bytes(family.single_file(), DTYPES[settings.dtype]) * len(settings.formats)


def _safetensors(family: Family, stem: Path, settings: CheckpointSettings) -> Path:
    path = stem.with_name(stem.name + ".safetensors")
    write_safetensors(path, cast_floating(family.single_file(), DTYPES[settings.dtype]), _metadata(family))
    return path


def _ckpt(family: Family, stem: Path, settings: CheckpointSettings) -> Path:
    path = stem.with_name(stem.name + ".ckpt")
    tensors = cast_floating(family.single_file(), DTYPES[settings.dtype])
    write_pickle(path, {"state_dict": tensors, METADATA_KEY: {"model": family.description()}})
    return path


def _diffusers(family: Family, stem: Path, settings: CheckpointSettings) -> Path:
    with atomic_folder(stem) as folder:
        family.write_folder(folder, DTYPES[settings.dtype])
    return stem


_WRITERS = {"safetensors": _safetensors, "ckpt": _ckpt, "diffusers": _diffusers}


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


def _delete_old(folder: Path, project: str, keep: int | None) -> None:
    """Delete all but the `keep` newest exports of this run; nothing whose name is not one of ours."""
    if keep is None:
        return
    pattern = re.compile(re.escape(project) + r"-e\d{4,}-s(\d{6,})(\.safetensors|\.ckpt)?")
    steps: dict[int, list[Path]] = {}
    for path in folder.iterdir():
        if match := pattern.fullmatch(path.name):
            steps.setdefault(int(match[1]), []).append(path)
    for step in sorted(steps)[:-keep]:
        for path in steps[step]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def describe(settings: CheckpointSettings) -> str:
    """Return the cadence in words, for the plan."""
    when = []
    if settings.every_steps:
        when.append(f"every {settings.every_steps} steps")
    if settings.every_epochs:
        when.append("every epoch" if settings.every_epochs == 1 else f"every {settings.every_epochs} epochs")
    if settings.every_minutes:
        when.append(f"every {settings.every_minutes:g} minutes")
    often = ", ".join([*when, "and at the end"]) if when else "at the end"
    return f"{often}; formats {json.dumps(settings.formats)} in {settings.dtype}"
