"""The noise of each image, from the draw's own seed, so that it does not depend on the batch around it."""

from collections.abc import Sequence

import torch
from torch.nn import functional

from everydream.devices import sent
from everydream.diffusion.settings import LossSettings
from everydream.seeding import derive, numpy_generator, torch_generator


def gaussian(seeds: Sequence[int], purpose: str, shape_CHW: Sequence[int]) -> torch.Tensor:
    """Return standard normal noise (B, C, H, W), float32, on the CPU; each image from a generator of its own."""
    return torch.stack([torch.randn(*shape_CHW, generator=torch_generator(derive(s, purpose))) for s in seeds])


def training_noise(seeds: Sequence[int], shape_CHW: Sequence[int], settings: LossSettings) -> torch.Tensor:
    """Return the noise to train on, (B, C, H, W): Gaussian, with an offset and coarser grains where asked for.

    Offset noise (N. Guttenberg, "Diffusion with Offset Noise", 2023) adds one Gaussian value per image and channel:
    the model learns to change an image's overall brightness, which plain noise leaves nearly untouched.
    """
    eps_BCHW = gaussian(seeds, "noise", shape_CHW)
    if settings.offset_noise:
        strength_B = torch.full((len(seeds), 1, 1, 1), settings.offset_noise)
        if settings.offset_noise_random:
            strength_B *= torch.tensor([_uniform(seed, "offset_strength") for seed in seeds]).view(-1, 1, 1, 1)
        eps_BCHW = eps_BCHW + strength_B * gaussian(seeds, "offset_noise", (shape_CHW[0], 1, 1))
    if settings.pyramid_noise is not None:
        eps_BCHW = torch.stack([
            _with_coarser_grains(eps, seed, settings.pyramid_noise) for eps, seed in zip(eps_BCHW, seeds, strict=True)
        ])  # fmt: skip
    return eps_BCHW


def perturbed(eps_BCHW: torch.Tensor, seeds: Sequence[int], strength: float) -> torch.Tensor:
    """Return the noise that the input is made with, where the target keeps `eps` (Ning et al. 2023, 2301.11706)."""
    if not strength:
        return eps_BCHW
    more_BCHW = gaussian(seeds, "input_perturbation", eps_BCHW.shape[1:])
    return eps_BCHW + strength * sent(more_BCHW, eps_BCHW.device, eps_BCHW.dtype)


def _with_coarser_grains(eps_CHW: torch.Tensor, seed: int, discount: float) -> torch.Tensor:
    """Add noise of each coarser grain, a random 2 to 4 times coarser a level, times discount to the level's power.

    Multi-resolution noise (J. Whitaker, 2023) as kohya's scripts have it: level 0 is of full size, the last one has a
    side of 1, and the sum is divided by its standard deviation; here by each image's own, there by the batch's.
    """
    channels, height, width = eps_CHW.shape
    for level in range(height + width):
        ratio = (2.0 + 2.0 * _uniform(seed, "pyramid", level)) ** level
        size = (max(1, int(height / ratio)), max(1, int(width / ratio)))
        grain = gaussian([derive(seed, "pyramid_noise", level)], "noise", (channels, *size))
        fine = functional.interpolate(grain, (height, width), mode="bilinear", align_corners=False)[0]
        eps_CHW = eps_CHW + discount**level * fine
        if 1 in size:
            break
    return eps_CHW / eps_CHW.std()


def _uniform(seed: int, purpose: str, *keys: int) -> float:
    return float(numpy_generator(derive(seed, purpose, *keys)).random())
