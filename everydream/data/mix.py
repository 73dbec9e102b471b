"""How often each image is drawn in an epoch: exact per source, exact per image over the epochs.

A source is an endless, fair sequence of its images: after k slots, image i has been visited
k * w_i / W times, rounded up or down, where w_i is its weight. Epoch e takes the slots from
`drawn_before(e)` to `drawn_before(e + 1)`. So totals are exact in every epoch, fractional repeats
rotate instead of starving the same images, and nothing has to be remembered between epochs.

What is visited is a *unit*: an image, or a group of images that take turns (`group` in the folder settings).
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from everydream.data.pairing import pools
from everydream.data.settings import SourceSettings
from everydream.seeding import derive, numpy_generator
from everydream.types import Index

Ints = NDArray[np.int64]
_UNIT = 1_000_000  # repeats are counted in millionths, in integers: ten times 0.1 is exactly 1


@dataclass(frozen=True)
class Units:
    """What a source draws: single images, and groups of images of which each visit takes the next."""

    records: Ints
    """All its records, unit by unit; the units in a fixed shuffled order, a group's members in the index's."""
    unit: Ints
    """The number of each record's unit."""
    place: Ints
    """Which member of its unit each record is, from 0."""
    size: Ints
    """How many members each record's unit has."""

    @property
    def firsts(self) -> Ints:
        """The first record of each unit, whose repeats are the unit's."""
        return self.records[np.flatnonzero(self.place == 0)]

    def turns(self, visits: Ints) -> Ints:
        """Return how often each record was taken in the first `visits[u]` visits of its unit u."""
        return (visits[self.unit] - self.place + self.size - 1) // self.size


class Rest(Protocol):
    """A source's draws beside the whole ones."""

    @property
    def per_epoch(self) -> Fraction:
        """Draws per epoch, on average over all epochs."""
        ...

    def before(self, epoch: int) -> int:
        """Return how many draws all epochs before `epoch` took together."""
        ...


@dataclass(frozen=True)
class Steady:
    """So many draws per epoch, rounded so that the sum over epochs is."""

    per_epoch: Fraction

    def before(self, epoch: int) -> int:
        """Return how many draws all epochs before `epoch` took together."""
        return math.floor(self.per_epoch * epoch + Fraction(1, 2))


@dataclass(frozen=True)
class Following:
    """As many draws as other sources have together, in every epoch; shared by a pool in proportion to its sizes."""

    followed: Sequence["SourceMix"]
    sizes: Sequence[int]
    """Images of each source of the pool."""
    position: int
    """Which of the pool this is."""

    @property
    def per_epoch(self) -> Fraction:
        """Draws per epoch, on average over all epochs."""
        share = Fraction(self.sizes[self.position], sum(self.sizes))
        return share * sum((mix.per_epoch for mix in self.followed), Fraction(0))

    def before(self, epoch: int) -> int:
        """Return how many draws all epochs before `epoch` took together."""
        return apportion(self.sizes, sum(mix.drawn_before(epoch) for mix in self.followed))[self.position]


@dataclass(frozen=True)
class SourceMix:
    """One source's part in every epoch."""

    units: Units
    whole: Ints
    """Visits that every unit gets in each epoch."""
    weights: Ints
    """Integer weights of the units for the rest."""
    rest: Rest

    @property
    def per_epoch(self) -> Fraction:
        """Draws per epoch, on average over all epochs."""
        return int(self.whole.sum()) + self.rest.per_epoch

    def drawn_before(self, epoch: int) -> int:
        """Return how many draws all epochs before `epoch` took together."""
        return int(self.whole.sum()) * epoch + self.rest.before(epoch)

    def turns_before(self, epoch: int) -> Ints:
        """Return how often each record was drawn in all epochs before `epoch`."""
        return self.units.turns(self.whole * epoch + fair_counts(self.weights, self.rest.before(epoch)))

    def counts(self, epoch: int) -> Ints:
        """Return how often each record is drawn in `epoch`."""
        return self.turns_before(epoch + 1) - self.turns_before(epoch)

    def mean_counts(self) -> NDArray[np.float64]:
        """Return how often each record is drawn per epoch, on average over many epochs."""
        weight = max(int(self.weights.sum()), 1)
        visits = self.whole + float(self.rest.per_epoch) * self.weights / weight
        return visits[self.units.unit] / self.units.size


@dataclass(frozen=True)
class Mix:
    """All sources' parts."""

    sources: Sequence[SourceMix]
    num_records: int

    def counts(self, epoch: int) -> Ints:
        """Return how often each record of the index is drawn in `epoch`."""
        counts_N = np.zeros(self.num_records, np.int64)
        for source in self.sources:
            counts_N[source.units.records] = source.counts(epoch)
        return counts_N

    def mean_counts(self) -> NDArray[np.float64]:
        """Return how often each record is drawn per epoch, on average over many epochs."""
        mean_N = np.zeros(self.num_records)
        for source in self.sources:
            mean_N[source.units.records] = source.mean_counts()
        return mean_N


