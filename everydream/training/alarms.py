"""What goes wrong in a run, told once, with what to do about it.

The three rules for the loss are stated on its distance, in logarithms, from what the model had at the start at the
same noise levels (`Ledger.add`); of the plain loss a few steps say nothing, for it depends on the noise level drawn.
They look at means over windows of steps:

    diverging       a window lies at 1.5 times the start or above
    turned upwards  two windows in a row lie above the lowest one, by 5 % and by 3 standard errors
    collapsing      a window lies at a tenth of the start or below
"""

import math
from dataclasses import dataclass, field
from typing import Any

_DIVERGING, _COLLAPSING, _UPWARDS = math.log(1.5), math.log(0.1), math.log(1.05)
_ERRORS = 3.0
_DEAD_STEPS = 10
_DEAD_NORM = 1e-10
_FASTER = 3.0
"""Times the denoiser's relative movement at which a text encoder moves much faster."""
_MOVED = 1e-4
"""Relative movement below which nothing is compared."""

ADVICE = {
    "diverging": (
        "The loss is {:.0%} of what it was at the start at the same noise levels. Lower the learning rate to a half or "
        "a third, lengthen lr_schedule.warmup_steps, and go back to a checkpoint from before."
    ),
    "turned upwards": (
        "The loss has turned upwards and lies at {:.0%} of its lowest. The learning rate is too high for this stage: "
        "use lr_schedule.name: cosine or a lower rate; what was best lies behind."
    ),
    "collapsing": (
        "The loss is {:.0%} of what it was at the start: the pictures are being learned by heart, or are blank. Stop "
        "earlier, add images or ground truth, and look at the pictures of the ledger's end."
    ),
    "not finite": (
        "A loss or gradient was not a number and the step was skipped. Look at the images named beside it; where it "
        "comes again, lower the learning rates or use train.precision: fp32."
    ),
    "dead gradients": (
        "The gradients have been zero for {:.0f} steps, so nothing is learned. Look for a loss_scale or a mask of 0, "
        "or a precision too low (train.precision: fp32)."
    ),
    "text encoder too fast": (
        "A text encoder has moved {:.1f} times as far as the denoiser, relative to its weights: words will lose their "
        "meaning before pictures change. Lower text_encoder.lr, or train it for fewer epochs (text_encoder.epochs)."
    ),
}
"""Alarm -> what to do; the number is what set it off."""


@dataclass
class Alarms:
    """Watches the steps of a run; each alarm comes once."""

    window: int
    """Steps whose mean counts."""
    fired: dict[str, int] = field(default_factory=dict)
    """Alarm -> step."""
    pending: list[float] = field(default_factory=list)
    """Distances of the window that is not full yet."""
    lowest: tuple[float, float] | None = None
    """The lowest window's mean and its standard error."""
    above: int = 0
    """Windows in a row that lie above the lowest."""
    dead: int = 0
    """Steps in a row without gradients."""

    def step(self, number: int, since_start: float | None, norm: float | None, is_finite: bool) -> dict[str, float]:
        """Take in a step; return the alarms that it sets off, each with the number that did."""
        found: dict[str, float] = {}
        if not is_finite:
            found["not finite"] = 1.0
        if norm is not None:
            self.dead = self.dead + 1 if norm < _DEAD_NORM else 0
            if self.dead >= _DEAD_STEPS:
                found["dead gradients"] = float(self.dead)
        if since_start is not None and math.isfinite(since_start):
            self.pending.append(since_start)
        if len(self.pending) == self.window:
            found |= self._judge(self.pending)
            self.pending = []
        return self._new(number, found)

    def moved(self, number: int, by_part: dict[str, float], denoiser: str) -> dict[str, float]:
        """Take in how far each part has moved from the base, relative to its weights; return new alarms."""
        base = by_part.get(denoiser, 0.0)
        others = [moved for part, moved in by_part.items() if part != denoiser]
        fastest = max(others, default=0.0)
        too_fast = base > 0 and fastest > _MOVED and fastest > _FASTER * base
        return self._new(number, {"text encoder too fast": fastest / base} if too_fast else {})

    def _judge(self, distances: list[float]) -> dict[str, float]:
        mean, error = _mean_and_error(distances)
        found: dict[str, float] = {}
        if mean >= _DIVERGING:
            found["diverging"] = math.exp(mean)
        if mean <= _COLLAPSING:
            found["collapsing"] = math.exp(mean)
        if self.lowest is None or mean < self.lowest[0]:
            self.lowest, self.above = (mean, error), 0
            return found
        rise = mean - self.lowest[0]
        is_above = rise > _UPWARDS and rise > _ERRORS * math.hypot(error, self.lowest[1])
        self.above = self.above + 1 if is_above else 0
        if self.above >= 2:
            found["turned upwards"] = math.exp(rise)
        return found

    def _new(self, number: int, found: dict[str, float]) -> dict[str, float]:
        new = {name: value for name, value in found.items() if name not in self.fired}
        self.fired |= dict.fromkeys(new, number)
        return new

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return what a resume from a step needs, as plain numbers."""
        fired = {name: at for name, at in self.fired.items() if at <= step}
        lowest = list(self.lowest) if self.lowest is not None else None
        return {
            "fired": fired, "pending": list(self.pending), "lowest": lowest, "above": self.above,
            "dead": self.dead,
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take up what was saved."""
        self.fired, self.pending = dict(saved["fired"]), list(saved["pending"])[: self.window - 1]
        self.lowest = tuple(saved["lowest"]) if saved["lowest"] is not None else None
        self.above, self.dead = saved["above"], saved["dead"]


def window_of(total_steps: int) -> int:
    """Return the steps of a window: a twentieth of the run, within 10 and 200."""
    return min(max(total_steps // 20, 10), 200)


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
