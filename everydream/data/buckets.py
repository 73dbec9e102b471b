"""Aspect-ratio buckets, chosen from the data set.

`assign` is the line that decides an image's bucket: the one nearest in |log aspect|, which treats
portrait and landscape alike (|w/h - W/H| does not). `choose_buckets` decides which buckets exist:
of all sizes with about the right area, the set that crops least, provided that every bucket fills
at least one batch. Where a run has several resolutions, each has buckets of its own, and
`resolution_of_draws` decides at which one a draw is trained.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everydream.seeding import derive, numpy_generator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Buckets:
    """The sizes in use as (width, height) in pixels: one resolution after the other, each from tall to wide."""

    sizes: tuple[tuple[int, int], ...]
    starts: tuple[int, ...] = (0,)
    """Where the sizes of each resolution begin."""
    shares: tuple[float, ...] = (1.0,)
    """What part of all draws each resolution gets."""

    def assign(self, width_N: NDArray[np.int32], height_N: NDArray[np.int32], resolution: int = 0) -> NDArray[np.int32]:
        """Return each image's bucket at the n-th resolution: the nearest by |log aspect|, the taller one at a tie."""
        first, last = (*self.starts, len(self.sizes))[resolution : resolution + 2]
        log_aspects = np.log([w / h for w, h in self.sizes[first:last]])
        nearest_N = np.searchsorted(_midpoints(log_aspects), np.log(width_N / height_N), side="left")
        return (first + nearest_N).astype(np.int32)


def joined(parts: Sequence[Buckets], shares: Sequence[float]) -> Buckets:
    """Return the buckets of several resolutions, each with its share of the draws, as one."""
    starts = np.cumsum([0, *(len(part.sizes) for part in parts[:-1])]).tolist()
    return Buckets(tuple(size for part in parts for size in part.sizes), tuple(starts), tuple(shares))


def resolution_of_draws(buckets: Buckets, record_K: Ints, nth_K: NDArray[np.int32], seed: int, epoch: int) -> Ints:
    """Return the number of the resolution that each draw of an epoch is trained at.

    Exact shares of every epoch; and over the epochs each image gets about its share of each resolution, since its
    place moves on by the golden ratio from epoch to epoch, and by another irrational from visit to visit.
    """
    if len(buckets.shares) == 1:
        return np.zeros(len(record_K), np.int64)
    num = int(record_K.max(initial=-1)) + 1
    start_N = numpy_generator(derive(seed, "resolution")).random(num)
    place_K = (start_N[record_K] + epoch * (5**0.5 - 1) / 2 + nth_K * 2**0.5) % 1.0
    bounds = np.rint(np.cumsum(buckets.shares) / sum(buckets.shares) * len(record_K)).astype(np.int64)
    resolution_K = np.empty(len(record_K), np.int64)
    resolution_K[np.argsort(place_K, kind="stable")] = np.searchsorted(bounds, np.arange(len(record_K)), side="right")
    return resolution_K


def kept_fraction(width: int, height: int, bucket: tuple[int, int]) -> float:
    """Return the share of an image's area that is left after covering `bucket` and cropping."""
    return float(np.exp(-abs(np.log(width / height) - np.log(bucket[0] / bucket[1]))))


def candidates(resolution: int, step: int, max_aspect: float) -> list[tuple[int, int]]:
    """Return every (width, height) in multiples of `step` whose area is the nearest to `resolution` squared.

    For each short side one long side, and its mirror image, so the set is symmetric under rotation.
    """
    square = max(round(resolution / step), 1) * step
    sizes = {(square, square)}
    for short in range(step, square + 1, step):
        long = max(round(resolution * resolution / short / step) * step, short)
        if long / short <= max_aspect:
            sizes |= {(short, long), (long, short)}
    return sorted(sizes, key=lambda size: size[0] / size[1])


