"""What was asked for to judged pictures: which checkpoints draw what, and what they are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from sys import stderr

import torch

from everydream.errors import ConfigError
from everydream.models.features import Features, load_features
from everydream.sampling.prompts import read_prompts
from everydream.tools.evaluate.judge import Given, Judged, judge, scorer_of
from everydream.tools.evaluate.pictures import Candidate, drawn_by, files_in, from_folder
from everydream.tools.grid.axes import Cell
from everydream.tools.grid.sources import Sources
from everydream.tools.grid.values import items
from everydream.tools.models.runs import exports_by_step, settings_of
from everydream.tools.progress import counting


@dataclass(frozen=True)
class Wanted:
    """What to judge, and by what."""

    folders: Sequence[Path] = ()
    run: Path | None = None
    models: Sequence[str] = ()
    checkpoints: str = "base, all"
    """Of the run, as in a grid's axis."""
    prompts: Path | None = None
    seeds: Sequence[int] = (555,)
    steps: int = 30
    guidance: float = 7.0
    sampler: str | None = None
    width: int | None = None
    height: int | None = None
    clip_skip: int = 0
    features: Path | None = None
    real: Sequence[Path] = ()
    training: Sequence[Path] = ()
    scorer: str | None = None
    out: Path = Path("evaluation")


def evaluate(wanted: Wanted) -> tuple[list[Judged], str]:
    """Return the judged pictures, and the name of what their features are. Raises EveryDreamError subclasses."""
    if not (wanted.folders or wanted.run or wanted.models):
        raise ConfigError("Say what to judge: folders of pictures, or --run or --model with --prompts FILE.")
    given = _given(wanted)
    candidates = [from_folder(folder) for folder in wanted.folders]
    if wanted.run is not None or wanted.models:
        candidates += _drawn(wanted)
    with counting("Judging", len(candidates)) as show:
        judged = judge(candidates, given, show)
    return judged, given.features.name if given.features is not None else "pixels"


def _given(wanted: Wanted) -> Given:
    # The cheap mistakes first, before a network is read.
    real = [path for folder in wanted.real for path in files_in(folder)]
    training = [path for folder in _training_folders(wanted) for path in files_in(folder)]
    scorer = scorer_of(wanted.scorer) if wanted.scorer is not None else None
    return Given(_network(wanted.features), real, training, scorer)


def _network(folder: Path | None) -> Features | None:
    if folder is None:
        return None
    fastest = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return load_features(folder, fastest or "cpu")


def _training_folders(wanted: Wanted) -> Sequence[Path]:
    """Return the folders that were named, or else those that the run was taught from.

    Those that are not there any more are told: what they hold cannot be found copied.
    """
    if wanted.training or wanted.run is None:
        return wanted.training
    taught = [s.path for s in settings_of(wanted.run).data.sources if s.role == "training" and s.path is not None]
    for path in taught:
        if not Path(path).is_dir():
            print(
                f"{path} is not there, so copies of its images are not looked for; --training says where.", file=stderr
            )
    return [Path(path) for path in taught if Path(path).is_dir()]


def _drawn(wanted: Wanted) -> list[Candidate]:
    if wanted.prompts is None:
        raise ConfigError("--prompts: checkpoints are judged by what they draw. Give a text file, one prompt a line.")
    config = settings_of(wanted.run) if wanted.run is not None else None
    exports = exports_by_step(wanted.run, config) if wanted.run is not None and config is not None else {}
    sources = Sources(wanted.run, config, exports, wanted.clip_skip)
    labels = [label for item in wanted.models for label in sources.take(item)]
    if wanted.run is not None:
        labels = [*(label for item in items(wanted.checkpoints) for label in sources.take(item)), *labels]
    cells = [
        Cell(
            "", prompt, seed=seed, guidance=wanted.guidance, steps=wanted.steps, sampler=wanted.sampler,
            width=wanted.width, height=wanted.height,
        )
        for prompt, seed in product(read_prompts(wanted.prompts, "--prompts"), wanted.seeds)
    ]  # fmt: skip
    folder = wanted.out / "cells"
    with counting("Drawing", len(cells) * len(labels)) as show:
        drawn = drawn_by(sources, labels, cells, folder, show)
    print(f"What they drew lies in {folder}", file=stderr)
    return drawn
