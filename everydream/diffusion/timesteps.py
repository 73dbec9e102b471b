"""At which noise level each image is trained: a function of the draw's own seed."""

from collections.abc import Sequence

import torch

from everydream.seeding import derive


def uniform_timesteps(seeds: Sequence[int], num_timesteps: int) -> torch.Tensor:
    """Return one timestep per image, uniform over 0 .. num_timesteps-1, int64, shape (B,)."""
    return torch.tensor([derive(seed, "timestep") % num_timesteps for seed in seeds], dtype=torch.int64)


def stratified_timesteps(seeds: Sequence[int], num_timesteps: int) -> torch.Tensor:
    """Return one timestep per seed, the i-th of n anywhere in the i-th n-th of 0 .. num_timesteps-1, int64."""
    edges = [num_timesteps * number // len(seeds) for number in range(len(seeds) + 1)]
    drawn = [
        low + derive(seed, "timestep") % max(high - low, 1)
        for seed, low, high in zip(seeds, edges, edges[1:], strict=False)
    ]
    return torch.tensor(drawn, dtype=torch.int64)
