"""Which point of a run is the best, and when to stop: one number from validation, preservation and bleeding.

    cost = learned + max(forgotten, bled / 4, 0)

    learned     change of the validation loss to the base model's, as a logarithm: -0.1 is a tenth learned
    forgotten   change of the preservation loss, likewise
    bled        how far control pictures moved towards the training images, 0 (as before) .. 1

Losses are those of the noisier three quarters (`measuring.Loss`). The base model costs 0; what a run never measures
counts as 0. The best point is the latest within a twentieth of the most that was won: pictures go on getting better
for a while after the loss on other images has stopped falling (docs/monitoring.md has the measurements). Forgetting and
bleeding are two views of one harm, so the worse of them counts. All is measured at fixed noise and seeds, so it does
not wander as the training loss does, and two runs of a config agree.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LEARNED, FORGOTTEN, BLED = "validation/coarse_change", "preservation/coarse_change", "control/bleed"
_QUARTER = 0.25
"""Of pictures that became training images, as much as of a quarter more loss."""
_KEPT = 0.95
"""Of what was won, as a logarithm, so that it means the same where little is won and where much is."""


@dataclass(frozen=True)
class Point:
    """A step that was measured."""

    step: int
    learned: float
    forgotten: float
    bled: float

    @property
    def cost(self) -> float:
        """What the choice goes by; less is better."""
        return self.learned + max(self.forgotten, _QUARTER * self.bled, 0.0)


@dataclass(frozen=True)
class Decision:
    """What follows from the measurements at a step."""

    is_best: bool
    """Whether it is the best so far, the base model aside."""
    stop: bool


@dataclass
class Judge:
    """Keeps what was measured, and decides. `patience` None: never stops."""

    patience: int | None
    needed: set[str] = field(default_factory=lambda: {LEARNED})
    """What a step must have to be compared: the numbers of all monitors that are on."""
    history: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step -> numbers of the monitors."""

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take in what a monitor found after a step."""
        self.history.setdefault(step, {}).update(numbers)

    def decide(self, step: int) -> Decision:
        """Return what follows after a step; nothing where not all was measured."""
        points = [point for point in points_of(self.history, self.needed) if 0 < point.step <= step]
        best = best_of(points)
        if best is None or points[-1].step != step:
            return Decision(False, False)
        since = len(points) - 1 - points.index(best)
        return Decision(best.step == step, self.patience is not None and since >= self.patience)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return what a resume from a step needs, as plain numbers."""
        return {str(at): dict(numbers) for at, numbers in self.history.items() if at <= step}

    def load_state_dict(self, saved: Mapping[str, Mapping[str, float]]) -> None:
        """Take up what was saved."""
        self.history = {int(step): dict(numbers) for step, numbers in saved.items()}


def points_of(history: Mapping[int, Mapping[str, float]], needed: Collection[str] | None = None) -> list[Point]:
    """Return the points of a run, in order: the steps at which all of `needed` was measured.

    None: all that was measured at the latest two, of which one may have failed.
    """
    if needed is None:
        latest = sorted(step for step, look in history.items() if LEARNED in look)[-2:]
        needed = {LEARNED} | {name for step in latest for name in (FORGOTTEN, BLED) if name in history[step]}
    return [
        Point(step, look[LEARNED], look.get(FORGOTTEN, 0.0), look.get(BLED, 0.0))
        for step, look in sorted(history.items())
        if all(name in look for name in needed)
    ]


def best_of(points: Sequence[Point]) -> Point | None:
    """Return the best of a run's points, given in order, the base model aside; None where nothing was measured."""
    least = least_of(points)
    if least is None or least.cost >= 0:
        return least
    return [point for point in points if point.step and point.cost <= _KEPT * least.cost][-1]


def least_of(points: Sequence[Point]) -> Point | None:
    """Return the point that costs least, the base model aside; None where nothing was measured."""
    return min((point for point in points if point.step), key=lambda point: point.cost, default=None)
