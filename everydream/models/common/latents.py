"""Pixels to latents and back, by an AutoencoderKL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from everydream.diffusion.noise import gaussian


def encode(
    vae: Any, pixels_BCHW: torch.Tensor, seeds: Sequence[int], hidden_B1HW: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (z - shift) * scale, float32, of uint8 pixels; each z is sampled from its posterior with its own seed.

    `hidden_B1HW`: where it is 1 the image is grey, and not 0. Such an image is sampled independently of the whole one.
    """
    # To [-1, 1], as latent diffusion's VAE was trained.
    images = pixels_BCHW.to(next(vae.parameters()).dtype) / 127.5 - 1.0
    if hidden_B1HW is not None:
        images = images * (hidden_B1HW < 0.5)
    with torch.no_grad(), _wide_enough(images):
        posterior = vae.encode(images).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    purpose = "posterior" if hidden_B1HW is None else "masked_posterior"
    noise = gaussian(seeds, purpose, mean.shape[1:]).to(mean)
    latents: torch.Tensor = (mean + std * noise - _shift(vae)) * float(vae.config.scaling_factor)
    return latents


def decode(vae: Any, latents_BCHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 images (B, H, W, C), on the CPU."""
    with torch.no_grad(), _wide_enough(latents_BCHW):
        latents = latents_BCHW.to(next(vae.parameters()).dtype) / float(vae.config.scaling_factor) + _shift(vae)
        images = vae.decode(latents).sample
    pixels: torch.Tensor = ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu()


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)


@contextmanager
def _wide_enough(like: torch.Tensor) -> Iterator[None]:
    """Leave fp16 autocast for the length of the block: activations of some VAEs, SDXL's for one, are beyond 65,504."""
    kind = like.device.type
    narrow = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    with torch.autocast(kind, enabled=False) if narrow else nullcontext():
        yield
