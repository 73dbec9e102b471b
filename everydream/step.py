"""The page on which a caption becomes a gradient.

    images   -> family.encode_images -> x0      (the draw's own posterior sample; of pixels, or of what a cache has)
    captions -> family.encode_text   -> what the denoiser is told
    pixels   -> family.image_inputs  -> ... and shown, if it takes more than noised latents
    seeds    -> noise level, noise
    x0, t, noise -> objective        -> x_t and the target
    family.predict(x_t)              -> one loss per image -> weighted sum

Every random choice is a function of the draw's seed, so a batch gives the same loss on every process,
after every resume, and whatever stands beside it in the batch (but for dropout inside networks).
"""

from dataclasses import replace

import torch

from everydream.devices import sent
from everydream.diffusion.loss import image_losses
from everydream.diffusion.noise import perturbed, training_noise
from everydream.diffusion.settings import LossSettings, TimestepSettings
from everydream.diffusion.timesteps import noise_levels, stratified_quantiles, uniform_quantiles
from everydream.diffusion.weighting import loss_weights
from everydream.models.family import Family
from everydream.seeding import derive
from everydream.types import Batch, StepResult

UNIFORM = TimestepSettings()


def training_step(
    batch: Batch, family: Family, loss: LossSettings, images_per_step: int, timesteps: TimestepSettings = UNIFORM
) -> StepResult:
    """Return the loss of one micro-batch, already on the device of the networks.

    `images_per_step` is batch_size * gradient_accumulation as configured. Each image weighs
    loss_scale / images_per_step wherever it falls, so micro-batches add up to the mean over the
    effective batch, and a left-over batch weighs by its true size.
    """
    objective, seeds = family.objective, batch.seeds
    # For dropout inside networks, which knows no generator but the library's own.
    torch.manual_seed(derive(seeds[0], "dropout"))
    x0 = family.encode_images(batch.images, seeds)
    latent_hw = (x0.shape[-2], x0.shape[-1])
    v_B = stratified_quantiles(seeds, batch.places) if timesteps.stratified else uniform_quantiles(seeds)
    t_B = sent(objective.timesteps(noise_levels(v_B, timesteps), latent_hw, timesteps.shift), x0.device)
    noise = sent(training_noise(seeds, x0.shape[1:], loss), x0.device, x0.dtype)
    x_t = objective.noise(x0, t_B, perturbed(noise, seeds, loss.input_perturbation))
    shown_BCHW = family.image_inputs(batch.pixels_BCHW, seeds, batch.mask_B1HW)
    conditioning = replace(family.encode_text(batch.texts, batch.crops), inputs_BCHW=shown_BCHW)
    prediction = family.predict(x_t, t_B, conditioning)
    mask = batch.mask_for(latent_hw)
    per_image_B = image_losses(prediction, objective.target(x0, t_B, noise), t_B, objective, loss, mask)

    weight_B = loss_weights(t_B, objective, loss, timesteps, latent_hw).to(per_image_B) * batch.loss_scale_B
    return StepResult((per_image_B * weight_B).sum() / images_per_step, per_image_B.detach(), t_B, weight_B, batch.keys)
