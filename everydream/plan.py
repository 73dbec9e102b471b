"""From settings to a plan: what `everydream inspect` shows and `everydream train` does."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everydream.config import RunConfig
from everydream.data.buckets import Buckets, choose_buckets, joined
from everydream.data.mix import Mix, make_mix
from everydream.data.plan import count_steps, plan_epoch
from everydream.data.scan import require_usable, scan
from everydream.errors import ConfigError, DataError
from everydream.evaluation.heldout import Measured, measured_images, require_enough
from everydream.models.family import Family
from everydream.types import EpochPlan, Index


@dataclass(frozen=True)
class Planned:
    """The images of a run and how they are drawn."""

    config: RunConfig
    index: Index
    mix: Mix
    buckets: Buckets
    steps_per_epoch: list[int]
    measured: Measured | None = None
    """What the preservation monitor measures; None: it is off."""

    def held_out(self) -> NDArray[np.bool_]:
        """Return for each record of the index whether it is held out of training."""
        held_out_N = np.zeros(len(self.index), np.bool_)
        if self.measured is not None:
            held_out_N[self.measured.held_out] = True
        return held_out_N

    def apart(self) -> list[Index]:
        """Return the images that are measured and not among the run's own."""
        return [self.measured.index] if self.measured is not None and self.config.preservation.path is not None else []

    def bucket_of_each(self, resolution: int = 0) -> list[tuple[int, int]]:
        """Return each image's bucket at the n-th resolution; the one it is measured in if it is held out."""
        bucket_N = self.buckets.assign(self.index.width_N, self.index.height_N, resolution)
        sizes = [self.buckets.sizes[int(bucket)] for bucket in bucket_N]
        if self.measured is not None:
            for record, size in zip(self.measured.held_out.tolist(), self.measured.sizes(), strict=False):
                sizes[record] = size
        return sizes

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps, bound = sum(self.steps_per_epoch), self.config.train.max_steps
        return steps if bound is None else min(steps, bound)

    def epoch(self, number: int) -> EpochPlan:
        """Return the plan of one epoch."""
        return plan_epoch(
            self.index,
            self.mix,
            self.buckets,
            seed=self.config.seed,
            epoch=number,
            batch_size=self.config.train.batch_size,
            accumulation=self.config.train.gradient_accumulation,
        )


def plan_run(config: RunConfig, progress: Callable[[int, int], None] | None = None, check: bool = True) -> Planned:
    """Scan the images and plan the run; `check` refuses a set with nothing usable, or with rejections if strict.

    Raises DataError, and ConfigError where more is to be held out than there is.
    """
    index = scan(config.data, config.captions, progress)
    if check:
        require_usable(index, config.data.strict)
        require_enough(index, config.data.sources, config.preservation)
    measured = measured_images(index, config.preservation, config.data, config.captions, config.seed, progress)
    held_out = measured.held_out if measured is not None else ()
    mix = make_mix(index, config.data.sources, config.seed, held_out)
    batch_size, accumulation = config.train.batch_size, config.train.gradient_accumulation
    shares = [share for _, share in config.data.resolutions]
    buckets = joined(
        [
            choose_buckets(
                index.width_N, index.height_N, mix.mean_counts() * share, resolution=resolution,
                step=config.data.step_at(resolution), max_aspect=config.data.max_aspect, batch_size=batch_size,
            )
            for resolution, share in config.data.resolutions
        ],
        shares,
    )  # fmt: skip
    steps = [
        count_steps(
            index, mix, buckets, seed=config.seed, epoch=epoch, batch_size=batch_size, accumulation=accumulation
        )
        for epoch in range(config.train.epochs)
    ]
    if check and not sum(steps):
        raise DataError(
            f"{len(index)} images are usable, but none would be drawn: the repeats of every source and folder "
            "come to 0. Give at least one source repeats above 0."
        )
    return Planned(config, index, mix, buckets, steps, measured)


def require_fitting_buckets(buckets: Buckets, family: Family) -> None:
    """Raise ConfigError when a bucket's sides are not a whole number of latents."""
    multiple = family.side_multiple
    for width, height in buckets.sizes:
        if width % multiple or height % multiple:
            raise ConfigError(
                f"data.bucket_step: the bucket {width}x{height} does not fit this model, whose image sides must be "
                f"multiples of {multiple}. Set data.bucket_step to {multiple} or a multiple of it."
            )
