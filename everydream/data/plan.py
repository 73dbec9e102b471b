"""The epoch as arrays: which record, which visit, which batch, in which order.

`plan_epoch` is a pure function of the index, the mix, the buckets, the seed and the epoch: it can be
printed, tested on a million rows without an image, cut for any number of processes and resumed from
any step, because nothing ever changes it.

A step is `batch_size` x `accumulation` images *whatever the number of processes*: the same YAML gives
the same steps on one process and on eight. `pieces_for_rank` deals a step's micro-batches to the
processes, cutting them where there are more processes than micro-batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.data.buckets import Buckets, resolution_of_draws
from everydream.data.mix import Mix
from everydream.seeding import derive, numpy_generator
from everydream.types import EpochPlan, Index


def plan_epoch(
    index: Index, mix: Mix, buckets: Buckets, *, seed: int, epoch: int, batch_size: int, accumulation: int
) -> EpochPlan:
    """Return the plan of one epoch.

    Every draw of the mix occurs once. Each bucket's draws are shuffled and cut into batches; what is
    left over forms one smaller batch, which weighs by its true size (see `everydream.step`). Then the
    batches are shuffled. Images of different `batch_id`s never share a batch.
    """
    rng = numpy_generator(derive(seed, "order", epoch))
    record_K, nth_K = _draws(mix, epoch)
    order = rng.permutation(len(record_K))
    group_K = _groups(index, buckets, record_K, nth_K, seed, epoch)
    order = order[np.argsort(group_K[order], kind="stable")]
    starts, sizes = _cut(group_K[order], batch_size)

    shuffled = rng.permutation(len(starts))
    starts, sizes = starts[shuffled], sizes[shuffled]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    take = np.repeat(starts - offsets[:-1], sizes) + np.arange(len(order))
    draws = order[take]
    return EpochPlan(
        epoch=epoch,
        record_K=record_K[draws],
        nth_K=nth_K[draws],
        batch_offsets=offsets,
        bucket_of_batch=(group_K[draws[offsets[:-1]]] // len(index.batch_ids)).astype(np.int32),
        accumulation=accumulation,
    )


def count_steps(
    index: Index, mix: Mix, buckets: Buckets, *, seed: int, epoch: int, batch_size: int, accumulation: int
) -> int:
    """Return `plan_epoch(...).num_steps` without making the plan."""
    draws = np.bincount(_groups(index, buckets, *_draws(mix, epoch), seed, epoch))
    batches = int((-(-draws // batch_size)).sum())
    return -(-batches // accumulation)


def _draws(mix: Mix, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the records of an epoch's draws, and the how-manieth visit of its record each is."""
    counts_N = mix.counts(epoch)
    first_N = np.cumsum(counts_N) - counts_N
    total = int(counts_N.sum())
    # Half the memory, in all sets but those of thousands of millions of draws.
    kind = np.int32 if total < 2**31 else np.int64
    nth_K: NDArray[Any] = np.arange(total, dtype=kind)
    nth_K -= np.repeat(first_N.astype(kind), counts_N)
    return np.repeat(np.arange(len(counts_N), dtype=np.int64), counts_N), nth_K.astype(np.int32, copy=False)


def _groups(
    index: Index, buckets: Buckets, record_K: NDArray[np.int64], nth_K: NDArray[np.int32], seed: int, epoch: int
) -> NDArray[np.int64]:
    """Return for each draw a number that only draws which may share a batch have in common."""
    sizes = range(len(buckets.shares))
    bucket_RN = np.stack([buckets.assign(index.width_N, index.height_N, nth) for nth in sizes]).astype(np.int64)
    bucket_K = bucket_RN[resolution_of_draws(buckets, record_K, nth_K, seed, epoch), record_K]
    return bucket_K * len(index.batch_ids) + index.batch_id_N[record_K]


def _cut(group_K: NDArray[np.int64], batch_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (starts, sizes) of the batches in draws sorted by group; each group's last batch may be smaller."""
    _, group_starts, group_sizes = np.unique(group_K, return_index=True, return_counts=True)
    batches = -(-group_sizes // batch_size)
    nth_batch = np.arange(batches.sum()) - np.repeat(np.cumsum(batches) - batches, batches)
    starts = np.repeat(group_starts, batches) + nth_batch * batch_size
    ends = np.repeat(group_starts + group_sizes, batches)
    return starts.astype(np.int64), np.minimum(batch_size, ends - starts).astype(np.int64)


@dataclass(frozen=True)
class Piece:
    """The part of one micro-batch that one process works on. May be empty."""

    step_in_epoch: int
    bucket: int
    start: int
    """First draw of the piece in the plan; for an empty piece the first draw of its micro-batch."""
    size: int
    is_last_of_step: bool


def pieces_for_rank(plan: EpochPlan, rank: int, world: int, start: int = 0) -> Iterator[Piece]:
    """Yield what process `rank` of `world` computes, from step `start` on, in order.

    Every process gets the same number of pieces in every step, so that collective calls match. A
    micro-batch is cut into world / gcd(world, accumulation) parts, the step's parts are dealt in turn.
    """
    parts = world // gcd(world, plan.accumulation)
    for step in range(start, plan.num_steps):
        first = step * plan.accumulation
        last = min(first + plan.accumulation, plan.num_batches)
        units = [(batch, part) for batch in range(first, last) for part in range(parts)]
        rounds = -(-len(units) // world)
        for nth in range(rounds):
            number = nth * world + rank
            batch, part = units[number] if number < len(units) else (first, parts)
            begin, end = plan.batch_offsets[batch], plan.batch_offsets[batch + 1]
            bounds = begin + (end - begin) * np.arange(parts + 1) // parts
            low, size = (int(bounds[part]), int(bounds[part + 1] - bounds[part])) if part < parts else (int(begin), 0)
            yield Piece(step, int(plan.bucket_of_batch[batch]), low if size else int(begin), size, nth == rounds - 1)


def draws_of_step(plan: EpochPlan, step: int) -> tuple[int, int]:
    """Return the first draw of a step, and how many images it sees over all processes."""
    first, last = step * plan.accumulation, min((step + 1) * plan.accumulation, plan.num_batches)
    start = int(plan.batch_offsets[first])
    return start, int(plan.batch_offsets[last]) - start
