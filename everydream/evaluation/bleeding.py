"""How far pictures of other things moved towards the training images: bleeding, as a number between pictures.

Pictures are compared as rows of features, centred on what the training images and the base's own pictures have in
common and of length 1; a row's likeness to the training images is its mean cosine with the nearest few.

    bleed = (likeness now - likeness of the base's picture) / (likeness of training images - likeness of the base's)

So 0 is the picture as the base drew it, and 1 a picture as like the training images as these are like each other.
"""

from dataclasses import dataclass

import torch

_NEAREST = 3
_LEAST = 0.1
"""Of the distance between base and training images: where they are alike from the start, noise is not bleeding."""


@dataclass(frozen=True)
class Bleeding:
    """How control pictures changed, picture by picture."""

    bleed_N: torch.Tensor
    """Towards the training images: 0 as before, 1 like one of them."""
    moved_N: torch.Tensor
    """In any direction: 1 minus the cosine between now and the base."""


def bleeding(now_ND: torch.Tensor, base_ND: torch.Tensor, training_MD: torch.Tensor) -> Bleeding:
    """Compare pictures with those of the base at the same prompts and seeds, row by row; plain features."""
    centre_D = torch.cat([training_MD, base_ND]).mean(0)
    now_ND, base_ND, training_MD = (_unit(rows - centre_D) for rows in (now_ND, base_ND, training_MD))
    between = training_MD @ training_MD.T
    between.fill_diagonal_(-1.0)
    ours = _nearest(between).mean() if len(training_MD) > 1 else torch.tensor(1.0)
    before_N, after_N = _nearest(base_ND @ training_MD.T), _nearest(now_ND @ training_MD.T)
    return Bleeding(
        bleed_N=(after_N - before_N) / (ours - before_N).clamp(min=_LEAST),
        moved_N=1.0 - (now_ND * base_ND).sum(1),
    )


def _nearest(cosines_NM: torch.Tensor) -> torch.Tensor:
    """Return each row's mean over its largest cosines, the one of a picture with itself aside."""
    num = min(_NEAREST, max(cosines_NM.shape[1] - 1, 1))
    return cosines_NM.topk(num, dim=1).values.mean(1)


def _unit(rows_ND: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows_ND, dim=1)
