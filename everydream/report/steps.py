"""The arithmetic of a run: steps as they are and by the guides' formula, what divides well, time and disk."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.config import RunConfig
from everydream.plan import Planned
from everydream.training.runs import runs_of

_LARGEST_BATCH = 64
_LISTED = 5
_EVENTS = "events.jsonl"


def arithmetic(planned: Planned) -> dict[str, Any]:
    """Return the numbers of an epoch, and the guides' formula images * repeats / batch beside them.

    The formula knows neither left-overs of buckets nor accumulation's last step, so it says too few.
    """
    train, plan = planned.config.train, planned.epoch(0)
    sizes = np.diff(plan.batch_offsets)
    draws, per_step = len(plan.record_K), train.batch_size * train.gradient_accumulation
    return {
        "draws": draws,
        "batch_size": train.batch_size,
        "accumulation": train.gradient_accumulation,
        "batches": plan.num_batches,
        "full_batches": int((sizes == train.batch_size).sum()),
        "smaller_batches": int((sizes < train.batch_size).sum()),
        "steps": plan.num_steps,
        "formula": draws // per_step,
        "epochs": train.epochs,
        "total_steps": planned.total_steps,
        "max_steps": train.max_steps,
    }


def group_draws(planned: Planned) -> NDArray[np.int64]:
    """Return the draws of the first epoch for each group of images that may share a batch."""
    plan, ids = planned.epoch(0), len(planned.index.batch_ids)
    if not plan.num_batches:
        return np.zeros(0, np.int64)
    first_N = plan.record_K[plan.batch_offsets[:-1]]
    group_N = plan.bucket_of_batch.astype(np.int64) * ids + planned.index.batch_id_N[first_N]
    draws = np.bincount(group_N, np.diff(plan.batch_offsets)).astype(np.int64)
    return draws[draws > 0]


def batch_sizes(draws_G: NDArray[np.int64], current: int, accumulation: int) -> list[dict[str, Any]]:
    """Return the batch sizes between half and twice the current one that divide the epoch best, and the current one.

    `full` is the share of a batch's places that are filled. Counted in the buckets that are in use now: another batch
    size may change them a little.
    """
    size_B = np.arange(max(1, current // 2), min(max(2 * current, 2), _LARGEST_BATCH) + 1)
    if current not in size_B:
        size_B = np.append(size_B, current)
    batches_BG = -(-draws_G[None] // size_B[:, None])
    batches_B = batches_BG.sum(1)
    full_B = draws_G.sum() / np.maximum(batches_B * size_B, 1)
    smaller_B = (draws_G[None] % size_B[:, None] > 0).sum(1)
    rows = [
        {"batch_size": int(size), "batches": int(batches), "smaller": int(smaller), "full": round(float(full), 4),
         "steps": int(-(-batches // accumulation))}
        for size, batches, smaller, full in zip(size_B, batches_B, smaller_B, full_B, strict=True)
    ]  # fmt: skip
    best = sorted(rows, key=lambda row: (-row["full"], -row["batch_size"]))[:_LISTED]
    mine = [row for row in rows if row["batch_size"] == current and row not in best]
    return sorted([*best, *mine], key=lambda row: row["batch_size"])


def accumulations(batches: int, most: int = 8) -> list[dict[str, int]]:
    """Return for accumulation 1 to `most` the steps of an epoch, and the batches of a last step that has fewer."""
    return [{"accumulation": n, "steps": -(-batches // n), "last_step": batches % n} for n in range(1, most + 1)]


def saves(config: RunConfig, steps_per_epoch: Sequence[int], total_steps: int) -> dict[str, Any]:
    """Return how often a run of these steps writes checkpoints by epochs and steps, and how many exports are kept.

    What is written by the clock (`checkpoints.every_minutes`) comes on top and cannot be known before.
    """
    settings = config.checkpoints
    ends = np.cumsum(steps_per_epoch)
    epochs = {int(end) for n, end in enumerate(ends, 1) if settings.every_epochs and n % settings.every_epochs == 0}
    steps = set(range(settings.every_steps, total_steps + 1, settings.every_steps)) if settings.every_steps else set()
    due = {step for step in epochs | steps | {total_steps} if 0 < step <= total_steps}
    return {
        "saves": len(due), "every_minutes": settings.every_minutes, "keep": settings.keep,
        "exports_kept": len(due) if settings.keep is None else min(len(due), settings.keep + settings.keep_best),
        "formats": settings.formats,
    }  # fmt: skip


def last_run(config: RunConfig, total_steps: int) -> dict[str, Any] | None:
    """Return what the project's newest run that went from start to end took: s a step, bytes; None if there is none.

    `seconds` is for `total_steps` at that rate; other settings than that run's make another rate.
    """
    for run in sorted(runs_of(Path(config.runs_dir), config.project), reverse=True):
        events = run / _EVENTS
        facts = _times(events)
        if facts is not None:
            took, steps = facts
            last = events.parent / "checkpoints" / "last.ckpt"
            return {
                "run": events.parent.name,
                "seconds_per_step": round(took / steps, 4),
                "seconds": round(took / steps * total_steps, 1),
                "last_ckpt_bytes": last.stat().st_size if last.is_file() else None,
            }
    return None


def _times(events: Path) -> tuple[float, int] | None:
    """Return (seconds, steps) of a run that was never stopped, None of another or where the file is damaged."""
    try:
        rows = [json.loads(line) for line in events.read_text(encoding="utf-8").splitlines()]
        ends = [row for row in rows if row["event"] in ("started", "resumed", "stopped", "finished")]
        if [row["event"] for row in ends] != ["started", "finished"]:
            return None
        first, last = (datetime.strptime(row["time"], "%Y-%m-%dT%H:%M:%S%z") for row in ends)
        steps = int(ends[1]["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ((last - first).total_seconds(), steps) if steps and last > first else None
