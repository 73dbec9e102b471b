"""Numbers over rows of features, each with half its 95 % interval where there is one, and with what it is worth.

FID: Heusel et al. 2017, arXiv 1706.08500; KID: Binkowski et al. 2018, arXiv 1801.01401, both by torchmetrics over the
given rows. CLIP score: Hessel et al. 2021, arXiv 2104.08718, times 100 as torchmetrics has it.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from everydream.seeding import derive

LEAST_KID = 20
_USUAL_KID = 200
_USUAL_FID = 10_000
_SUBSETS = 100
_LARGEST_SUBSET = 1000
_Z = 1.96


@dataclass(frozen=True)
class Measure:
    """A number, and half its 95 % confidence interval where one can be had."""

    value: float
    margin: float | None = None


class _Given(nn.Module):
    """Stands for the network of a torchmetrics measure whose rows are known already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows_ND: torch.Tensor) -> torch.Tensor:
        """Return the rows as they are."""
        return rows_ND


def mean(values_N: torch.Tensor) -> Measure:
    """Return the mean of independent values, by the normal distribution."""
    num = len(values_N)
    margin = _Z * float(values_N.double().std()) / math.sqrt(num) if num > 1 else None
    return Measure(float(values_N.double().mean()), margin)


def clip_score(images_ND: torch.Tensor, texts_ND: torch.Tensor) -> Measure:
    """Return 100 times the mean cosine of pictures and their prompts, negative ones as 0; rows of length 1."""
    return mean(100.0 * (images_ND * texts_ND).sum(-1).clamp(min=0.0))


def fid(rows_ND: torch.Tensor, real_MD: torch.Tensor) -> tuple[Measure | None, str]:
    """Return (Fréchet distance of the two sets, None where it means nothing; a warning or "")."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: PLC0415 - seconds

    num, width = min(len(rows_ND), len(real_MD)), rows_ND.shape[-1]
    if num <= width:
        return None, (
            f"FID is left out: it compares covariances of {width} features, which {num} pictures do not determine "
            f"(at least {width + 1} of each kind do). KID can be had from fewer."
        )
    metric = FrechetInceptionDistance(feature=_Given(width))
    for rows, real in ((real_MD, True), (rows_ND, False)):
        metric.update(scaled(rows), real=real)
    warning = (
        f"FID of {num} pictures is too large, the more so the fewer they are (arXiv 1911.07023); compare it with FIDs "
        f"of equally many alone ({_USUAL_FID:,} are usual), and go by KID."
    )
    return Measure(float(metric.compute())), warning if num < _USUAL_FID else ""


def kid(rows_ND: torch.Tensor, real_MD: torch.Tensor) -> tuple[Measure | None, str]:
    """Return (kernel distance of the two sets times 1000, None where it means nothing; a warning or "").

    The margin is from random halves without replacement, whose spread is that of the whole (Politis and Romano 1994);
    where one set is larger, or both have more than 2000, it is wider than need be.
    """
    from torchmetrics.image.kid import KernelInceptionDistance  # noqa: PLC0415 - seconds

    num = min(len(rows_ND), len(real_MD))
    if num < LEAST_KID:
        return None, f"KID is left out: of {num} pictures it would be chance. Give at least {LEAST_KID} of each kind."
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")  # as is meant
        metric = KernelInceptionDistance(
            feature=_Given(rows_ND.shape[-1]), subsets=_SUBSETS, subset_size=min(num // 2, _LARGEST_SUBSET)
        )
    for rows, real in ((real_MD, True), (rows_ND, False)):
        metric.update(scaled(rows), real=real)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "kid"))
        value, spread = metric.compute()
    warning = f"KID of {num} pictures has a wide interval; {_USUAL_KID} and more narrow it." if num < _USUAL_KID else ""
    return Measure(1000.0 * float(value), 1000.0 * _Z * float(spread)), warning


def scaled(rows_ND: torch.Tensor) -> torch.Tensor:
    """Return rows of length 1 as rows of length root D, about what KID's kernel was made for."""
    return rows_ND * math.sqrt(rows_ND.shape[-1])
