"""The noise of each image, from the draw's own seed, so that it does not depend on the batch around it."""

from collections.abc import Sequence

import torch

from everydream.seeding import derive, torch_generator


def gaussian(seeds: Sequence[int], purpose: str, shape_CHW: Sequence[int]) -> torch.Tensor:
    """Return standard normal noise (B, C, H, W), float32, on the CPU; each image from a generator of its own."""
    return torch.stack([torch.randn(*shape_CHW, generator=torch_generator(derive(s, purpose))) for s in seeds])


def training_noise(seeds: Sequence[int], shape_CHW: Sequence[int], offset: float = 0.0) -> torch.Tensor:
    """Return the noise to train on: Gaussian, plus `offset` times one Gaussian value per image and channel.

    Offset noise (N. Guttenberg, "Diffusion with Offset Noise", 2023) lets the model change an image's
    overall brightness, which plain noise leaves nearly untouched at every timestep.
    """
    eps_BCHW = gaussian(seeds, "noise", shape_CHW)
    if offset:
        eps_BCHW = eps_BCHW + offset * gaussian(seeds, "offset_noise", (shape_CHW[0], 1, 1))
    return eps_BCHW
