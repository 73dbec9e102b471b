"""The plan and the end of a run in words, and `everydream inspect`'s report, as text and as JSON."""

import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from everydream.data.buckets import kept_fraction
from everydream.data.scan import source_warnings
from everydream.diffusion.weighting import mean_weight
from everydream.evaluation.heldout import Monitored, shared_with_training
from everydream.methods.method import ParameterGroup
from everydream.models.family import Family
from everydream.outputs import Trainee, size_report
from everydream.plan import Planned, every_epochs, monitors_of
from everydream.report_images import image_warnings
from everydream.report_sources import describe_sources, source_facts
from everydream.training import export
from everydream.training.lr import warmup_steps
from everydream.training.memory import describe_memory, resolved
from everydream.training.optimizers import optimizer_notes
from everydream.training.runs import LAST
from everydream.types import Progress

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


def describe_plan(planned: Planned, trainee: Trainee, processes: str, device: torch.device) -> str:
    """Return the plan of a run, printed before it starts."""
    sizes, config = size_report(planned.config, trainee), planned.config
    use = resolved(config.memory, config.train, config.optimizer)
    family = trainee.family
    rows = [
        ("Model", [f"{family.name}, predicts {family.objective.prediction}"]),
        ("Method", [f"{planned.config.method}; trains {', '.join(map(_describe_group, trainee.groups))}"]),
        ("Processes", [processes]),
        ("Loss", [_describe_loss(planned, family)]),
        ("Memory", describe_memory(planned.config.memory, use)),
        ("Sources", describe_sources(planned)),
        ("Buckets", describe_buckets(planned)),
        ("Epochs", describe_epochs(planned)),
        ("Measured", describe_measured(planned)),
        ("Saves", [export.describe(planned.config.checkpoints)]),
        ("Disk", [", ".join(f"{name} {size}" for name, size in sizes.items())]),
    ]
    if planned.index.rejected:
        rows.append(("Rejected", describe_rejected(planned)))
    warmup = warmup_steps(planned.config.lr_schedule, planned.total_steps)
    if warmup >= planned.total_steps:
        rows.append(
            ("Note", [f"lr_schedule.warmup_steps {warmup} is as long as the run: the peak rate is not reached"])
        )
    rows.append(("Note", [*optimizer_notes(config.optimizer, device), *describe_shared(planned)]))
    return _table(rows)


