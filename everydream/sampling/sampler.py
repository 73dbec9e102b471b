"""Prompts to images with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from everydream.diffusion.noise import gaussian
from everydream.errors import ConfigError
from everydream.models.family import Family
from everydream.types import Crop


def sample_images(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    width: int,
    height: int,
    steps: int,
    guidance: float,
    negative_prompt: str = "",
    sampler: str | None = None,
) -> list[NDArray[np.uint8]]:
    """Return one image (H, W, 3) per prompt; each depends on its own prompt and seed, not on the others.

    Uses the networks as they are, in evaluation mode, without gradients, and puts their mode back.
    A model that is shown more than noised latents is shown an empty canvas: see `Family.blank_inputs`.
    Draws from no random generator that training draws from. `sampler`: None is the family's usual one.
    """
    multiple, factor = family.side_multiple, family.spatial_factor
    if width % multiple or height % multiple:
        raise ValueError(f"samples of {width} x {height} px: both sides must be multiples of {multiple} for this model")
    with looking_only(family):
        latent_hw = (height // factor, width // factor)
        noise_BCHW = gaussian(seeds, "sample", (family.latent_channels, *latent_hw))
        # As of pictures that were not cropped: what conditions on that is asked for whole ones.
        crop = Crop((height, width), 0, 0, (height, width), False)
        name = sampler or family.samplers[0]
        shown = family.blank_inputs(seeds, (height, width))
        latents = _denoise(family, name, prompts, negative_prompt, crop, noise_BCHW, shown, steps, guidance)
        return list(family.decode(latents).numpy())


def require_sampler(family: Family, name: str | None, key: str) -> None:
    """Raise ConfigError for a sampler that does not fit the family; `key` is what messages call it."""
    if name is not None and name not in family.samplers:
        raise ConfigError(
            f"{key}: {name} does not fit this {family.name} model, which predicts {family.objective.prediction}; "
            f"use {', '.join(family.samplers)}, or leave it out for the first of these."
        )


@contextmanager
def looking_only(family: Family) -> Iterator[None]:
    """Put the networks in evaluation mode, without gradients, for the length of the block."""
    modes = {name: module.training for name, module in family.modules().items()}
    for module in family.modules().values():
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for name, module in family.modules().items():
            module.train(modes[name])


def _denoise(
    family: Family,
    sampler: str,
    prompts: Sequence[str],
    negative: str,
    crop: Crop,
    noise_BCHW: torch.Tensor,
    shown_BCHW: torch.Tensor | None,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    device = next(family.modules()[family.denoiser].parameters()).device
    height, width = noise_BCHW.shape[-2:]
    scheduler = family.sampling_scheduler(sampler, steps, (height, width), device)
    # Flow schedulers start from plain noise, and take the latents as they are.
    x: torch.Tensor = noise_BCHW.to(device) * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, _: x)
    guided = guidance != 1.0 and not family.guides_itself
    texts = [*prompts, *[negative] * len(prompts)] if guided else list(prompts)
    conditioning = family.encode_text(texts, [crop] * len(texts))
    if shown_BCHW is not None:
        shown_BCHW = torch.cat([shown_BCHW, shown_BCHW]) if guided else shown_BCHW
        conditioning = replace(conditioning, inputs_BCHW=shown_BCHW)
    if family.guides_itself:
        conditioning = replace(conditioning, guidance_B=torch.full((len(texts),), guidance, device=device))
    for t in scheduler.timesteps:
        inputs = scaled(torch.cat([x, x]) if guided else x, t)
        prediction = family.predict(inputs, t.expand(len(inputs)), conditioning).float()
        if guided:
            positive, unconditional = prediction.chunk(2)
            prediction = unconditional + guidance * (positive - unconditional)
        x = scheduler.step(prediction, t, x).prev_sample
    return x
