"""What looks at a run from outside: losses on fixed images, how far the weights moved, control pictures.

Each is a callable for the loop. All processes enter, the main one does the work; what it finds goes to metrics.jsonl,
the trackers, the judge and the user.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch

from everydream.config import RunConfig
from everydream.errors import DataError
from everydream.evaluation import measuring
from everydream.evaluation.heldout import Measured
from everydream.evaluation.judging import Judge
from everydream.models.common.additions import added_names
from everydream.outputs import Writer
from everydream.training.alarms import ADVICE, Alarms
from everydream.training.metrics import JsonLines

_SAMPLED = 65_536
"""Weights of a part by which its movement is told."""


@dataclass
class Notebook:
    """Where the monitors' findings go."""

    writer: Writer
    metrics: JsonLines
    judge: Judge
    alarms: Alarms

    def write(self, step: int, numbers: Mapping[str, float], images: Mapping[str, int]) -> None:
        """Write a line of metrics.jsonl, and tell the trackers and the judge."""
        self.metrics.write({"step": step, **numbers, **images})
        self.writer.launch.track(numbers, step)
        self.judge.note(step, numbers)

    def sound(self, step: int, found: Mapping[str, float]) -> None:
        """Tell of alarms: the user, events.jsonl and the trackers."""
        writer = self.writer
        for name, value in found.items():
            advice = ADVICE[name].format(value)
            writer.events.note("alarm", step=step, alarm=name, value=value, advice=advice)
            writer.display.say(f"Alarm at step {step}, {name}: {advice}")
        if found:
            writer.launch.track({f"alarm/{name.replace(' ', '_')}": value for name, value in found.items()}, step)


@dataclass(frozen=True)
class Monitor:
    """Measures the losses of one or two sets of images."""

    name: str
    """preservation or validation; the latter measures `train` beside it."""
    config: RunConfig
    watched: Mapping[str, Measured]
    """By the name that the numbers get."""
    timesteps: int
    images: str
    """What the images are called to the user."""
    notebook: Notebook

    def __call__(self, step: int) -> None:
        """Measure the weights as they are after `step` steps; before the first one they are the base."""
        writer = self.notebook.writer
        wanted = {identity for measured in self.watched.values() for identity in measured.identities}
        if step == 0 and writer.base.keys() >= wanted and step in self.notebook.judge.history:
            return  # resumed from before the first step: the base is known, and its line is written
        passes: list[tuple[str, Mapping[str, Measured], AbstractContextManager[None]]]
        passes = [("", self.watched, writer.shown_weights())]
        if (others := writer.other_weights()) is not None and step > 0 and self.name == "validation":
            name, weights = others
            passes.append((f"_{name}", {"validation": self.watched["validation"]}, weights))
        found: dict[str, measuring.Change] = {}
        failed: Exception | None = None
        for suffix, watched, weights in passes:
            # The other processes enter every pass, so the main one does, whatever went wrong in one before.
            try:
                changes = self._changes(step, watched, weights)
                found |= {f"{name}{suffix}": change for name, change in changes.items()}
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        if not writer.launch.is_main:
            return
        numbers = {key: value for name, change in found.items() for key, value in change.numbers(name).items()}
        if {"validation", "train"} <= found.keys():
            numbers |= _gap(found["validation"], found["train"])
        self.notebook.write(step, numbers, {f"{name}/images": change.num for name, change in found.items()})
        writer.display.say(found[self.name].describe(self.name.capitalize(), step, self.images))
        if "overfit/gap" in numbers and step > 0:
            gap, margin = 100 * numbers["overfit/gap"], numbers.get("overfit/margin")
            doubt = "" if margin is None else f" ± {100 * margin:.1f}"
            shown = (
                "nothing is shown" if margin is not None and abs(gap) <= 100 * margin else "above 0: learned by heart"
            )
            writer.display.say(f"Over-fit gap at step {step}: {gap:+.1f}{doubt} % ({shown})")

    def _changes(
        self, step: int, watched: Mapping[str, Measured], weights: AbstractContextManager[None]
    ) -> dict[str, measuring.Change]:
        """Measure with these weights; nothing on other processes than the main one."""
        writer = self.notebook.writer
        found: dict[str, measuring.Change] = {}
        with weights, writer.launch.autocast():
            if not writer.launch.is_main:
                return found
            for name, measured in watched.items():
                losses, failed = measuring.losses(
                    writer.trainee.family, measured, self.config.data, self.config.seed, self.timesteps,
                    writer.launch.device,
                )  # fmt: skip
                for rejection in failed:
                    what = self.name.capitalize()
                    writer.display.say(f"{what}: {rejection.path} cannot be measured: {rejection.reason}")
                if not losses:
                    raise DataError("none of the images can be read")
                if step == 0:
                    writer.base.update(losses)
                found[name] = measuring.compare(losses, writer.base)
        return found


def _gap(validation: measuring.Change, train: measuring.Change) -> dict[str, float]:
    """Return how much further the loss fell on training images than beyond them, with half its 95 % interval.

    In logarithms, for the two sets need not have had the same loss: 0.1 is a tenth.
    """
    if validation.coarse_change is None or train.coarse_change is None:
        return {}
    numbers = {"overfit/gap": validation.coarse_change - train.coarse_change}
    if validation.coarse_margin is not None and train.coarse_margin is not None:
        numbers["overfit/margin"] = math.hypot(validation.coarse_margin, train.coarse_margin)
    return numbers


@dataclass
class Movement:
    """Measures how far each part's own weights have moved from the base, relative to their size."""

    notebook: Notebook
    denoiser: str
    base: dict[str, torch.Tensor] = field(default_factory=dict)
    """Some weights of each part as they were before training; saved, so that a resume compares with the same."""

    def __call__(self, step: int) -> None:
        """Write `moved/<part>` after `step` steps; on a sample of the weights, spread evenly."""
        writer = self.notebook.writer
        with writer.shown_weights():
            if not writer.launch.is_main:
                return
            now = self._sample()
        if step == 0:
            self.base = now
            return
        moved = {
            part: float((values - self.base[part]).norm() / self.base[part].norm())
            for part, values in now.items()
            if part in self.base and values.shape == self.base[part].shape and self.base[part].norm() > 0
        }
        if not moved:
            return  # the base is not known: resumed from an older version's checkpoint
        self.notebook.write(step, {f"moved/{part}": value for part, value in moved.items()}, {})
        self.notebook.sound(step, self.notebook.alarms.moved(step, moved, self.denoiser))

    def _sample(self) -> dict[str, torch.Tensor]:
        trainee = self.notebook.writer.trainee
        trained = {name for group in trainee.groups for name in group.names}
        sampled = {}
        for part, network in trainee.family.modules().items():
            added = added_names(network)
            own = [p for name, p in network.named_parameters() if f"{part}.{name}" in trained and name not in added]
            if own:
                stride = max(sum(parameter.numel() for parameter in own) // _SAMPLED, 1)
                values = [p.detach().flatten()[::stride].float().cpu() for p in own]
                sampled[part] = torch.cat(values)
        return sampled
