"""The page on which a caption becomes a gradient.

    pixels   -> family.encode_images -> x0      (the draw's own posterior sample)
    captions -> family.encode_text   -> what the denoiser is told
    x0, t, noise -> objective        -> x_t and the target
    family.predict(x_t)              -> one loss per image -> weighted sum

Every random choice is a function of the draw's seed, so a batch gives the same loss on every process,
after every resume, and whatever stands beside it in the batch.
"""

from typing import Annotated

import torch
from pydantic import Field

from everydream.diffusion.loss import mse_per_image
from everydream.diffusion.noise import training_noise
from everydream.diffusion.timesteps import uniform_timesteps
from everydream.diffusion.weighting import min_snr_weights
from everydream.models.family import Family
from everydream.seeding import derive
from everydream.settings import Settings
from everydream.types import Batch, StepResult


class LossSettings(Settings):
    """How the loss is made."""

    min_snr_gamma: Annotated[float, Field(gt=0.0)] | None = None
    """Weigh each image by min-SNR-gamma (5 is usual), in the form that fits the model's prediction; null: off."""
    offset_noise: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Strength of noise on whole channels, so that very dark and bright images can be learned (0.05 to 0.1)."""


def training_step(batch: Batch, family: Family, settings: LossSettings, images_per_step: int) -> StepResult:
    """Return the loss of one micro-batch, already on the device of the networks.

    `images_per_step` is batch_size * gradient_accumulation as configured. Each image weighs
    loss_scale / images_per_step wherever it falls, so micro-batches add up to the mean over the
    effective batch, and a left-over batch weighs by its true size.
    """
    objective = family.objective
    # For dropout inside networks, which knows no generator but the library's own.
    torch.manual_seed(derive(batch.seeds[0], "dropout"))
    x0 = family.encode_images(batch.pixels_BCHW, batch.seeds)
    t_B = uniform_timesteps(batch.seeds, objective.schedule.num_timesteps).to(x0.device)
    noise = training_noise(batch.seeds, x0.shape[1:], settings.offset_noise).to(x0)
    conditioning = family.encode_text(batch.captions)
    prediction = family.predict(objective.noise(x0, t_B, noise), t_B, conditioning)
    per_image_B = mse_per_image(prediction, objective.target(x0, t_B, noise))

    weight_B = batch.loss_scale_B
    if settings.min_snr_gamma is not None:
        snr_weight_B = min_snr_weights(objective.schedule.snr(t_B), settings.min_snr_gamma, objective.prediction)
        weight_B = weight_B * snr_weight_B.to(weight_B)
    loss = (per_image_B * weight_B).sum() / images_per_step
    return StepResult(loss, per_image_B.detach(), t_B, batch.keys)