def _describe_loss(planned: Planned, family: Family) -> str:
    """Return what is minimised, and by how much its weights were divided."""
    loss, timesteps = planned.config.loss, planned.config.timesteps
    law = f"{loss.kind}, timesteps {timesteps.law}{', stratified' if timesteps.stratified else ''}"
    if loss.weighting == "none":
        return law
    width, height = planned.buckets.sizes[0]
    latent_hw = (height // family.spatial_factor, width // family.spatial_factor)
    mean = mean_weight(family.objective, loss, timesteps, latent_hw)
    done = "divided by their mean" if loss.normalize_weights else "as they are, of mean"
    return f"{law}, weights {loss.weighting} for {family.objective.prediction}, {done} {mean:.4f}"


def _describe_group(group: ParameterGroup) -> str:
    num = sum(parameter.numel() for parameter in group.parameters)
    until = f", the first {group.epochs} epochs" if group.epochs is not None else ""
    return f"{group.part} ({num:,} parameters, lr {group.lr:g}{until})"


def describe_rejected(planned: Planned) -> list[str]:
    """Return the rejected files with their reasons, the first ones in full."""
    index = planned.index
    lines = [f"{index.names[r.source]}/{r.path}: {r.reason}" for r in index.rejected[:_LISTED]]
    more = len(index.rejected) - _LISTED
    return lines + ([f"... and {more} more; `everydream inspect --json FILE` lists all"] if more > 0 else [])


def describe_end(run: Path, progress: Progress, total_steps: int, ended_by: int | None) -> str:
    """Return what to say when the loop has ended."""
    last = run / "checkpoints" / LAST
    if ended_by is not None:
        name = signal.Signals(ended_by).name
        return (
            f"Stopped by {name} after step {progress.step} of {total_steps}; everything is saved. Go on with:\n"
            f"  python train.py --resume {last}"
        )
    exports = sorted(
        path for path in last.parent.iterdir() if path.name != LAST and f"-s{progress.step:06d}" in path.name
    )
    lines = [f"Finished: {progress.step} steps, {progress.images_seen} images seen.", f"Model and state: {last}"]
    lines += [f"For other tools: {path}" for path in exports]
    return "\n".join(lines + ([f"Samples:         {run / 'samples'}"] if (run / "samples").is_dir() else []))


def inspect_report(planned: Planned, count_tokens: Callable[[str], int]) -> dict[str, Any]:
    """Return the report of `everydream inspect --json`; image paths are relative to their source."""
    index, counts, held_out_N = planned.index, planned.mix.counts(0), planned.held_out()
    sizes = planned.bucket_of_each()
    others = [planned.bucket_of_each(nth) for nth in range(1, len(planned.buckets.shares))]
    warnings = image_warnings(planned, count_tokens)
    images = []
    for i in range(len(index)):
        variants = list(index.captions[int(index.caption_offsets[i]) : int(index.caption_offsets[i + 1])])
        entry: dict[str, Any] = {
            "path": index.paths[i],
            "caption": variants[0] if variants else "",
            "bucket": list(sizes[i]),
            "draws": int(counts[i]),
            "source": index.names[int(index.source_N[i])],
            "warnings": warnings.get(i, []),
        }
        if len(variants) > 1:
            entry["variants"] = variants
        if held_out_N[i]:
            entry["held_out"] = True
        if others:
            entry["also_in"] = [list(other[i]) for other in others]
        if i in index.groups:
            entry["group"] = index.groups[i]
        images.append(entry)
    plan = planned.epoch(0)
    return {
        "sources": source_facts(planned),
        "images": images,
        "rejected": [{"path": r.path, "reason": r.reason, "source": index.names[r.source]} for r in index.rejected],
        "epoch": {
            "draws": len(plan.record_K),
            "batches": plan.num_batches,
            "steps": plan.num_steps,
            # Left-overs train in batches of their own, so nothing is repeated to fill one and nothing waits.
            "repeated": max(len(plan.record_K) - int(counts.sum()), 0),
            "left_for_next": max(int(counts.sum()) - len(plan.record_K), 0),
        },
        "source_warnings": {
            index.names[n]: lines for n, lines in source_warnings(index, planned.config.data.sources).items()
        },
        "total_steps": planned.total_steps,
    }


def describe_inspection(planned: Planned, report: dict[str, Any]) -> str:
    """Return the report of `everydream inspect` for a terminal."""
    index = planned.index
    captions = Counter(entry["caption"] for entry in report["images"])
    common = [f"{count} x {caption!r}" for caption, count in captions.most_common(5)]
    unusual = [f"{name}: {warning}" for name, lines in report["source_warnings"].items() for warning in lines]
    unusual += _by_kind(
        [(f"{e['source']}/{e['path']}", warning) for e in report["images"] for warning in e["warnings"]]
    )
    unusual += describe_shared(planned)
    draws = Counter(entry["draws"] for entry in report["images"] if "held_out" not in entry)
    rows = [
        ("Sources", describe_sources(planned)),
        ("Captions", [f"{len(captions)} different ones; the most frequent:", *common]),
        ("Buckets", describe_buckets(planned)),
        ("Draws", [f"{number} drawn {times} times an epoch" for times, number in sorted(draws.items())]),
        ("Epochs", describe_epochs(planned)),
        ("Measured", describe_measured(planned)),
        ("Unusual", unusual or ["nothing"]),
        ("Rejected", describe_rejected(planned) or ["nothing"]),
    ]
    seen = f"{len(index)} images usable, {len(index.rejected)} rejected"
    return f"{seen}\n{_table(rows)}"


def _by_kind(warnings: list[tuple[str, str]]) -> list[str]:
    """Return a few warnings of each kind in full and the number of the others; kinds differ in their first words."""
    kinds: dict[str, list[str]] = {}
    for image, warning in warnings:
        kinds.setdefault(" ".join(re.split(r"[\d\"':]", warning)[0].split()[:4]), []).append(f"{image}: {warning}")
    lines = []
    for kind in kinds.values():
        lines += kind[:_OF_A_KIND]
        if len(kind) > _OF_A_KIND:
            lines.append(f"    ... and {len(kind) - _OF_A_KIND} more like these; --json FILE lists all")
    return lines


def _table(rows: list[tuple[str, list[str]]]) -> str:
    return "\n".join(
        f"{name if number == 0 else '':<10}{line}" for name, lines in rows for number, line in enumerate(lines)
    )
