"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume."""

import math
from collections.abc import Callable

from everydream.training.settings import LrScheduleSettings


def lr_factor(settings: LrScheduleSettings, step: int, total_steps: int) -> float:
    """Return the factor on the peak rate for optimizer step `step` (from 0) of `total_steps`.

    The formulas are those of `diffusers.optimization`: linear warm-up from 0, then the shape over
    the remaining steps.
    """
    if step < settings.warmup_steps:
        return step / settings.warmup_steps
    progress = min((step - settings.warmup_steps) / max(1, total_steps - settings.warmup_steps), 1.0)
    return _SHAPES[settings.name](progress, settings.power)


_SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, power: 1.0,
    "linear": lambda progress, power: 1.0 - progress,
    "cosine": lambda progress, power: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "polynomial": lambda progress, power: (1.0 - progress) ** power,
}
