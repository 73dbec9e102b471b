"""Exports: what a method trains, in the formats other tools open, on their own cadence."""

import json
import re
import shutil
from pathlib import Path

from everydream.formats.files import DTYPES, total_bytes
from everydream.methods.method import Method
from everydream.models.family import Family
from everydream.training.settings import CheckpointSettings
from everydream.types import Progress


def export(
    method: Method,
    family: Family,
    folder: Path,
    project: str,
    progress: Progress,
    settings: CheckpointSettings,
    best: int | None = None,
) -> list[Path]:
    """Write what the method trains in every format asked for, then delete all but the newest exports and the best.

    `best`: its step. Returns what was written.
    """
    stem, dtype = folder / f"{project}-e{progress.epoch:04d}-s{progress.step:06d}", DTYPES[settings.dtype]
    written = [path for name in settings.formats or () for path in method.export(family, stem, name, dtype)]
    _delete_old(folder, project, settings.keep, best)
    return written


def export_bytes(method: Method, family: Family, settings: CheckpointSettings) -> int:
    """Return the size of one export in all its formats."""
    return total_bytes(method.exported(family), DTYPES[settings.dtype]) * len(settings.formats or ())


def _delete_old(folder: Path, project: str, keep: int | None, best: int | None) -> None:
    """Delete all but the `keep` newest exports of this run and the best."""
    if keep is None:
        return
    steps = exports_in(folder, project)
    for step in set(sorted(steps)[:-keep]) - {best}:
        for path in steps[step]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def exports_in(folder: Path, project: str) -> dict[int, list[Path]]:
    """Return a project's exports by step; nothing whose name is not one of ours."""
    pattern = re.compile(re.escape(project) + r"-e\d{4,}-s(\d{6,})(-[^/]+)?(\.safetensors|\.ckpt|\.pt)?")
    steps: dict[int, list[Path]] = {}
    for path in folder.iterdir():
        if match := pattern.fullmatch(path.name):
            steps.setdefault(int(match[1]), []).append(path)
    return steps


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
