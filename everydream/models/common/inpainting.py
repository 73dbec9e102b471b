"""What an inpainting model is told besides noised latents: what is to be painted, and the rest of the picture.

    mask (1: to be painted), at the size of the latents | latents of the image whose masked part is grey

in this order, as Stable Diffusion's inpainting models were trained and as StableDiffusionInpaintPipeline hands it
over. Their training drew masks, which hid everything in a quarter of the draws (model card of Stable Diffusion v1.5
inpainting).
"""

from collections.abc import Sequence
from typing import Any

import torch
from numpy.random import Generator
from torch.nn import functional

from everydream.models.common import latents
from everydream.seeding import derive, numpy_generator

_SHARE_OF_EVERYTHING = 0.25
_MOST_RECTANGLES = 4
_SIDES = (1 / 8, 3 / 4)
"""Shortest and longest side of a rectangle, as a share of the image's."""


def inputs(vae: Any, pixels_BCHW: torch.Tensor, seeds: Sequence[int], masks_B1HW: torch.Tensor | None) -> torch.Tensor:
    """Return (B, 1 + C, h, w) for uint8 pixels.

    An image that has a mask of its own (white trains, `Batch.mask_B1HW`) is painted where this is 0.5 or more. One that
    is white all over says no more than none: there the mask is drawn from the image's seed.
    """
    hidden_B1HW = torch.stack([drawn_mask(seed, (pixels_BCHW.shape[-2], pixels_BCHW.shape[-1])) for seed in seeds])
    hidden_B1HW = hidden_B1HW.to(pixels_BCHW.device)
    if masks_B1HW is not None:
        has_own_B = (masks_B1HW < 1.0).flatten(1).any(1).view(-1, 1, 1, 1)
        hidden_B1HW = torch.where(has_own_B, (masks_B1HW >= 0.5).to(hidden_B1HW), hidden_B1HW)
    return _told(vae, pixels_BCHW, seeds, hidden_B1HW)


def blank(vae: Any, seeds: Sequence[int], image_hw: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return the inputs (B, 1 + C, h, w) of pictures that are to be painted all over."""
    pixels_BCHW = torch.zeros(len(seeds), 3, *image_hw, dtype=torch.uint8, device=device)
    return _told(vae, pixels_BCHW, seeds, torch.ones(len(seeds), 1, *image_hw, device=device))


def _told(vae: Any, pixels_BCHW: torch.Tensor, seeds: Sequence[int], hidden_B1HW: torch.Tensor) -> torch.Tensor:
    visible = latents.encode(vae, pixels_BCHW, seeds, hidden_B1HW)
    mask = functional.interpolate(hidden_B1HW, size=visible.shape[-2:])  # nearest, as the pipeline does
    return torch.cat([mask, visible], dim=1)


def drawn_mask(seed: int, image_hw: tuple[int, int]) -> torch.Tensor:
    """Return a mask (1, H, W) of one to four rectangles, or in a quarter of the draws of everything."""
    rng = numpy_generator(derive(seed, "inpainting_mask"))
    if rng.random() < _SHARE_OF_EVERYTHING:
        return torch.ones(1, *image_hw)
    mask_1HW = torch.zeros(1, *image_hw)
    for _ in range(int(rng.integers(1, _MOST_RECTANGLES, endpoint=True))):
        rows, columns = (_interval(rng, length) for length in image_hw)
        mask_1HW[:, rows, columns] = 1.0
    return mask_1HW


def _interval(rng: Generator, length: int) -> slice:
    shortest, longest = (round(share * length) for share in _SIDES)
    size = int(rng.integers(shortest, longest, endpoint=True))
    first = int(rng.integers(0, length - size, endpoint=True))
    return slice(first, first + size)