def choose_buckets(
    width_N: NDArray[np.int32],
    height_N: NDArray[np.int32],
    draws_N: Floats,
    *,
    resolution: int,
    step: int,
    max_aspect: float,
    batch_size: int,
) -> Buckets:
    """Return the buckets that crop least while each is drawn at least `batch_size` times an epoch.

    `draws_N` is how often each image is drawn per epoch. Nearest-aspect assignment cuts the images,
    sorted by aspect, into runs, one per bucket, so the best set is found exactly by dynamic
    programming over neighbouring pairs of candidates: O(candidates^3 + N log N).
    """
    sizes = candidates(resolution, step, max_aspect)
    drawn = draws_N > 0
    if not drawn.any():
        return Buckets(((max(round(resolution / step), 1) * step,) * 2,))
    crops = _CropSums(np.log(width_N[drawn] / height_N[drawn]), draws_N[drawn])
    aspects = np.log([w / h for w, h in sizes])
    chosen = _best_subset(aspects, crops, min(float(batch_size), crops.total_draws))
    return Buckets(tuple(sizes[i] for i in chosen))


class _CropSums:
    """Prefix sums over images sorted by aspect: draws and cropped area of any run in O(log N)."""

    def __init__(self, log_aspect_N: Floats, draws_N: Floats) -> None:
        order = np.argsort(log_aspect_N, kind="stable")
        self._aspects = log_aspect_N[order]
        draws = draws_N[order]
        self._draws = np.concatenate([[0.0], np.cumsum(draws)])
        self._times_exp = np.concatenate([[0.0], np.cumsum(draws * np.exp(self._aspects))])
        self._times_exp_neg = np.concatenate([[0.0], np.cumsum(draws * np.exp(-self._aspects))])
        self.total_draws = float(self._draws[-1])

    def of_run(self, low: float, high: float, bucket: float) -> tuple[float, float]:
        """Return (draws, cropped images' worth of area) of the images with low < aspect <= high."""
        start, centre, stop = np.searchsorted(self._aspects, [low, bucket, high], side="right")
        centre = min(max(centre, start), stop)
        draws = self._draws[stop] - self._draws[start]
        # An image of log aspect a keeps exp(-|a - bucket|) of its area.
        kept = np.exp(-bucket) * (self._times_exp[centre] - self._times_exp[start])
        kept += np.exp(bucket) * (self._times_exp_neg[stop] - self._times_exp_neg[centre])
        return float(draws), float(draws - kept)


def _best_subset(aspects: Floats, crops: _CropSums, min_draws: float) -> list[int]:
    """Return the indices of the candidates that minimise the cropped area, each with enough draws.

    cost[j][i] is the least area cropped by all buckets up to i, when i is used, j is the one before
    it (-1 for none), and the run of i is still open to the right.
    """
    num, slack = len(aspects), 1e-9
    before: dict[tuple[int, int], tuple[float, tuple[int, int] | None]] = {(-1, i): (0.0, None) for i in range(num)}
    best: tuple[float, tuple[int, int]] | None = None
    for i in range(num):
        for j in range(-1, i):
            if (j, i) not in before:
                continue
            cost = before[j, i][0]
            low = -np.inf if j < 0 else (aspects[j] + aspects[i]) / 2
            draws, cropped = crops.of_run(low, np.inf, aspects[i])
            if draws >= min_draws - slack and (best is None or cost + cropped < best[0] - slack):
                best = (cost + cropped, (j, i))
            for k in range(i + 1, num):
                draws, cropped = crops.of_run(low, (aspects[i] + aspects[k]) / 2, aspects[i])
                if draws < min_draws - slack:
                    continue
                if (i, k) not in before or cost + cropped < before[i, k][0] - slack:
                    before[i, k] = (cost + cropped, (j, i))
    assert best is not None, "one bucket for all images always has enough draws"
    chosen, state = [], best[1]
    while True:
        chosen.append(state[1])
        previous = before[state][1]
        if previous is None:
            return chosen[::-1]
        state = previous


def _midpoints(aspects: Floats) -> Floats:
    return (aspects[1:] + aspects[:-1]) / 2
