"""From the words of the command line to a project: its name, the new words, the YAML."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from everydream.errors import ConfigError
from everydream.formats.atomic import atomic_file
from everydream.yaml_text import apply_override

_REPEATS = 20
"""Visits of a photo in each of the epochs: 100 in all, the middle of what guides for few photos advise."""
_EPOCHS = 5
"""Each ends with an export, and one of them is kept."""


@dataclass(frozen=True)
class Concept:
    """What is to be taught, and how."""

    label: str
    """What the photos show, e.g. `photo of billhamilton man`."""
    photos: Path
    class_label: str
    """What they show an instance of, e.g. `photo of a man`."""
    class_photos: Path | None
    num_class: int
    model: str
    method: str
    folder: Path
    """Of the concept: everything is written below it."""
    resolution: int = 512
    batch_size: int = 4
    faces: Literal["skip", "largest", "all"] = "skip"
    """What happens, with prepared faces, to photos that do not show exactly one."""
    class_images: bool = True
    overrides: list[str] = field(default_factory=list)

    @property
    def config(self) -> Path:
        """The project's YAML."""
        return self.folder / "project.yaml"

    @property
    def runs(self) -> Path:
        """Where its runs go."""
        return self.folder / "runs"

    @property
    def name(self) -> str:
        """The project's name."""
        return self.folder.name


def name_of(label: str) -> str:
    """Return a concept's label as the name of a folder and a project."""
    return re.sub(r"\W+", "_", label).strip("_")[:60] or "concept"


def new_words(label: str, class_label: str) -> list[str]:
    """Return the words of the concept's label that the class's label lacks, in order."""
    known = {word.lower() for word in class_label.split()}
    return [word for word in label.split() if word.lower() not in known]


def write_project(concept: Concept, images: Path) -> None:
    """Write project.yaml for training on `images`."""
    raw = project(concept, images)
    # What is wrong with an override is told when the file is read, beside all else.
    for override in concept.overrides:
        apply_override(raw, override)
    concept.folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(concept.config) as partial:
        head = "# Written by `everydream concept`, anew each time; `python train.py --config` runs it too.\n"
        partial.write_text(head + yaml.safe_dump(raw, sort_keys=False, allow_unicode=True), encoding="utf-8")


def project(concept: Concept, images: Path) -> dict[str, Any]:
    """Return the settings of the run. Raises ConfigError if the labels do not tell what is new."""
    words = new_words(concept.label, concept.class_label)
    if not words:
        raise ConfigError(
            f"--concept-label {concept.label!r} has no word that --class-label {concept.class_label!r} lacks, so "
            "nothing would name the new. Add one that is rare, e.g. 'photo of billhamilton man' of 'photo of a man'."
        )
    subject: dict[str, Any] = {"path": str(images), "name": "concept", "label": concept.label, "repeats": _REPEATS}
    raw: dict[str, Any] = {
        "project": concept.name,
        "runs_dir": str(concept.runs),
        "model": {"path": concept.model},
        "method": concept.method,
        "data": {"resolution": concept.resolution, "sources": [subject]},
        "train": {"epochs": _EPOCHS, "batch_size": concept.batch_size},
        "checkpoints": {"every_epochs": 1, "keep": None, "every_minutes": 20.0},
    }
    if concept.class_images:
        raw["data"]["sources"].append(_class_source(concept))
    if concept.method == "textual_inversion":
        raw["textual_inversion"] = {
            "words": [{"token": words[0], "vectors": 4, "init": concept.class_label.split()[-1]}]
        }
    return raw


def _class_source(concept: Concept) -> dict[str, Any]:
    source: dict[str, Any] = {"name": "class", "role": "class", "label": concept.class_label}
    if concept.class_photos is not None:
        source["path"] = str(concept.class_photos)
    return {**source, "generate": concept.num_class}
