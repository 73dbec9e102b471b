"""How long a run of kohya's is: what is counted there in shares and in other units than here."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from everydream.data.kohya import parse_folder
from everydream.tools.importing.draft import Draft, find
from pictures.decode import image_extensions


class Lengths(NamedTuple):
    """What is known of the run's length; None where it is not."""

    epochs: int | None
    steps_per_epoch: int | None
    """About: counted from the image files that are there, as if none were rejected and buckets left nothing over."""
    max_steps: int | None

    @property
    def total_epochs(self) -> int | None:
        """Epochs of the whole run, about."""
        if self.epochs is not None or self.max_steps is None or self.steps_per_epoch is None:
            return self.epochs
        return math.ceil(self.max_steps / self.steps_per_epoch)


def draws_of(draft: Draft, file: Path) -> int:
    """Return how many images an epoch draws, counted from the files that are there; 0 if none is."""
    draws = sum(_draws(source, file) for source in draft.training_sources())
    return int(draws * (2 if draft.has_class_images else 1))


def _draws(source: dict[str, Any], file: Path) -> float:
    path = find(source["path"], file)
    if path is None or not path.is_dir():
        return 0.0
    repeats = float(source.get("repeats", 1))
    if source.get("captions") != "kohya":
        return repeats * count_images(path)
    named = parse_folder(path.name)
    below = [(inner, parse_folder(inner.name)) for inner in path.iterdir() if inner.is_dir()]
    folders = [(path, named), *below]
    return repeats * sum(name.repeats * count_images(folder) for folder, name in folders if name is not None)


def count_images(folder: Path) -> int:
    """Return how many files right in a folder are images by their extension."""
    return sum(os.path.splitext(name)[1].lower() in image_extensions() for name in os.listdir(folder))  # noqa: PTH122, PTH208
