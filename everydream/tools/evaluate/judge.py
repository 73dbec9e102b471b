"""Pictures to numbers: every measure that what was given allows."""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from everydream.errors import ConfigError
from everydream.models.features import Features
from everydream.tools.evaluate.copying import Pair, numbers, pairs
from everydream.tools.evaluate.measures import Measure, clip_score, fid, kid
from everydream.tools.evaluate.pictures import Candidate, image_rows, rows_of
from pictures.decode import decode

Scorer = Callable[[list[Image.Image], list[str]], Mapping[str, float]]


@dataclass
class Judged:
    """A candidate with its numbers."""

    candidate: Candidate
    measures: dict[str, Measure] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    """The most literal first."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Given:
    """What there is to judge by."""

    features: Features | None = None
    real: Sequence[Path] = ()
    """Real pictures like those that were asked for."""
    training: Sequence[Path] = ()
    """Images that were trained on."""
    scorer: Scorer | None = None


def judge(candidates: Sequence[Candidate], given: Given, progress: Callable[[int, str], None]) -> list[Judged]:
    """Return every candidate with its measures. Raises ConfigError where nothing can be measured."""
    compares = bool(given.real) and given.features is not None
    reads = given.features is not None and given.features.reads_texts
    if not (compares or given.training or given.scorer or reads):
        raise ConfigError(
            "Nothing to judge by. Give --features FOLDER (with --real FOLDER for FID and KID; a CLIP alone for the "
            "CLIP score), --training FOLDER for copying, or --scorer MODULE:FUNCTION."
        )
    if given.real and given.features is None:
        raise ConfigError(
            "--real: FID and KID are distances of features. Give --features FOLDER, a CLIP or DINO on disk."
        )
    rows = image_rows(given.features)
    real_MD = rows_of(given.real, rows) if compares else torch.zeros(0, 1)
    training_MD = rows_of(given.training, rows) if given.training else torch.zeros(0, 1)
    judged = []
    for done, candidate in enumerate(candidates, 1):
        judged.append(_judged(candidate, given, real_MD, training_MD))
        progress(done, candidate.name)
    return judged


def _judged(candidate: Candidate, given: Given, real_MD: torch.Tensor, training_MD: torch.Tensor) -> Judged:
    found = Judged(candidate, notes=[f"pictures are missing: {reason}" for reason in candidate.failed])
    if not candidate.paths:
        return found
    features = given.features
    rows_ND = rows_of(candidate.paths, image_rows(features))
    if len(real_MD):
        for name, distance in (("FID", fid), ("KID x1000", kid)):
            measure, note = distance(rows_ND, real_MD)
            found.measures |= {name: measure} if measure is not None else {}
            found.notes += [note] if note else []
    if features is not None and (texts_ND := features.texts(candidate.prompts)) is not None:
        found.measures["CLIP score"] = clip_score(rows_ND, texts_ND)
    if len(training_MD):
        found.pairs = pairs(candidate.paths, rows_ND, given.training, training_MD)
        found.measures |= numbers(found.pairs)
    if given.scorer is not None:
        found.measures |= _scored(candidate, given.scorer)
    return found


def _scored(candidate: Candidate, scorer: Scorer) -> dict[str, Measure]:
    images = [Image.fromarray(decode(path)) for path in candidate.paths]
    scored: Any = scorer(images, list(candidate.prompts))
    if not isinstance(scored, Mapping) or not all(isinstance(value, int | float) for value in scored.values()):
        raise ConfigError(f"--scorer returned {scored!r}; it should return a dict of numbers, by what they are called.")
    return {str(name): Measure(float(value)) for name, value in scored.items()}


def scorer_of(text: str) -> Scorer:
    """Return the function of `module:function`, looked for in the working directory too. Raises ConfigError."""
    module, _, name = text.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Scorer = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"--scorer {text}: {error}. Give MODULE:FUNCTION of a function that takes a list of pictures (Pillow's) "
            "and a list of their prompts and returns a dict of numbers, as demo.score:by_prompts does."
        ) from error
    return found
