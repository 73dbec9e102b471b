"""What a run has come to: its progress at each look, its charts and verdict now and then, for they take a second."""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader

from everydream.data.looks import Looks
from everydream.review.history import History, read_history
from everydream.review.page import review_facts
from everydream.review.verdict import verdict
from everydream.training.runs import newest_run, written_at

_PATIENCE_S, _PATIENCE_STEPS = 60.0, 10.0
"""A run that has written nothing for so long, and so many of its steps, is said to have stopped writing."""
_ENDS = {"finished": "finished", "overfit": "ended by stop.when: overfit", "stopped": "stopped, and saved"}


class Progress(NamedTuple):
    """Where a run stands, in words."""

    state: str
    lost: bool
    """Whether it should have written by now."""
    step: int
    total: int
    facts: Mapping[str, str]


def progress_of(history: History, written_s: float, now_s: float) -> Progress:
    """Return where a run stands that last wrote at `written_s`; both in seconds since 1970."""
    rate, step, total = _seconds_per_step(history, written_s), history.last_step, history.total_steps
    silent = now_s - written_s
    lost = history.ended is None and silent > max(_PATIENCE_S, _PATIENCE_STEPS * (rate or 0.0))
    facts = {"step": f"{step:,} of {total:,}"}
    if rate is not None:
        facts["rate"] = f"about {rate:.2g} s a step" if rate >= 1 else f"about {1 / rate:.2g} steps a second"
    if rate is not None and history.ended is None and not lost:
        facts["left"] = f"about {_duration((total - step) * rate)}"
    if history.steps and "loss" in history.steps[-1]:
        facts["loss"] = f"{history.steps[-1]['loss']:.4f}"
    facts["last written"] = f"{_duration(silent)} ago"
    if history.alarms:
        facts["alarms"] = ", ".join(dict.fromkeys(str(alarm.get("alarm")) for alarm in history.alarms))
    state = _ENDS[history.ended] if history.ended else "going on"
    if lost:
        state = "has stopped writing: it was killed, or it is in a long step"
    return Progress(state, lost, step, total, facts)


def _seconds_per_step(history: History, written_s: float) -> float | None:
    """Return how long a step has taken since the run was started or gone on with; None where nothing tells."""
    starts = [event for event in history.events if event.get("event") in ("started", "resumed")]
    try:
        began_s = datetime.strptime(str(starts[-1]["time"]), "%Y-%m-%dT%H:%M:%S%z").timestamp()
        steps = history.last_step - int(starts[-1].get("step", 0))
    except (IndexError, KeyError, ValueError, TypeError):
        return None
    return (written_s - began_s) / steps if steps > 0 and written_s > began_s else None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Watch:
    """Follows one run, or the newest of a project."""

    def __init__(
        self, runs_dir: Path, project: str, run: Path | None, cache: Path | None, body_s: float = 15.0
    ) -> None:
        self._place = (runs_dir, project, run)
        self._cache, self._body_s = cache, body_s
        self._known: tuple[object, History] | None = None
        self._body, self._stamp, self._drawn_s = "", "", float("-inf")
        self._lock = Lock()
        environment = Environment(
            loader=ChoiceLoader([PackageLoader("everydream.studio", ""), PackageLoader("everydream.review", "")]),
            autoescape=True, trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._page, self._top = (environment.get_template(f"{name}.html.jinja") for name in ("run", "progress"))
        self._review = environment.get_template("body.html.jinja")

    def page(self) -> str:
        """Return the page, which asks for its parts."""
        return str(self._page.render())

    def now(self, have: str) -> dict[str, Any]:
        """Return the parts of the page as they are now; no body where the page `have`s it. Raises ConfigError."""
        with self._lock:  # two pages that are open ask one after the other
            runs_dir, project, wanted = self._place
            run = wanted or newest_run(runs_dir, project)
            if run is None:
                return {"stamp": "", "title": "no run yet", "progress": self._top.render(run=None), "body": None}
            written_s = written_at(run)
            history = self._history(run, written_s)
            self._draw(history)
            return {
                "stamp": self._stamp, "title": run.name,
                "progress": self._top.render(run=run.name, now=progress_of(history, written_s, time.time())),
                "body": self._body if have != self._stamp else None,
            }  # fmt: skip

    def _history(self, run: Path, written_s: float) -> History:
        as_of = (run, written_s, (run / "metrics.jsonl").stat().st_size if (run / "metrics.jsonl").exists() else 0)
        if self._known is None or self._known[0] != as_of:
            self._known = as_of, read_history(run)
        return self._known[1]

    def _draw(self, history: History) -> None:
        """Draw charts and verdict anew if there is something new, and not all the time: the run needs the machine."""
        pictures = [path.name for folder in ("samples", "control") for path in history.pictures(folder)]
        stamp = f"{history.run.name} {history.last_step} {len(history.looks)} {len(history.events)} {len(pictures)}"
        since = time.monotonic() - self._drawn_s
        same_run = self._stamp.startswith(f"{history.run.name} ")
        if stamp == self._stamp or (same_run and since < self._body_s and not history.ended):
            return
        with Looks(self._cache) as looks:
            self._body = self._review.render(**review_facts(history, verdict(history), looks))
        self._stamp, self._drawn_s = stamp, time.monotonic()
