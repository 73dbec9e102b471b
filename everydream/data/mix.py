"""How often each image is drawn in an epoch: exact per source, exact per image over the epochs.

A source is an endless, fair sequence of its images: after k slots, image i has been visited
k * w_i / W times, rounded up or down, where w_i is its weight. Epoch e takes the slots from
`drawn_before(e)` to `drawn_before(e + 1)`. So totals are exact in every epoch, fractional repeats
rotate instead of starving the same images, and nothing has to be remembered between epochs.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from everydream.data.settings import SourceSettings
from everydream.seeding import derive, numpy_generator
from everydream.types import Index

Ints = NDArray[np.int64]
_UNIT = 1_000_000  # repeats are counted in millionths, in integers: ten times 0.1 is exactly 1


@dataclass(frozen=True)
class SourceMix:
    """One source's part in every epoch."""

    records: Ints
    """Its records, in a fixed shuffled order."""
    whole: Ints
    """Visits that every record gets in each epoch."""
    weights: Ints
    """Integer weights for the fractional rest."""
    rest_per_epoch: Fraction
    """Draws per epoch beside the whole ones; an epoch gets this many, rounded so that the sum over epochs is."""

    def rest_before(self, epoch: int) -> int:
        """Return how many fractional draws all epochs before `epoch` took together."""
        return math.floor(self.rest_per_epoch * epoch + Fraction(1, 2))

    def counts(self, epoch: int) -> Ints:
        """Return how often each of `records` is drawn in `epoch`."""
        start, stop = self.rest_before(epoch), self.rest_before(epoch + 1)
        return self.whole + fair_counts(self.weights, stop) - fair_counts(self.weights, start)


@dataclass(frozen=True)
class Mix:
    """All sources' parts."""

    sources: Sequence[SourceMix]
    num_records: int

    def counts(self, epoch: int) -> Ints:
        """Return how often each record of the index is drawn in `epoch`."""
        counts_N = np.zeros(self.num_records, np.int64)
        for source in self.sources:
            counts_N[source.records] = source.counts(epoch)
        return counts_N

    def mean_counts(self) -> NDArray[np.float64]:
        """Return how often each record is drawn per epoch, on average over many epochs."""
        mean_N = np.zeros(self.num_records)
        for source in self.sources:
            weight = max(int(source.weights.sum()), 1)
            mean_N[source.records] = source.whole + float(source.rest_per_epoch) * source.weights / weight
        return mean_N


def fair_counts(weights: Ints, slots: int) -> Ints:
    """Return how often each item is taken in the first `slots` slots of the fair sequence.

    Items of equal weight form a group. The groups share the slots by `apportion`; inside a group of
    n items, of which the i-th starts i/n ahead, k slots give (k + i) // n visits, which sums to
    exactly k (Hermite's identity). Never decreases in `slots`, so neither does any item's count.
    """
    counts = np.zeros(len(weights), np.int64)
    values, group = np.unique(weights, return_inverse=True)
    sizes = np.bincount(group, minlength=len(values))
    totals = [int(value) * int(size) for value, size in zip(values, sizes, strict=True)]
    for number, share in enumerate(apportion(totals, slots)):
        members = np.flatnonzero(group == number)
        counts[members] = (share + np.arange(len(members))) // len(members)
    return counts


def apportion(weights: Sequence[int], slots: int) -> list[int]:
    """Share `slots` among `weights` by the Webster / Sainte-Lague method, in exact integers.

    The first `slots` of all positions (2j + 1) / weight, ties to the earlier one: a divisor method,
    so one more slot never takes one away from anybody. Each share is within about one of its quota.
    """
    total = sum(weights)
    if total == 0 or slots == 0:
        return [0] * len(weights)
    # Everything up to this point is certainly among the first `slots`: rounding adds at most half a slot each.
    certain = max(slots - (len(weights) + 1) // 2, 0)
    shares = [(2 * certain * weight + total) // (2 * total) for weight in weights]
    upcoming = [(Fraction(2 * shares[i] + 1, weight), i) for i, weight in enumerate(weights) if weight]
    heapq.heapify(upcoming)
    for _ in range(slots - sum(shares)):
        _, i = upcoming[0]
        shares[i] += 1
        heapq.heapreplace(upcoming, (Fraction(2 * shares[i] + 1, weights[i]), i))
    return shares


def make_mix(index: Index, sources: Sequence[SourceSettings], seed: int, held_out: Ints | Sequence[int] = ()) -> Mix:
    """Turn each source's repeats, share or choose into exact draws per epoch; `held_out` records get none.

    A share is a share of all draws: with shares summing to S, the sources that have repeats or
    choose make up the other 1 - S.
    """
    drawable_N = np.ones(len(index), np.bool_)
    drawable_N[np.asarray(held_out, np.int64)] = False
    records = [_shuffled_records(index, number, seed, drawable_N) for number in range(len(sources))]
    base: list[SourceMix | None] = [
        None if setting.share is not None else _counted(index, records[number], setting)
        for number, setting in enumerate(sources)
    ]
    base_draws = sum((_per_epoch(mix) for mix in base if mix is not None), Fraction(0))
    shares = {n: Fraction(s.share).limit_denominator(_UNIT) for n, s in enumerate(sources) if s.share is not None}
    # A source without a usable image cannot take its share; the rest keeps its amount.
    usable = {n: share for n, share in shares.items() if len(records[n])}
    rest = 1 - sum(usable.values(), Fraction(0))
    mixes = []
    for number, mix in enumerate(base):
        if mix is None:
            draws = base_draws * usable[number] / rest if number in usable else Fraction(0)
            mix = _spread(index, records[number], draws)  # noqa: PLW2901
        mixes.append(mix)
    return Mix(mixes, len(index))


def _per_epoch(mix: SourceMix) -> Fraction:
    return int(mix.whole.sum()) + mix.rest_per_epoch


def _counted(index: Index, records: Ints, setting: SourceSettings) -> SourceMix:
    """Return the part of a source that is given by repeats (default 1) or choose."""
    if setting.choose is not None:
        return _spread(index, records, Fraction(setting.choose))
    repeats = 1.0 if setting.repeats is None else setting.repeats
    units = np.rint(repeats * index.repeats_N[records] * _UNIT).astype(np.int64)
    weights = units % _UNIT
    return SourceMix(records, units // _UNIT, weights, Fraction(int(weights.sum()), _UNIT))


def _spread(index: Index, records: Ints, draws: Fraction) -> SourceMix:
    """Return a source's part that makes exactly `draws` draws an epoch, in proportion to the folders' multipliers."""
    weights = np.rint(index.repeats_N[records] * _UNIT).astype(np.int64)
    weights //= max(int(np.gcd.reduce(weights)), 1) if len(weights) else 1
    none = np.zeros(len(records), np.int64)
    return SourceMix(records, none, weights, draws if len(records) else Fraction(0))


def _shuffled_records(index: Index, number: int, seed: int, drawable_N: NDArray[np.bool_]) -> Ints:
    """Return the source's records in a fixed random order, so that neighbours in a folder are not drawn together."""
    records = np.flatnonzero((index.source_N == number) & drawable_N).astype(np.int64)
    numpy_generator(derive(seed, "rotation", index.names[number])).shuffle(records)
    return records
