"""What the trainer's plan and the inspection both say: epochs, buckets, what is measured, what is rejected."""

from collections import Counter

import numpy as np

from everydream.data.buckets import kept_fraction
from everydream.evaluation.heldout import Monitored, shared_with_training
from everydream.plan import Planned, every_epochs, monitors_of

_LISTED = 20
_OF_A_KIND = 3


def describe_measured(planned: Planned) -> list[str]:
    """Return what the monitors measure and when; nothing where all are off."""
    lines = []
    for name, settings in monitors_of(planned.config).items():
        if name not in planned.watched:
            continue
        measured = planned.watched[name]
        rejected = []
        if settings.path is None:
            counts = Counter(planned.index.names[int(number)] for number in measured.index.source_N)
            what = f"{len(measured.index)} held-out images ({', '.join(f'{name} {n}' for name, n in counts.items())})"
        else:
            what = f"{len(measured.index)} images of {settings.path}"
            rejected = [f"not measured: {item.path}: {item.reason}" for item in measured.index.rejected]
        if name == "validation":
            what += f" and {len(planned.watched['train'].index)} that are trained on"
        when = f"before training, {_how_often(planned, name)} and at the end"
        more = [f"... and {len(rejected) - _OF_A_KIND} more"] if len(rejected) > _OF_A_KIND else []
        lines += [f"{name}: {what}, each at {settings.timesteps} noise levels: {when}", *rejected[:_OF_A_KIND], *more]
    return lines


def _how_often(planned: Planned, name: Monitored) -> str:
    if (steps := monitors_of(planned.config)[name].every_steps) is not None:
        return f"every {steps} steps"
    epochs = every_epochs(planned, name)
    return "after each epoch" if epochs == 1 else f"every {epochs} epochs"


def describe_shared(planned: Planned) -> list[str]:
    """Return a line for each training source that has files of a ground-truth source."""
    index = planned.index
    return [
        f"{index.names[a]} and {index.names[b]} (ground truth) have {num} files in common, which are drawn for both"
        for a, b, num in shared_with_training(index, planned.config.data.sources)
    ]


def describe_buckets(planned: Planned) -> list[str]:
    """Return a line per bucket: images, draws, how much is cropped away."""
    index, plan, buckets = planned.index, planned.epoch(0), planned.buckets
    draws_of_bucket = np.bincount(plan.bucket_of_batch, np.diff(plan.batch_offsets), len(buckets.sizes)).astype(int)
    trained_N = ~planned.held_out()
    bucket_RN = [buckets.assign(index.width_N, index.height_N, nth) for nth in range(len(buckets.shares))]
    lines = []
    for number, size in enumerate(buckets.sizes):
        mine = np.flatnonzero(np.any([bucket_N == number for bucket_N in bucket_RN], axis=0) & trained_N)
        if not len(mine):
            continue
        lost = [1 - kept_fraction(int(index.width_N[i]), int(index.height_N[i]), size) for i in mine]
        lines.append(
            f"{size[0]}x{size[1]}: {len(mine)} images, {draws_of_bucket[number]} draws, "
            f"crops {100 * float(np.mean(lost)):.1f} % on average, {100 * max(lost):.1f} % at most"
        )
    return lines


def describe_epochs(planned: Planned) -> list[str]:
    """Return the arithmetic of the run."""
    train, plan = planned.config.train, planned.epoch(0)
    sizes = np.diff(plan.batch_offsets)
    left_over = int((sizes < train.batch_size).sum())
    least, most, total = min(planned.steps_per_epoch), max(planned.steps_per_epoch), planned.total_steps
    steps = f"{least}" if least == most else f"{least} to {most}"
    bound = f", bounded by max_steps {train.max_steps}" if train.max_steps and total == train.max_steps else ""
    return [
        f"{len(plan.record_K)} draws an epoch in {plan.num_batches} batches of {train.batch_size}"
        + (
            f", {left_over} of them smaller (left-overs of their buckets, weighed by their true size)"
            if left_over
            else ""
        ),
        f"{steps} steps an epoch (accumulation {train.gradient_accumulation}), {train.epochs} epochs, "
        f"{total} steps in all{bound}",
    ]


def describe_rejected(planned: Planned) -> list[str]:
    """Return the rejected files with their reasons, the first ones in full."""
    index = planned.index
    lines = [f"{index.names[r.source]}/{r.path}: {r.reason}" for r in index.rejected[:_LISTED]]
    more = len(index.rejected) - _LISTED
    return lines + ([f"... and {more} more; `everydream inspect --json FILE` lists all"] if more > 0 else [])


def describe_switched_off(planned: Planned) -> list[str]:
    """Return how many images data.exclude leaves out, and a line for what it names in vain; nothing without a list."""
    index, path = planned.index, planned.config.data.exclude
    lines = [f"{len(index.switched_off)} images switched off, by {path}"] if index.switched_off else []
    if index.unknown_off:
        named = ", ".join(index.unknown_off[:_OF_A_KIND]) + (", ..." if len(index.unknown_off) > _OF_A_KIND else "")
        lines.append(f"data.exclude: {len(index.unknown_off)} lines of {path} name no image: {named}")
    return lines


def table(rows: list[tuple[str, list[str]]]) -> str:
    """Return rows of (name, lines) for a terminal."""
    return "\n".join(
        f"{name if number == 0 else '':<10}{line}" for name, lines in rows for number, line in enumerate(lines)
    )
