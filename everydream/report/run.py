"""The plan and the end of a run in words."""

import signal
from pathlib import Path
from typing import Any

import torch

from everydream.diffusion.weighting import mean_weight
from everydream.methods.method import ParameterGroup
from everydream.models.family import Family
from everydream.outputs import Trainee, size_report
from everydream.plan import Planned
from everydream.report.outline import (
    describe_buckets,
    describe_epochs,
    describe_measured,
    describe_rejected,
    describe_shared,
    describe_switched_off,
    table,
)
from everydream.report.sources import describe_sources, source_facts
from everydream.training import export
from everydream.training.compiling import Graphs
from everydream.training.lr import warmup_steps
from everydream.training.memory import describe_memory, resolved
from everydream.training.optimizers import optimizer_notes
from everydream.training.runs import LAST
from everydream.types import Progress


def describe_plan(planned: Planned, trainee: Trainee, processes: str, device: torch.device, graphs: Graphs) -> str:
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
    if graphs.most:
        rows.append(("Compiled", [graphs.describe()]))
    if off := describe_switched_off(planned):
        rows.append(("Off", off))
    if planned.index.rejected:
        rows.append(("Rejected", describe_rejected(planned)))
    warmup = warmup_steps(planned.config.lr_schedule, planned.total_steps)
    if warmup >= planned.total_steps:
        rows.append(
            ("Note", [f"lr_schedule.warmup_steps {warmup} is as long as the run: the peak rate is not reached"])
        )
    rows.append(("Note", [*optimizer_notes(config.optimizer, device), *describe_shared(planned)]))
    return table(rows)


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


def plan_facts(planned: Planned) -> dict[str, Any]:
    """Return what a run folder keeps of the plan: sources with their draws, near duplicates, steps in all."""
    index = planned.index
    roots = dict(zip(index.names, index.roots, strict=True))
    return {
        "sources": [{**fact, "root": roots[fact["name"]]} for fact in source_facts(planned)],
        "twins": [[index.key(record) for record in group] for group in planned.kin],
        "total_steps": planned.total_steps,
    }


def describe_end(run: Path, progress: Progress, total_steps: int, ended_by: int | None) -> str:
    """Return what to say when the loop has ended."""
    last = run / "checkpoints" / LAST
    if ended_by is not None:
        name = signal.Signals(ended_by).name
        return (
            f"Stopped by {name} after step {progress.step} of {total_steps}; everything is saved. Go on with:\n"
            f"  python train.py --resume {last}"
        )
    of_now = [path for path in last.parent.iterdir() if path.name != LAST and f"-s{progress.step:06d}" in path.name]
    exports = sorted(path for path in of_now if path.suffix != ".md")
    lines = [f"Finished: {progress.step} steps, {progress.images_seen} images seen.", f"Model and state: {last}"]
    lines += [f"For other tools: {path}" for path in exports]
    return "\n".join(lines + ([f"Samples:         {run / 'samples'}"] if (run / "samples").is_dir() else []))
