"""From settings to a plan: what `everydream inspect` shows and `everydream train` does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from everydream.config import RunConfig
from everydream.data.buckets import Buckets, choose_buckets, joined
from everydream.data.likeness import twins
from everydream.data.mix import Mix, make_mix
from everydream.data.plan import count_steps, plan_epoch
from everydream.data.scan import require_usable, scan
from everydream.errors import ConfigError, DataError
from everydream.evaluation.cadence import epochs_between, passes
from everydream.evaluation.heldout import OWN_SOURCE, Measured, Monitored, require_enough, watched_images
from everydream.evaluation.settings import PreservationSettings, ValidationSettings
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
    watched: Mapping[str, Measured] = field(default_factory=dict)
    """What is measured, by monitor: preservation, validation, train; those that are on."""
    kin: Sequence[Sequence[int]] = ()
    """Records that show the same picture, where that was looked for."""

    def held_out(self) -> NDArray[np.bool_]:
        """Return for each record of the index whether it is held out of training."""
        held_out_N = np.zeros(len(self.index), np.bool_)
        for measured in self.watched.values():
            held_out_N[measured.held_out] = True
        return held_out_N

    def apart(self) -> list[Index]:
        """Return the images that are measured and not among the run's own."""
        own = set(OWN_SOURCE.values())
        return [measured.index for measured in self.watched.values() if own & set(measured.index.names)]

    def bucket_of_each(self, resolution: int = 0) -> list[tuple[int, int]]:
        """Return each image's bucket at the n-th resolution; the one it is measured in if it is held out."""
        bucket_N = self.buckets.assign(self.index.width_N, self.index.height_N, resolution)
        sizes = [self.buckets.sizes[int(bucket)] for bucket in bucket_N]
        for measured in self.watched.values():
            for record, size in zip(measured.held_out.tolist(), measured.sizes(), strict=False):
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


def plan_run(
    config: RunConfig,
    progress: Callable[[int, int], None] | None = None,
    check: bool = True,
    index: Index | None = None,
) -> Planned:
    """Scan the images and plan the run; `check` refuses a set with nothing usable, or with rejections if strict.

    `index`: the images, where they were scanned before.
    Raises DataError, and ConfigError where more is to be held out than there is.
    """
    index = index if index is not None else scan(config.data, config.captions, progress)
    if check:
        require_usable(index, config.data.strict)
    wanted = monitors_of(config)
    kin = find_kin(config, index, progress)
    watched = watched_images(index, wanted, config.data, config.captions, config.seed, kin, progress)
    if check:
        require_enough(index, config.data.sources, wanted, watched, kin)
    held_out = np.concatenate([np.zeros(0, np.int64), *(measured.held_out for measured in watched.values())])
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
    return Planned(config, index, mix, buckets, steps, watched, kin)


def monitors_of(config: RunConfig) -> dict[Monitored, PreservationSettings | ValidationSettings]:
    """Return the settings of what measures images, by name."""
    return {"preservation": config.preservation, "validation": config.validation}


def every_epochs(planned: Planned, name: Monitored) -> int:
    """Return after how many epochs a monitor measures: what was asked for, else so that all take 5 % of the time."""
    wanted = monitors_of(planned.config)
    if (asked := wanted[name].every_epochs) is not None:
        return asked
    cost = sum(passes(len(measured.index), wanted[_of(key)].timesteps) for key, measured in planned.watched.items())
    if planned.config.ema.decay is not None and "validation" in planned.watched:
        # The average is measured beside the trained weights.
        cost += passes(len(planned.watched["validation"].index), wanted["validation"].timesteps)
    return epochs_between(cost, float(planned.mix.mean_counts().sum()))


def _of(key: str) -> Monitored:
    return "preservation" if key == "preservation" else "validation"


def holds_out(config: RunConfig) -> bool:
    """Tell whether images of the run are held out, and near duplicates with them."""
    wanted = monitors_of(config).values()
    return config.data.twins != "ignore" and any(settings.images and settings.path is None for settings in wanted)


def find_kin(
    config: RunConfig, index: Index, progress: Callable[[int, int], None] | None = None
) -> Sequence[Sequence[int]]:
    """Return the records that show the same picture and so are held out together; none where nothing is held out."""
    too_many = config.data.twins == "auto" and len(index) > _MOST_LOOKED_AT
    return twins(index, range(len(index)), progress) if holds_out(config) and not too_many else []


_MOST_LOOKED_AT = 20_000
"""Images that are decoded to find near duplicates unless asked otherwise: a minute on two cores, once."""


def require_fitting_buckets(buckets: Buckets, family: Family) -> None:
    """Raise ConfigError when a bucket's sides are not a whole number of latents."""
    multiple = family.side_multiple
    for width, height in buckets.sizes:
        if width % multiple or height % multiple:
            raise ConfigError(
                f"data.bucket_step: the bucket {width}x{height} does not fit this model, whose image sides must be "
                f"multiples of {multiple}. Set data.bucket_step to {multiple} or a multiple of it."
            )
