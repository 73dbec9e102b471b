"""A run's folder as values. Reads what is there: a run may be going on, or have ended in the middle of a line."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from everydream.errors import ConfigError
from everydream.training.runs import LEDGER, MARKER, PLAN

Line = dict[str, Any]


@dataclass(frozen=True)
class History:
    """What a run has written so far."""

    run: Path
    config: Line
    plan: Line
    """Sources, draws, near duplicates, steps in all; empty for runs of older versions."""
    steps: list[Line]
    """A line a step, in order."""
    looks: dict[int, Line]
    """Step -> numbers of all monitors."""
    events: list[Line]
    ledger: Line = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The last step done."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def alarms(self) -> list[Line]:
        """The alarms, in order."""
        return [event for event in self.events if event.get("event") == "alarm"]

    @property
    def ended(self) -> str | None:
        """How it ended: finished, overfit, stopped; None: it did not, or is going on."""
        started = [n for n, event in enumerate(self.events) if event.get("event") in ("started", "resumed")]
        lately = self.events[started[-1] :] if started else self.events
        kinds = {str(event.get("event")) for event in lately}
        if "stopping" in kinds:
            return "overfit"
        return next((kind for kind in ("finished", "stopped") if kind in kinds), None)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, where that is known."""
        return int(self.plan.get("total_steps", self.last_step))

    def pictures(self, folder: str) -> list[Path]:
        """Return the grids of samples or of control pictures, the earliest first."""
        return sorted((self.run / folder).glob("s*-grid.png"))


def read_history(run: Path) -> History:
    """Read a run folder. Raises ConfigError for a folder that is none."""
    if not (run / MARKER).is_file():
        raise ConfigError(f"{run} is not a run folder of EveryDream: it has no {MARKER}. Give one below runs_dir.")
    lines = _lines(run / "metrics.jsonl")
    looks: dict[int, Line] = {}
    for line in lines:
        if "epoch" not in line:
            looks.setdefault(int(line["step"]), {}).update(line)
    return History(
        run=run,
        config=_read(run / "config.yaml", yaml.safe_load),
        plan=_read(run / PLAN, json.loads),
        steps=[line for line in lines if "epoch" in line],
        looks=looks,
        events=_lines(run / "events.jsonl"),
        ledger=_read(run / LEDGER, json.loads),
    )


def _lines(path: Path) -> list[Line]:
    """Return the whole lines of a file; the last one may be under way."""
    found = []
    if path.is_file():
        # Not splitlines(): a file name in a line may hold one of Unicode's other line ends.
        for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                line = json.loads(text)
            except ValueError:
                continue
            found += [line] if isinstance(line, dict) else []
    return found


def _read(path: Path, parse: Callable[[str], Any]) -> Line:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
