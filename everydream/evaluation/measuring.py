"""The loss on fixed images at fixed noise and noise levels, beside the base model's: what is kept, what is learned.

    measured images -> losses (one an image) -> compare with the base's -> numbers, and a line of words

The loss is the objective's own, without weights. Everything in it is derived from the run's seed and the
image, so two measurements differ by the weights of the model alone, and the change is judged image by image.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everydream.data.loader import PieceDataset
from everydream.data.plan import pieces_for_rank
from everydream.data.settings import DataSettings
from everydream.diffusion.loss import mean_per_image
from everydream.diffusion.noise import gaussian
from everydream.diffusion.timesteps import stratified_quantiles
from everydream.evaluation.heldout import Measured
from everydream.models.family import Family
from everydream.sampling.sampler import looking_only
from everydream.seeding import derive
from everydream.types import Batch, EpochPlan, Rejection

_LEAST = 1e-12
_TOGETHER = 4
"""Noise levels a forward pass: a constant, since another size of batch rounds otherwise."""


class Loss(NamedTuple):
    """An image's loss, over its noise levels."""

    all: float
    """Mean over all levels."""
    coarse: float
    """Mean over the noisier three quarters. Nearer to the clean image there are details that nobody sees (Choi et al.
    2022, arXiv 2204.00227, section 3), and there what is learned by heart shows first."""


_COARSE_FROM = 0.25


@dataclass(frozen=True)
class Change:
    """One measurement beside the base's."""

    loss: float
    """Mean over all images that could be measured."""
    num: int
    base: float | None
    """Mean of the base over those of them that it was measured on; None: on none."""
    change: float | None
    """Mean difference to the base, image by image; below 0 is learning, above 0 forgetting."""
    margin: float | None
    """Half the 95 % confidence interval of the change, over images; None under two of them."""
    num_compared: int
    coarse_change: float | None
    """Mean logarithm of the ratio to the base at coarse noise levels: -0.1 is a tenth less, whatever a loss's size."""
    coarse_margin: float | None
    """Half its 95 % confidence interval."""

    def numbers(self, name: str) -> dict[str, float]:
        """Return what is written and tracked, under the monitor's name."""
        values = {
            "loss": self.loss, "base": self.base, "change": self.change, "margin": self.margin,
            "coarse_change": self.coarse_change, "coarse_margin": self.coarse_margin,
        }  # fmt: skip
        return {f"{name}/{key}": value for key, value in values.items() if value is not None}

    def describe(self, what: str, step: int, images: str) -> str:
        """Return the line for the user: what was measured, after which step, on which images."""
        line = f"{what} at step {step}: {self.loss:.4f} on {self.num} {images}"
        if self.base is None or self.change is None:
            return f"{line}; no base to compare with, since this run did not measure them before training"
        if step == 0:
            return f"{line}: the base, which later steps are compared with"
        known = "" if self.num_compared == self.num else f" (known for {self.num_compared} of them)"
        margin = "" if self.margin is None else f" ± {self.margin:.4f}"
        relative = f" ({100 * self.change / self.base:+.1f} %)" if self.base else ""
        return f"{line}, base {self.base:.4f}{known}, {self.change:+.4f}{margin}{relative}"


def compare(losses: Mapping[int, Loss], base: Mapping[int, Loss]) -> Change:
    """Set the losses beside the base's, by the images' identities."""
    pairs = [(loss, base[identity]) for identity, loss in losses.items() if identity in base]
    num = len(pairs)
    change, margin = _mean_and_margin([now.all - before.all for now, before in pairs])
    coarse_change, coarse_margin = _mean_and_margin(
        [math.log(max(now.coarse, _LEAST) / max(before.coarse, _LEAST)) for now, before in pairs]
    )
    return Change(
        loss=math.fsum(loss.all for loss in losses.values()) / len(losses),
        num=len(losses),
        base=math.fsum(before.all for _, before in pairs) / num if num else None,
        change=change,
        margin=margin,
        num_compared=num,
        coarse_change=coarse_change,
        coarse_margin=coarse_margin,
    )


