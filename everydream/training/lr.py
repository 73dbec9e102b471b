"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to resume."""

import math
from collections.abc import Callable

from everydream.training.settings import LrScheduleSettings

_START, _END = 1 / 25, 1 / 25 / 1e4
"""Where one-cycle begins and ends, in parts of the peak: PyTorch's div_factor and final_div_factor."""
_RISE = 0.3
"""One-cycle's share of the run before the peak where the settings give none: PyTorch's pct_start."""


def warmup_steps(settings: LrScheduleSettings, total_steps: int) -> int:
    """Return the steps of the warm-up of a run of `total_steps`."""
    share = settings.warmup_share
    if settings.name == "one_cycle" and share is None and not settings.warmup_steps:
        share = _RISE
    return settings.warmup_steps if share is None else round(share * total_steps)


def lr_factor(settings: LrScheduleSettings, step: int, total_steps: int) -> float:
    """Return the factor on the peak rate for optimizer step `step` (from 0) of `total_steps`.

    Constant, linear, cosine and polynomial are those of `diffusers.optimization`: linear warm-up from 0, then the
    shape over the remaining steps. Rex is Chen et al. 2021 (arXiv 2107.04197), one-cycle is Smith and Topin 2017
    (arXiv 1708.07120) as PyTorch's OneCycleLR has it.
    """
    warmup = warmup_steps(settings, total_steps)
    if settings.name == "one_cycle":
        return _one_cycle(step, warmup, total_steps)
    if step < warmup:
        return step / warmup
    progress = min((step - warmup) / max(1, total_steps - warmup), 1.0)
    return settings.min_factor + (1.0 - settings.min_factor) * _SHAPES[settings.name or "cosine"](progress, settings)


def _one_cycle(step: int, warmup: int, total_steps: int) -> float:
    """Return PyTorch's OneCycleLR: half a cosine up to the peak in the warm-up's last step, another one down."""
    peak, last = warmup - 1, total_steps - 1
    if step <= peak:
        return _between(_START, 1.0, step / peak if peak else 1.0)
    return _between(1.0, _END, min((step - peak) / max(1, last - peak), 1.0))


def _between(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1.0 + math.cos(math.pi * progress))


def _cosine(progress: float, settings: LrScheduleSettings) -> float:
    # At the very end the cycle is over, and does not start again.
    return 0.0 if progress >= 1.0 else 0.5 * (1.0 + math.cos(math.pi * (settings.cycles * progress % 1.0)))


_SHAPES: dict[str, Callable[[float, LrScheduleSettings], float]] = {
    "constant": lambda progress, s: 1.0,
    "linear": lambda progress, s: 1.0 - progress,
    "cosine": _cosine,
    "polynomial": lambda progress, s: float((1.0 - progress) ** s.power),
    "rex": lambda progress, s: (1.0 - progress) / (1.0 - progress / 2.0),
}
