"""What a step gave, over all processes: read when it is there, while the device computes the next one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from everydream.data.loader import Loaded
from everydream.training.launch import Launch
from everydream.training.stepping import Stepped
from everydream.types import Progress, Rejection

NOT_FINITE = "loss or gradients are not finite"
BY_SCALER = "the fp16 loss scaler is finding its scale"
NO_IMAGES = "no image of the step could be read"
_QUARTERS = ("0-25", "25-50", "50-75", "75-100")
"""Per cent of noise. A loss is small where there is much of it, so only like can be compared with like."""


@dataclass(frozen=True)
class Gathered:
    """What a step gave, over all processes."""

    losses: list[float]
    levels: list[float]
    """Noise level of each image, 0 (clean) .. 1 (noise)."""
    weights: list[float]
    """What each image's loss was multiplied by."""
    keys: list[str]
    records: list[int]
    """Where they stand in the index."""
    failed: list[Rejection]
    norm: float | None
    """Of all gradients together, before clipping; None where the step was skipped."""
    skipped: str | None
    """Why nothing changed, if so."""
    stop: int | None
    """The signal that asks some process to stop."""
    is_time: bool
    """Whether the main process's clock asks for a save."""

    def not_finite(self) -> list[str]:
        """Return the images whose loss is not a number."""
        return sorted({k for k, loss in zip(self.keys, self.losses, strict=True) if not math.isfinite(loss)})

    @property
    def mean(self) -> float:
        """The mean loss per image. fsum is exact, so the order of processes and batches does not matter."""
        return math.fsum(self.losses) / len(self.losses)

    def numbers(self) -> dict[str, float]:
        """Return the step's numbers: the mean loss, the same by quarters of the noise levels, the mean weight."""
        found = {"loss": self.mean}
        for number, name in enumerate(_QUARTERS):
            mine = [x for x, level in zip(self.losses, self.levels, strict=True) if min(int(level * 4), 3) == number]
            if mine:
                found[f"loss/noise_{name}"] = math.fsum(mine) / len(mine)
        return {**found, "loss_weight": math.fsum(self.weights) / len(self.weights)}


class Arriving:
    """Numbers on their way from the device; what is behind them in its queue is not waited for."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._event = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[float]:
        """Wait for the numbers and return them."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers


@dataclass(frozen=True)
class Submitted:
    """A step that was sent to the device."""

    before: Progress
    after: Progress
    """As if all of its images could be read."""
    loaded: Sequence[Loaded]
    """What it was made of on this process."""
    rates: Mapping[str, float]
    """Learning rates, and what else the optimizer went by, as metrics.jsonl names them."""
    numbers: Arriving
    by_scaler: bool

    @classmethod
    def of(
        cls,
        before: Progress,
        after: Progress,
        loaded: Sequence[Loaded],
        rates: Mapping[str, float],
        results: Sequence[torch.Tensor],
        stepped: Stepped,
    ) -> "Submitted":
        """`results`: (3, images) of each part: losses, noise levels, weights."""
        outcome = torch.stack([stepped.norm.to(results[0]), stepped.skipped.to(results[0])])
        return cls(
            before, after, loaded, rates,
            Arriving(torch.cat([torch.cat(list(results), 1).flatten(), outcome])), stepped.by_scaler,
        )  # fmt: skip

    def gather(self, launch: Launch, stop: int | None, is_time: bool) -> Gathered:
        """Return what all processes have, as plain numbers. `stop` and `is_time`: what this one wants done now."""
        keys = [key for loaded in self.loaded for key in loaded.batch.keys[: loaded.batch.num_real]]
        records = [record for loaded in self.loaded for record in loaded.records]
        failed = [rejection for loaded in self.loaded for rejection in loaded.failed]
        *results, norm, skipped = self.numbers.read()
        rows = [results[row * len(keys) : (row + 1) * len(keys)] for row in range(3)]
        everyone = launch.gather((rows, (keys, records), failed, stop, is_time))
        losses, levels, weights = ([x for part in everyone for x in part[0][row]] for row in range(3))
        why = self._why(losses) if skipped else None
        return Gathered(
            losses=losses,
            levels=levels,
            weights=weights,
            keys=[key for part in everyone for key in part[1][0]],
            records=[record for part in everyone for record in part[1][1]],
            failed=[rejection for part in everyone for rejection in part[2]],
            norm=norm if why is None else None,
            skipped=why,
            stop=next((part[3] for part in everyone if part[3] is not None), None),
            is_time=everyone[0][4],
        )

    def _why(self, losses: Sequence[float]) -> str:
        if not losses:
            return NO_IMAGES
        return BY_SCALER if self.by_scaler and all(math.isfinite(loss) for loss in losses) else NOT_FINITE
