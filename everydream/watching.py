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

from everydream.config import RunConfig
from everydream.control import ControlPictures, prompt_sets
from everydream.evaluation.heldout import measured_records
from everydream.evaluation.judging import BLED, FORGOTTEN, LEARNED, Decision, Judge, best_of
from everydream.formats.atomic import atomic_file
from everydream.monitors import Monitor, Movement, Notebook
from everydream.outputs import Sampler, Writer
from everydream.plan import Planned, every_epochs, monitors_of
from everydream.training.alarms import Alarms, window_of
from everydream.training.ledger import Ledger
from everydream.training.loop import Look
from everydream.training.metrics import JsonLines

LEDGER = "ledger.json"
_LISTED = 500
_IMAGES = {"preservation": "held-out images", "validation": "held-out images of the subject"}


@dataclass
class Watching:
    """What watches a run, and its memory."""

    config: RunConfig
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
        planned, samples = self.planned, self.config.samples
        found = []
        for name, settings in monitors_of(self.config).items():
            if name in planned.watched:
                names = ("validation", "train") if name == "validation" else (name,)
                images = _IMAGES[name] if settings.path is None else "images"
                watched = {key: planned.watched[key] for key in names}
                monitor = Monitor(name, self.config, watched, settings.timesteps, images, self.notebook)
                found.append(Look(name, monitor, settings.every_steps, every_epochs(planned, name)))
        trained = {name.split(".")[0] for group in self.writer.trainee.groups for name in group.names}
        if len(trained) > 1:
            found.append(Look("movement", self.movement, every_epochs=1))
        if self.control is not None:
            found.append(Look("control pictures", self.control, self.config.control.every_steps))
        if samples.every_steps is not None:
            found.append(Look("sampling", self.sampler, samples.every_steps))
        return [*found, Look("ledger", self.write_ledger, every_epochs=1)]

    def decide(self, step: int) -> Decision:
        """Return what follows after a step; the best is exported only where the settings say so."""
        decision = self.notebook.judge.decide(step)
        return Decision(decision.is_best and self.config.checkpoints.keep_best, decision.stop)

    def best_of(self, steps: Collection[int]) -> int | None:
        """Return the best of some steps where the best is to be kept."""
        judge = self.notebook.judge
        history = {step: numbers for step, numbers in judge.history.items() if step in steps}
        best = best_of(history, judge.needed) if self.config.checkpoints.keep_best else None
        return best.step if best is not None else None

    def alarm(self, step: int, since_start: float | None, norm: float | None, is_finite: bool) -> None:
        """Take in a step, and tell of what is wrong."""
        self.notebook.sound(step, self.notebook.alarms.step(step, since_start, norm, is_finite))

    def write_ledger(self, step: int) -> None:
        """Write the images whose loss stands out."""
        if not step or not self.writer.launch.is_main:
            return
        entries = self.ledger.entries()
        fallen = sorted(entries, key=lambda entry: -entry.fallen)
        content = {
            "step": step,
            "images": len(entries),
            "high": [asdict(entry) for entry in entries[:_LISTED]],
            "fallen": [asdict(entry) for entry in fallen[:_LISTED]],
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


def make_ledger(planned: Planned) -> Ledger:
    """Return an empty ledger of the run's images."""
    index = planned.index
    return Ledger([index.key(record) for record in range(len(index))], index.source_N)


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
        prompts = prompt_sets(config, {role: _captions(planned, role) for role in ("training", "ground_truth")})
        compared = _compared(planned)
        training = measured_records(planned.index, compared, config.data, config.seed, 1)
        control = ControlPictures(config, run / "control", prompts, training, sampler, notebook)
    return Watching(config, planned, writer, run, make_ledger(planned), notebook, movement, control, sampler)


def _records(planned: Planned, role: str) -> NDArray[np.int64]:
    numbers = [n for n, source in enumerate(planned.config.data.sources) if source.role == role]
    return np.flatnonzero(np.isin(planned.index.source_N, numbers) & ~planned.held_out())


def _compared(planned: Planned) -> NDArray[np.int64]:
    """Return training records, evenly spread, that pictures are compared with."""
    records, most = _records(planned, "training"), planned.config.control.compared
    return records[np.linspace(0, len(records) - 1, min(len(records), most)).round().astype(np.int64)]


def _captions(planned: Planned, role: str) -> list[str]:
    index = planned.index
    return [index.captions[int(index.caption_offsets[record])] for record in _records(planned, role).tolist()]
