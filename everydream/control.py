"""Control pictures: three sets of prompts at fixed seeds, compared with the base's pictures and the training images.

concept     prompts that name the subject          -> copying: how near to a training image
control     its class, nothing, other things       -> bleeding: how far towards the training images
captions    captions of training images            -> copying
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from everydream.config import RunConfig
from everydream.data.settings import SourceSettings
from everydream.evaluation.bleeding import bleeding
from everydream.evaluation.copying import hash_distance, nearest, ssim
from everydream.evaluation.grids import labelled_grid
from everydream.evaluation.heldout import Measured
from everydream.evaluation.measuring import pictures_of
from everydream.models.family import Family
from everydream.models.features import load_features
from everydream.monitors import Notebook
from everydream.outputs import Sampler
from everydream.sampling.prompts import prompts_from_captions
from everydream.sampling.sampler import looking_only
from everydream.seeding import derive

Picture = NDArray[np.uint8]
_SIDE = 8
"""Latents are compared at this size, so that pictures of any shape can be."""
_OF_GROUND_TRUTH = 3
_COLUMNS = 6
"""Of a grid; of more steps those that lie evenly."""


@dataclass(frozen=True)
class PromptSets:
    """What is drawn."""

    concept: list[str]
    control: list[str]
    captions: list[str]

    @property
    def all(self) -> list[str]:
        """Every prompt, in the order of the pictures."""
        return [*self.concept, *self.control, *self.captions]


def prompt_sets(config: RunConfig, captions_of_role: dict[str, list[str]]) -> PromptSets:
    """Return the prompts: those of the settings, else what the sources say of subject and class."""
    settings, sources = config.control, config.data.sources
    subjects, classes = _names(sources, "training"), _names(sources, "class")
    classes += [source.class_word for source in sources if source.role == "training" and source.class_word]
    truth = prompts_from_captions(captions_of_role["ground_truth"], _OF_GROUND_TRUTH)
    own = captions_of_role["training"]
    return PromptSets(
        concept=settings.concept if settings.concept is not None else subjects,
        control=settings.control if settings.control is not None else ["", *dict.fromkeys([*classes, *truth])],
        captions=prompts_from_captions(own, settings.captions) if settings.captions else [],
    )


def _names(sources: Sequence[SourceSettings], role: str) -> list[str]:
    """Return what sources of a role are called in prompts, each once."""
    names = [
        source.label or " ".join(filter(None, [source.token, source.class_word]))
        for source in sources
        if source.role == role
    ]
    return list(dict.fromkeys(filter(None, names)))


@dataclass
class ControlPictures:
    """Draws the control pictures and says what became of them."""

    config: RunConfig
    folder: Path
    prompts: PromptSets
    training: Measured
    """The training images that pictures are compared with."""
    sampler: Sampler
    notebook: Notebook
    base: dict[str, Any] = field(default_factory=dict)
    """`rows`: features of the base's pictures, and `made`: how; saved, for after a resume the base is gone."""
    _compared: tuple[list[Picture], torch.Tensor] | None = None

    def __call__(self, step: int) -> None:
        """Draw every prompt after `step` steps; before the first one they are the base's pictures."""
        writer, settings = self.notebook.writer, self.config.samples
        with writer.shown_weights(), writer.launch.autocast():
            if not writer.launch.is_main:
                return
            pictures = self.sampler.sampled(self.prompts.all, settings.guidance[0])
            training = pictures_of(self.training, self.config.data, self.config.seed) if self._compared is None else []
            rows = self._rows([*pictures, *training])
            if self._compared is None:
                self._compared = training, rows[len(pictures) :]
            rows = rows[: len(pictures)]
        if step == 0:
            self.base = {"rows": rows, "made": self._made()}
        base = self.base["rows"] if self.is_comparable else None
        self._write(step, pictures, base is not None)
        numbers = self._numbers(pictures, rows, base)
        self.notebook.write(step, numbers, {})
        if base is None:
            why = "the base's were drawn otherwise, or not at all"
            writer.display.say(f"Control pictures at step {step}: nothing to compare with, for {why}")
        elif step and "control/bleed" in numbers:
            told = f"Control pictures at step {step}: bleed {numbers['control/bleed']:.2f}"
            writer.display.say(f"{told} (0: as the base model draws them; 1: like the training images)")

    @property
    def is_comparable(self) -> bool:
        """Whether the base's pictures are known and were drawn as today's are."""
        return bool(self.base.get("made") == self._made())

    def _made(self) -> int:
        """Return a number that changes with all that pictures and their features depend on, the weights aside."""
        samples, features = self.config.samples, self.config.control.features
        drawn = samples.model_dump(include={"sampler", "steps", "seed", "negative_prompt", "width", "height"})
        drawn |= {"guidance": samples.guidance[0], "resolution": self.config.data.resolution}
        compared = Path(features).name if features is not None else ""
        sets = self.prompts
        prompts = json.dumps([sets.concept, sets.control, sets.captions])
        return derive(0, "control pictures", json.dumps(drawn, sort_keys=True), compared, prompts)

    def _numbers(self, pictures: Sequence[Picture], rows: torch.Tensor, base: torch.Tensor | None) -> dict[str, float]:
        assert self._compared is not None
        training, training_rows = self._compared
        first, last = len(self.prompts.concept), len(self.prompts.concept) + len(self.prompts.control)
        numbers: dict[str, float] = {}
        if base is not None and last > first:
            found = bleeding(rows[first:last], base[first:last], training_rows)
            numbers["control/bleed"] = float(found.bleed_N.mean())
            numbers["control/moved"] = float(found.moved_N.mean())
        own = [*range(first), *range(last, len(pictures))]
        if own:
            centre = training_rows.mean(0)
            which, cosines = nearest(rows[own] - centre, training_rows - centre)
            pairs = [(pictures[i], training[int(j)]) for i, j in zip(own, which.tolist(), strict=True)]
            numbers["copying/cosine"] = float(cosines.mean())
            numbers["copying/ssim"] = float(np.mean([ssim(a, b) for a, b in pairs]))
            numbers["copying/hash"] = float(np.mean([hash_distance(a, b) for a, b in pairs]))
        return numbers

    def _rows(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Return features of pictures (N, D), on the CPU: of the network on disk, else latents."""
        writer = self.notebook.writer
        if (folder := self.config.control.features) is not None:
            return load_features(Path(folder), writer.launch.device).images(pictures).float().cpu()
        return latent_rows(writer.trainee.family, pictures, writer.launch.device)

    def _write(self, step: int, pictures: Sequence[Picture], is_comparable: bool) -> None:
        """Write the pictures, and a grid of them over time: a row a prompt, the base's first and today's last.

        Today's alone where the earlier ones were drawn otherwise.
        """
        self.folder.mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(self._file(step, number))
        steps = (int(path.name[1:].split("-")[0]) for path in self.folder.glob(f"s*-c{len(pictures) - 1:02d}.png"))
        drawn = sorted(other for other in steps if other <= step) if is_comparable else [step]
        shown = [drawn[i] for i in np.unique(np.linspace(0, len(drawn) - 1, _COLUMNS).round().astype(int))]
        rows = [[np.asarray(Image.open(self._file(other, n))) for other in shown] for n in range(len(pictures))]
        sets = self.prompts
        kinds = ["concept"] * len(sets.concept) + ["control"] * len(sets.control) + ["caption"] * len(sets.captions)
        labels = [f"{kind}: {prompt or '(empty)'}" for kind, prompt in zip(kinds, sets.all, strict=True)]
        names = [f"step {other}" if other else "base model" for other in shown]
        grid = labelled_grid(rows, labels, names, f"{self.config.project}, control pictures")
        Image.fromarray(grid).save(self.folder / f"s{step:06d}-grid.png")
        self.notebook.writer.launch.track_images({"control": grid}, step)

    def _file(self, step: int, number: int) -> Path:
        return self.folder / f"s{step:06d}-c{number:02d}.png"


@torch.no_grad()
def latent_rows(family: Family, pictures: Sequence[Picture], device: torch.device) -> torch.Tensor:
    """Return each picture's latents at 8 x 8 as one row (N, D)."""
    rows = []
    with looking_only(family):
        for picture in pictures:
            pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].to(device)
            latents = family.encode_images(pixels, [0]).float()
            rows.append(torch.nn.functional.adaptive_avg_pool2d(latents, _SIDE).flatten())
    return torch.stack(rows).cpu()
