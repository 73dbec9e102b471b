"""Exports: what a method trains, in the formats other tools open, on their own cadence."""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from everydream.formats.atomic import atomic_file
from everydream.formats.files import DTYPES, json_metadata, total_bytes
from everydream.formats.provenance import FOLDER_FILE, About
from everydream.methods.method import Method
from everydream.models.card import model_card
from everydream.models.family import Family
from everydream.training.settings import CheckpointSettings
from everydream.types import Progress

_CARD = ".md"


def export(
    method: Method,
    family: Family,
    folder: Path,
    project: str,
    progress: Progress,
    settings: CheckpointSettings,
    about: About | None = None,
) -> list[Path]:
    """Write what the method trains in every format asked for, under names that tell project, epoch and step.

    `about`: how it was made, which is written into the files and as a model card; None: nothing of it. Returns
    what was written, without the cards.
    """
    stem, dtype = folder / f"{project}-e{progress.epoch:04d}-s{progress.step:06d}", DTYPES[settings.dtype]
    written = [path for name in settings.formats or () for path in method.export(family, stem, name, dtype, about)]
    if about:
        _describe(family, stem, written, about)
    return written


def _describe(family: Family, stem: Path, written: list[Path], about: About) -> None:
    """Write the model card: into the folders among what was written, and beside the files."""
    for path in written:
        card = model_card(family, path, about)
        for target, text in (
            ((path / "README.md", card), (path / FOLDER_FILE, json_metadata(about) + "\n"))
            if path.is_dir()
            else ((stem.with_name(stem.name + _CARD), card),)
        ):
            with atomic_file(target) as partial:
                partial.write_text(text, encoding="utf-8")


def export_bytes(method: Method, family: Family, settings: CheckpointSettings) -> int:
    """Return the size of one export in all its formats."""
    return total_bytes(method.exported(family), DTYPES[settings.dtype]) * len(settings.formats or ())


def old_exports(
    folder: Path, project: str, keep: int | None, now: int, best_of: Callable[[Collection[int]], int | None]
) -> list[Path]:
    """Return all but the `keep` newest exports up to step `now`, and the best of those that are there.

    Later ones are of a run that was killed and went on from before them; it will write them again.
    """
    if keep is None:
        return []
    steps, cards = exports_in(folder, project), _files_in(folder, project, re.escape(_CARD))
    old = {*sorted(step for step in steps if step <= now)[:-keep]} - {best_of(steps)}
    return [path for step in old for path in [*steps[step], *cards.get(step, ())]]


def delete(paths: Iterable[Path]) -> None:
    """Delete files and folders that are still there."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def exports_in(folder: Path, project: str) -> dict[int, list[Path]]:
    """Return a project's exports by step, without their cards; nothing whose name is not one of ours."""
    return _files_in(folder, project, r"(-[^/]+)?(\.safetensors|\.ckpt|\.pt)?")


def _files_in(folder: Path, project: str, ending: str) -> dict[int, list[Path]]:
    pattern = re.compile(re.escape(project) + r"-e\d{4,}-s(\d{6,})" + ending)
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
