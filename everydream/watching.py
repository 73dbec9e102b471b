"""All that watches a run, put together: what looks and how often, what it remembers, what follows.

losses of every step -> ledger, alarms
looks on a cadence   -> validation, preservation, movement, control pictures -> judge -> keep the best, stop
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.control import ControlPictures, prompt_sets
from everydream.data.digests import keys_of
from everydream.evaluation.heldout import Role, evenly, measured_records, of_role
from everydream.evaluation.judging import BLED, FORGOTTEN, LEARNED, Decision, Judge, best_of, points_of
from everydream.formats.atomic import atomic_file
from everydream.monitors import Monitor, Movement, Notebook
from everydream.outputs import Sampler, Writer
from everydream.plan import Planned, every_epochs, monitors_of
from everydream.training.alarms import Alarms, window_of
from everydream.training.ledger import Ledger
from everydream.training.loop import Look
from everydream.training.metrics import JsonLines
from everydream.training.runs import LEDGER

_LISTED = 500
_IMAGES = {"preservation": "held-out images", "validation": "held-out images of the subject"}


@dataclass
class Watching:
    """What watches a run, and its memory."""

    planned: Planned
    writer: Writer
    run: Path
    ledger: Ledger
    notebook: Notebook
    movement: Movement
    control: ControlPictures | None
    sampler: Sampler

    def looks(self) -> list[Look]:
        """Return the looks in their order: numbers first, for what is decided by; then pictures."""
        planned, config = self.planned, self.planned.config
        found = []
        for name, settings in monitors_of(config).items():
            if name in planned.watched:
                names = ("validation", "train") if name == "validation" else (name,)
                images = _IMAGES[name] if settings.path is None else "images"
                watched = {key: planned.watched[key] for key in names}
                monitor = Monitor(name, config, watched, settings.timesteps, images, self.notebook)
                found.append(Look(name, monitor, settings.every_steps, every_epochs(planned, name)))
        trained = {name.split(".")[0] for group in self.writer.trainee.groups for name in group.names}
        if len(trained) > 1:
            found.append(Look("movement", self.movement, every_epochs=1))
        if self.control is not None:
            found.append(Look("control pictures", self.control, config.control.every_steps))
        if config.samples.every_steps is not None:
            found.append(Look("sampling", self.sampler, config.samples.every_steps))
        return [*found, Look("ledger", self.write_ledger, every_epochs=1)]

    def decide(self, step: int) -> Decision:
        """Return what follows after a step; the best is exported only where the settings say so."""
        decision = self.notebook.judge.decide(step)
        return Decision(decision.is_best and self.planned.config.checkpoints.keep_best, decision.stop)

    def best_of(self, steps: Collection[int]) -> int | None:
        """Return the best of some steps where the best is to be kept."""
        if not self.planned.config.checkpoints.keep_best:
            return None
        judge = self.notebook.judge
        points = points_of(judge.history, judge.needed)
        best = best_of(points)
        if best is not None and best.step not in steps:  # its export could not be written, or was taken away
            best = best_of([point for point in points if point.step in steps])
        return best.step if best is not None else None

    def alarm(self, step: int, since_start: float | None, norm: float | None, is_finite: bool) -> None:
        """Take in a step, and tell of what is wrong."""
        self.notebook.sound(step, self.notebook.alarms.step(step, since_start, norm, is_finite))

    def write_ledger(self, step: int) -> None:
        """Write the images whose loss stands out."""
        if not step or not self.writer.launch.is_main:
            return
        high, fallen = self.ledger.standing_out(_LISTED)
        content = {
            "step": step,
            "images": int((self.ledger.judged_N > 0).sum()),
            "high": [asdict(entry) for entry in high],
            "fallen": [asdict(entry) for entry in fallen],
        }
        with atomic_file(self.run / LEDGER) as partial:
            partial.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    def state(self, step: int) -> dict[str, Any]:
        """Return what a resume needs, as of a step."""
        return {
            "ledger": self.ledger.state_dict(),
            "alarms": self.notebook.alarms.state_dict(step),
            "judge": self.notebook.judge.state_dict(step),
            "movement": self.movement.base,
            "control": self.control.base if self.control is not None else {},
        }

    def load(self, saved: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Take up what was saved; `keys`: of the images then, in their order."""
        if not saved:
            return  # of an older version, which remembered nothing
        self.ledger.load_state_dict(saved["ledger"], keys)
        self.notebook.alarms.load_state_dict(saved["alarms"])
        self.notebook.judge.load_state_dict(saved["judge"])
        self.movement.base = saved["movement"]
        if self.control is not None:
            self.control.base = saved["control"]
            if not self.control.is_comparable:
                self.notebook.judge.needed -= {BLED}


def make_watching(planned: Planned, writer: Writer, metrics: JsonLines, run: Path, sampler: Sampler) -> Watching:
    """Return all that watches a run, with an empty memory."""
    config = planned.config
    needed = {LEARNED} | ({FORGOTTEN} if "preservation" in planned.watched else set())
    if config.control.every_steps is not None and config.control.control != []:
        needed |= {BLED}
    judge = Judge(config.stop.patience if config.stop.when is not None else None, needed)
    notebook = Notebook(writer, metrics, judge, Alarms(window_of(planned.total_steps)))
    movement = Movement(notebook, writer.trainee.family.denoiser)
    control = None
    if config.control.every_steps is not None:
        captions = {"training": _captions(planned, "training"), "ground_truth": _captions(planned, "ground_truth")}
        prompts = prompt_sets(config, captions)
        compared = evenly(_trained(planned, "training"), config.control.compared)
        training = measured_records(planned.index, compared, config.data, config.seed, 1)
        control = ControlPictures(config, run / "control", prompts, training, sampler, notebook)
    ledger = Ledger(keys_of(planned.index), planned.index.source_N)
    return Watching(planned, writer, run, ledger, notebook, movement, control, sampler)


def _trained(planned: Planned, role: Role) -> NDArray[np.int64]:
    records = of_role(planned.index, planned.config.data.sources, role)
    return records[~planned.held_out()[records]]


def _captions(planned: Planned, role: Role) -> list[str]:
    index = planned.index
    return [index.captions[int(index.caption_offsets[record])] for record in _trained(planned, role).tolist()]
