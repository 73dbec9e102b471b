"""Pixels to latents and back, by an AutoencoderKL."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from everydream.devices import sent
from everydream.diffusion.noise import gaussian
from everydream.formats.files import StateDict

_LOG_VARIANCE = (-30.0, 20.0)
"""Limits of a posterior's log-variance, as latent diffusion's DiagonalGaussianDistribution has them."""
_DECODING = ("decoder.", "post_quant_conv.")


def moments(vae: Any, pixels_BCHW: torch.Tensor, hidden_B1HW: torch.Tensor | None = None) -> torch.Tensor:
    """Return the posterior's means and log-variances (B, 2C, h, w), float32, of uint8 pixels: nothing is drawn here.

    `hidden_B1HW`: where it is 1 the image is grey, and not 0.
    """
    # To [-1, 1], as latent diffusion's VAE was trained.
    images = pixels_BCHW.to(next(vae.parameters()).dtype) / 127.5 - 1.0
    if hidden_B1HW is not None:
        images = images * (hidden_B1HW < 0.5)
    with torch.no_grad(), _wide_enough(images):
        found: torch.Tensor = vae.encode(images).latent_dist.parameters
    # The layout is part of how a denoiser rounds: the same whether it comes from here or from a cache.
    return found.float().contiguous()


def encode(
    vae: Any, images_BCHW: torch.Tensor, seeds: Sequence[int], hidden_B1HW: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (z - shift) * scale, float32; each z is sampled from its posterior with its own seed.

    `images_BCHW`: uint8 pixels, or the float `moments` of some, as caches have them.
    With `hidden_B1HW`, see `moments`, an image is sampled independently of the whole one.
    """
    known = images_BCHW.is_floating_point()
    mean, log_variance = (images_BCHW if known else moments(vae, images_BCHW, hidden_B1HW)).float().chunk(2, dim=1)
    std = torch.exp(0.5 * log_variance.clamp(*_LOG_VARIANCE))
    purpose = "posterior" if hidden_B1HW is None else "masked_posterior"
    noise = sent(gaussian(seeds, purpose, mean.shape[1:]), mean.device, mean.dtype)
    latents: torch.Tensor = (mean + std * noise - _shift(vae)) * float(vae.config.scaling_factor)
    return latents


def made_by(vae: Any, config: dict[str, Any]) -> tuple[StateDict, dict[str, Any]]:
    """Return all that moments depend on: the tensors of the encoding half, and the VAE's configuration."""
    state = {name: tensor for name, tensor in vae.state_dict().items() if not name.startswith(_DECODING)}
    # Applied to what is drawn from the moments.
    return state, {key: value for key, value in config.items() if key not in ("scaling_factor", "shift_factor")}


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
