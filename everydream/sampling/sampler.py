"""Prompts to images with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everydream.diffusion.noise import gaussian
from everydream.models.family import Family


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
    sampler: str = "ddim",
) -> list[NDArray[np.uint8]]:
    """Return one image (H, W, 3) per prompt; each depends on its own prompt and seed, not on the others.

    Uses the networks as they are, in evaluation mode, without gradients, and puts their mode back.
    Draws from no random generator that training draws from.
    """
    factor = family.spatial_factor
    if width % factor or height % factor:
        raise ValueError(f"samples of {width} x {height} px: both sides must be multiples of {factor} for this model")
    with looking_only(family):
        shape = (4, height // factor, width // factor)
        noise_BCHW = gaussian(seeds, "sample", shape)
        scheduler = family.sampling_scheduler(sampler)
        latents = _denoise(family, scheduler, prompts, negative_prompt, noise_BCHW, steps, guidance)
        return list(family.decode(latents).numpy())


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
    scheduler: Any,
    prompts: Sequence[str],
    negative: str,
    noise_BCHW: torch.Tensor,
    steps: int,
    guidance: float,
) -> torch.Tensor:
    device = next(family.modules()["unet"].parameters()).device
    scheduler.set_timesteps(steps, device=device)
    x: torch.Tensor = noise_BCHW.to(device) * scheduler.init_noise_sigma
    guided = guidance != 1.0
    conditioning = family.encode_text([*prompts, *[negative] * len(prompts)] if guided else list(prompts))
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(torch.cat([x, x]) if guided else x, t)
        prediction = family.predict(inputs, t.expand(len(inputs)), conditioning).float()
        if guided:
            positive, unconditional = prediction.chunk(2)
            prediction = unconditional + guidance * (positive - unconditional)
        x = scheduler.step(prediction, t, x).prev_sample
    return x