def fair_counts(weights: Ints, slots: int) -> Ints:
    """Return how often each item is taken in the first `slots` slots of the fair sequence.

    Items of equal weight form a group. The groups share the slots by `apportion`; inside a group of
    n items, of which the i-th starts i/n ahead, k slots give (k + i) // n visits, which sums to
    exactly k (Hermite's identity). Never decreases in `slots`, so neither does any item's count.
    """
    counts = np.zeros(len(weights), np.int64)
    if slots == 0:
        return counts
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
    choose make up the other 1 - S. Class images without an amount follow the sources they pair with,
    so a share that they follow takes its part twice.
    """
    drawable_N = np.ones(len(index), np.bool_)
    drawable_N[np.asarray(held_out, np.int64)] = False
    units = [_units(index, number, seed, drawable_N) for number in range(len(sources))]
    # A source without a usable image can neither take its share nor follow; the rest keeps its amount.
    usable = [number for number, found in enumerate(units) if len(found.records)]
    shares = {n: Fraction(s.share).limit_denominator(_UNIT) for n in usable if (s := sources[n]).share is not None}
    pooled = [(partners, [n for n in pool if n in usable]) for partners, pool in pools(sources, index.names).items()]
    pooled = [(partners, pool) for partners, pool in pooled if pool]
    followed = [n for partners, _ in pooled for n in partners]

    mixes = {
        number: _counted(index, units[number], source)
        for number, source in enumerate(sources)
        if source.share is None and not source.follows
    }
    base_draws = sum((mixes[n].per_epoch for n in [*mixes, *(n for n in followed if n in mixes)]), Fraction(0))
    all_draws = base_draws / (1 - sum((shares.get(n, Fraction(0)) for n in [*shares, *followed]), Fraction(0)))
    for number, source in enumerate(sources):
        if source.share is not None:
            mixes[number] = _spread(index, units[number], Steady(all_draws * shares.get(number, 0)))
    for partners, pool in pooled:
        sizes = [len(units[n].records) for n in pool]
        for position, number in enumerate(pool):
            rest = Following([mixes[n] for n in partners], sizes, position)
            mixes[number] = _spread(index, units[number], rest)
    return Mix([mixes[n] for n in range(len(sources)) if n in mixes], len(index))


def _counted(index: Index, units: Units, setting: SourceSettings) -> SourceMix:
    """Return the part of a source that is given by repeats (default 1) or choose."""
    if setting.choose is not None:
        return _spread(index, units, Steady(Fraction(setting.choose if len(units.records) else 0)))
    repeats = 1.0 if setting.repeats is None else setting.repeats
    amounts = np.rint(repeats * index.repeats_N[units.firsts] * _UNIT).astype(np.int64)
    weights = amounts % _UNIT
    return SourceMix(units, amounts // _UNIT, weights, Steady(Fraction(int(weights.sum()), _UNIT)))


def _spread(index: Index, units: Units, rest: Rest) -> SourceMix:
    """Return a source's part whose draws are all of `rest`, in proportion to the folders' multipliers."""
    weights = np.rint(index.repeats_N[units.firsts] * _UNIT).astype(np.int64)
    weights //= max(int(np.gcd.reduce(weights)), 1) if len(weights) else 1
    return SourceMix(units, np.zeros(len(weights), np.int64), weights, rest)


def _units(index: Index, number: int, seed: int, drawable_N: NDArray[np.bool_]) -> Units:
    """Return what a source draws, in a fixed random order, so that neighbours in a folder are not drawn together."""
    records = np.flatnonzero((index.source_N == number) & drawable_N).astype(np.int64)
    leader_N = _leaders(index, number, drawable_N)
    order = records[leader_N[records] == records]
    numpy_generator(derive(seed, "rotation", index.names[number])).shuffle(order)
    unit_N = np.zeros(len(index), np.int64)
    unit_N[order] = np.arange(len(order))
    unit = unit_N[leader_N[records]]
    by_unit = np.argsort(unit, kind="stable")
    unit = unit[by_unit]
    size = np.bincount(unit, minlength=len(order))
    place = np.arange(len(unit)) - np.repeat(np.cumsum(size) - size, size)
    return Units(records[by_unit], unit, place, size[unit])


def _leaders(index: Index, number: int, drawable_N: NDArray[np.bool_]) -> Ints:
    """Return for each record the first one of its group that can be drawn; an image alone is its own."""
    leader_N = np.arange(len(index), dtype=np.int64)
    first_of: dict[str, int] = {}
    for record, group in sorted(index.groups.items()):
        if index.source_N[record] == number and drawable_N[record]:
            leader_N[record] = first_of.setdefault(group, record)
    return leader_N
