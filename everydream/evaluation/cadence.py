"""How often to measure, so that it takes a small part of the time: counted in forward passes, not by a clock.

A clock would make the measured steps, and with them metrics.jsonl, another at every run.
"""

import math

_SHARE = 0.05
_PASSES_OF_A_DRAW = 4
"""Encoding (one, for the VAE), forward (one) and backward (two)."""


_ONE_BY_ONE = 1.5
"""Times the passes of a batch: images are measured one by one, and a pass was seen to take 1.3 times as long."""


def passes(images: int, timesteps: int) -> int:
    """Return what measuring so many images costs: a pass a noise level, one for the VAE and one for the captions."""
    return math.ceil(_ONE_BY_ONE * images * (timesteps + 2))


def epochs_between(cost: int, draws: float) -> int:
    """Return the least number of epochs of so many draws of which measuring for `cost` passes takes 5 % at most."""
    return max(1, math.ceil(cost / (_SHARE * _PASSES_OF_A_DRAW * max(draws, 1.0))))
