"""At which noise level each image is trained: a function of the draw's own seed.

seed -> v, uniform in [0, 1), or in the draw's stratum of its step
v -> u, the law's quantile within [min, max]: 0 is a clean image, 1 is noise
u -> t, by the objective's schedule (`Objective.timesteps`)
"""

from collections.abc import Sequence

import torch

from everydream.diffusion.settings import TimestepSettings
from everydream.seeding import derive

_FINE = 2**40


def uniform_quantiles(seeds: Sequence[int]) -> torch.Tensor:
    """Return one number per seed, uniform in (0, 1), float64, shape (B,)."""
    drawn = [derive(seed, "timestep") for seed in seeds]
    # The thousandths first, so that of 1,000 timesteps it is number (drawn % 1000); the rest is fineness.
    return torch.tensor([(n % 1000 + (n // 1000 % _FINE + 0.5) / _FINE) / 1000 for n in drawn], dtype=torch.float64)


def stratified_quantiles(seeds: Sequence[int], places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Return one number per seed: for place (i, n) it is uniform in the i-th n-th of (0, 1), float64, shape (B,)."""
    i_B, n_B = torch.tensor(places, dtype=torch.float64).unbind(1)
    return (i_B + uniform_quantiles(seeds)) / n_B


def noise_levels(v_B: torch.Tensor, settings: TimestepSettings) -> torch.Tensor:
    """Return the law's quantiles at `v` (0 .. 1), truncated to [min, max]: 0 is a clean image, 1 is noise.

    Logit-normal: Esser et al. 2024, arXiv 2403.03206, section 3.1, with their sign of the mean. Diffusers'
    training scripts index timesteps that fall from noise to clean, so there a mean has the opposite sign.
    """
    low, high = settings.min, settings.max
    if settings.law == "uniform":
        return low + (high - low) * v_B
    ends = torch.logit(torch.tensor([low, high], dtype=torch.float64))
    below, above = torch.special.ndtr((ends - settings.mean) / settings.std)
    return torch.sigmoid(settings.mean + settings.std * torch.special.ndtri(below + (above - below) * v_B))