def _mean_and_margin(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean of paired differences and half its 95 % confidence interval; None where there are too few."""
    num = len(differences)
    if not num:
        return None, None
    mean = math.fsum(differences) / num
    if num < 2:
        return mean, None
    variance = math.fsum((difference - mean) ** 2 for difference in differences) / (num - 1)
    # Student's t: with few images the normal distribution's 1.96 would promise too much (3.18 at four).
    from scipy.stats import t  # noqa: PLC0415 - takes a second to import

    return mean, float(t.ppf(0.975, num - 1)) * math.sqrt(variance / num)


def losses(
    family: Family, measured: Measured, data: DataSettings, seed: int, timesteps: int, device: torch.device
) -> tuple[dict[int, Loss], list[Rejection]]:
    """Return each image's loss by its identity, and the images that cannot be read now.

    Image by image, so that no loss depends on which others there are. Raises ArithmeticError for a loss that is
    not a number.
    """
    found: dict[int, Loss] = {}
    failed: list[Rejection] = []
    with looking_only(family):
        for identity, (batch, problems) in zip(measured.identities, _load(measured, data, seed), strict=True):
            failed += problems
            if problems:
                continue
            loss = image_loss(family, batch.to(device), timesteps)
            if not math.isfinite(loss.all):
                raise ArithmeticError(f"the loss of {batch.keys[0]} is {loss.all}")
            found[identity] = loss
    return found, failed


def image_loss(family: Family, batch: Batch, timesteps: int) -> Loss:
    """Return the loss of a batch of one image over its noise levels, one in each equal part of the schedule."""
    objective = family.objective
    x0 = family.encode_images(batch.pixels_BCHW, batch.seeds)
    seeds = [derive(batch.seeds[0], "stratum", number) for number in range(timesteps)]
    levels = stratified_quantiles(seeds, [(number, timesteps) for number in range(timesteps)])
    every_t = objective.timesteps(levels, (x0.shape[-2], x0.shape[-1])).to(x0.device)
    shown = family.image_inputs(batch.pixels_BCHW, batch.seeds, batch.mask_B1HW)
    values: list[float] = []
    for first in range(0, timesteps, _TOGETHER):
        part = slice(first, first + _TOGETHER)
        t_B, noise = every_t[part], gaussian(seeds[part], "noise", x0.shape[1:]).to(x0)
        x0_B = x0.expand(len(t_B), *x0.shape[1:])
        conditioning = family.encode_text(batch.captions * len(t_B), batch.crops * len(t_B))
        if shown is not None:
            conditioning = replace(conditioning, inputs_BCHW=shown.expand(len(t_B), *shown.shape[1:]))
        prediction = family.predict(objective.noise(x0_B, t_B, noise), t_B, conditioning)
        difference = prediction.float() - objective.target(x0_B, t_B, noise).float()
        values += mean_per_image(difference.square()).tolist()
    coarse = [value for number, value in enumerate(values) if (number + 0.5) / timesteps >= _COARSE_FROM]
    return Loss(math.fsum(values) / timesteps, math.fsum(coarse) / len(coarse))


def _load(measured: Measured, data: DataSettings, seed: int) -> Iterator[tuple[Batch, Sequence[Rejection]]]:
    """Yield each image as a batch of its own, cropped at its centre, with why it could not be read."""
    index, num = measured.index, len(measured.index)
    plan = EpochPlan(
        epoch=0,
        record_K=np.arange(num, dtype=np.int64),
        nth_K=np.zeros(num, np.int32),
        batch_offsets=np.arange(num + 1, dtype=np.int64),
        bucket_of_batch=measured.buckets.assign(index.width_N, index.height_N),
        accumulation=1,
    )
    centred = data.model_copy(update={"crop": "center"})
    # A root of its own for the seeds: no number that training draws is drawn here.
    root = derive(seed, "preservation")  # the name of old: with another one, every base would be another
    dataset = PieceDataset(list(pieces_for_rank(plan, 0, 1)), plan, index, measured.buckets, centred, root)
    for number in range(num):
        loaded = dataset[number]
        yield loaded.batch, loaded.failed


def pictures_of(measured: Measured, data: DataSettings, seed: int) -> list[NDArray[np.uint8]]:
    """Return the images themselves, (H, W, 3) each, as they are measured; those that can be read."""
    loaded = [batch for batch, problems in _load(measured, data, seed) if not problems]
    return [batch.pixels_BCHW[0].permute(1, 2, 0).numpy() for batch in loaded]
