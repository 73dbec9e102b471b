"""The one loop: losses become optimizer steps; metrics, looks at the model and checkpoints follow on their cadence.

It is never subclassed and never copied. What differs between models, methods and objectives is behind
the family, the parameter groups and the step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from everydream.data.loader import Loaded
from everydream.data.plan import draws_of_step
from everydream.errors import TrainingError
from everydream.evaluation.judging import Decision
from everydream.methods.method import ParameterGroup
from everydream.training.accumulating import Accumulator, Gathered, Pending
from everydream.training.cadence import SaveCadence
from everydream.training.display import Display
from everydream.training.ema import Ema
from everydream.training.launch import Launch
from everydream.training.ledger import Ledger
from everydream.training.metrics import Events, JsonLines
from everydream.training.signals import StopRequest
from everydream.training.waits import Waits
from everydream.types import EpochPlan, Progress

_MAX_BAD_STEPS = 3
_MAX_UNSCALED_STEPS = 100
NOT_FINITE = "loss or gradients are not finite"
BY_SCALER = "the fp16 loss scaler is finding its scale"
NO_IMAGES = "no image of the step could be read"


@dataclass(frozen=True)
class Look:
    """Something done with the model as it is: before the first step, after the last, and on its cadence."""

    name: str
    """What messages call it."""
    run: Callable[[int], None]
    """Called with the steps done."""
    every_steps: int | None = None
    every_epochs: int | None = None
    """Counts where every_steps is None."""

    def is_due(self, progress: Progress, epoch_ended: bool) -> bool:
        """Tell whether it is time after a step."""
        if self.every_steps is not None:
            return progress.step % self.every_steps == 0
        return epoch_ended and self.every_epochs is not None and progress.epoch % self.every_epochs == 0


@dataclass
class Collaborators:
    """Everything the loop calls; made by `everydream.train`, in its order."""

    launch: Launch
    groups: Sequence[ParameterGroup]
    optimizer: Any
    clip: Callable[[Sequence[torch.nn.Parameter], float | None], float]
    """Clips all gradients together; returns their norm before."""
    accumulator: Accumulator
    ema: Ema | None
    lr_at: Callable[[int], float]
    """Step -> factor on every group's peak rate."""
    plan: Callable[[int], EpochPlan]
    load: Callable[[EpochPlan, int], Iterator[Loaded]]
    """(plan, first step) -> this process's pieces."""
    save: Callable[[Progress], None]
    """Writes last.ckpt, or begins to."""
    saved: Callable[[bool], str | None]
    """Takes in what was begun, waiting for it if asked to; returns why the latest could not be written, if so."""
    export: Callable[[Progress], None]
    looks: Sequence[Look]
    decide: Callable[[int], Decision]
    """What follows from the looks after so many steps."""
    ledger: Ledger
    alarm: Callable[[int, float | None, float | None, bool], None]
    """(step, distance of its losses from the start's, gradient norm, whether all is finite) -> the user is told."""
    cadence: SaveCadence
    metrics: JsonLines
    waits: Waits
    events: Events
    display: Display
    stop: StopRequest
    source_names: Sequence[str]


@dataclass(frozen=True)
class Limits:
    """How far to go."""

    epochs: int
    total_steps: int
    max_grad_norm: float | None


def fit(c: Collaborators, limits: Limits, progress: Progress) -> tuple[Progress, int | None]:
    """Train from `progress` to the end; return where it stands and the signal that stopped it short, if one did.

    Raises TrainingError after three non-finite steps in a row, with last.ckpt from before the first.
    """
    if progress.step == 0:
        _look(c, 0, c.looks)
    before_bad, bad_in_a_row, unscaled_in_a_row = progress, 0, 0
    while progress.epoch < limits.epochs and progress.step < limits.total_steps:
        plan = c.plan(progress.epoch)
        pending = Pending()
        for loaded in c.waits.over("data", c.load(plan, progress.step_in_epoch)):
            if not pending.loaded:
                _set_learning_rates(c, progress)
            c.accumulator.add(loaded, pending, progress.epoch)
            if not loaded.piece.is_last_of_step:
                continue
            gathered = pending.gather(c.launch, c.stop.signal)
            pending = Pending()
            with c.accumulator.advising():
                norm, skipped = _optimize(c, limits, gathered, progress.epoch)
            ended = progress.step_in_epoch + 1 == plan.num_steps
            after = _advance(progress, draws_of_step(plan, progress.step_in_epoch)[1] - len(gathered.failed), ended)
            _report(c, progress, after, gathered, norm, skipped, limits.max_grad_norm)
            bad_in_a_row = bad_in_a_row + 1 if skipped == NOT_FINITE else bad_in_a_row * (skipped is not None)
            unscaled_in_a_row = unscaled_in_a_row + 1 if skipped == BY_SCALER else 0
            if bad_in_a_row == 1 and skipped == NOT_FINITE:
                before_bad = progress
            if bad_in_a_row == _MAX_BAD_STEPS or unscaled_in_a_row == _MAX_UNSCALED_STEPS:
                saved = before_bad if bad_in_a_row else after
                raise TrainingError(_bad_message(skipped, saved, _kept(c, limits, saved), gathered))
            if skipped is None and c.ema is not None:
                c.ema.update(after.step)
            progress = after
            if _periodic(c, progress, ended, progress.step >= limits.total_steps):
                return progress, None
            if gathered.stop is not None:
                c.save(progress)
                return progress, gathered.stop
        # An epoch whose every step was done before the resume, or that has none at all.
        if progress.epoch == plan.epoch:
            progress = replace(progress, epoch=plan.epoch + 1, step_in_epoch=0)
    return progress, None


def _set_learning_rates(c: Collaborators, progress: Progress) -> None:
    factor = c.lr_at(progress.step)
    for group, live in zip(c.groups, c.optimizer.param_groups, strict=True):
        live["lr"] = group.lr * factor if group.trains_in(progress.epoch) else 0.0


def _optimize(c: Collaborators, limits: Limits, gathered: Gathered, epoch: int) -> tuple[float | None, str | None]:
    """Clip and step; return the gradient norm, or why the step was skipped and nothing changed."""
    for group in c.groups:
        if not group.trains_in(epoch):
            # Left out by its gradients and not by freezing it: DDP expects what required them when it was wrapped.
            for parameter in group.parameters:
                parameter.grad = None
    if not gathered.losses:
        c.optimizer.zero_grad(set_to_none=True)
        return None, NO_IMAGES
    if (fused := c.accumulator.fused) is not None:
        return (fused.norm, None) if math.isfinite(fused.norm) else (None, NOT_FINITE)
    norm = c.clip([p for group in c.groups for p in group.parameters], limits.max_grad_norm)
    sound = all(math.isfinite(loss) for loss in gathered.losses)
    # Under fp16 an overflow of the scaled gradients is ordinary: the scaler skips the step by itself and adapts.
    stepped = c.launch.scales_loss or (sound and math.isfinite(norm))
    scaler_skipped = stepped and c.launch.step(c.optimizer)
    c.optimizer.zero_grad(set_to_none=True)
    if not sound or not stepped:
        return None, NOT_FINITE
    return (None, BY_SCALER) if scaler_skipped else (norm, None)


def _advance(progress: Progress, images: int, epoch_ended: bool) -> Progress:
    return Progress(
        step=progress.step + 1,
        epoch=progress.epoch + epoch_ended,
        step_in_epoch=0 if epoch_ended else progress.step_in_epoch + 1,
        images_seen=progress.images_seen + images,
    )


def _report(
    c: Collaborators,
    before: Progress,
    after: Progress,
    gathered: Gathered,
    norm: float | None,
    skipped: str | None,
    max_norm: float | None,
) -> None:
    """Write the step's line, tell the trackers, the bar and, where something went wrong, the user."""
    since_start = None
    if skipped is None:
        since_start = c.ledger.add(gathered.keys, gathered.levels, gathered.losses)
    if not c.launch.is_main:
        return
    c.alarm(after.step, since_start, norm, skipped != NOT_FINITE)
    for rejection in gathered.failed:
        source = c.source_names[rejection.source]
        c.events.note("image rejected", source=source, path=rejection.path, reason=rejection.reason, step=after.step)
        c.display.say(f"Rejected {source}/{rejection.path}: {rejection.reason}. The batch went on without it.")
    line: dict[str, Any] = {"step": after.step, "epoch": before.epoch, "images_seen": after.images_seen}
    if skipped is not None:
        images = gathered.not_finite() or gathered.keys
        c.metrics.write({**line, "skipped": skipped, "images": images})
        c.events.note("step skipped", step=after.step, reason=skipped, images=images)
        if skipped == NOT_FINITE:
            what = "Images with such a loss" if gathered.not_finite() else "Images in the batch"
            c.display.say(f"Step {after.step} was skipped: {skipped}. {what}: {', '.join(images)}")
        return
    rates = {f"lr/{g.part}": live["lr"] for g, live in zip(c.groups, c.optimizer.param_groups, strict=True)}
    found = {
        f"d/{g.part}": live["d"] for g, live in zip(c.groups, c.optimizer.param_groups, strict=True) if "d" in live
    }
    numbers = {**gathered.numbers(), "grad_norm": norm, **rates, **found}
    if since_start is not None:
        numbers["loss_since_start"] = math.exp(since_start)
    if max_norm is not None:
        numbers["clipped"] = float(norm is not None and norm > max_norm)
    numbers |= {f"seen/{name}": count for name, count in c.ledger.seen(c.source_names).items()}
    c.metrics.write({**line, **numbers})
    c.display.advance(after.step, before.epoch, len(gathered.losses), gathered.mean)
    speed = {"images_per_s": c.display.images_per_s, **c.waits.taken()}
    c.launch.track({**numbers, **speed, "epoch": before.epoch}, after.step)


def _periodic(c: Collaborators, progress: Progress, epoch_ended: bool, is_last: bool) -> bool:
    """Look, export and save where due; return whether the run ends. The main process's clock decides for all."""
    c.saved(False)
    last, export = c.launch.from_main(c.cadence.due(progress, epoch_ended))
    due = [look for look in c.looks if is_last or look.is_due(progress, epoch_ended)]
    _look(c, progress.step, due)
    decision = c.launch.from_main(c.decide(progress.step))
    if decision.stop and not is_last:
        _look(c, progress.step, [look for look in c.looks if look not in due])
        c.events.note("stopping", step=progress.step, reason="overfit")
        c.display.say(f"Stopping at step {progress.step}: stop.when overfit; nothing has been better for long enough.")
    ends = is_last or decision.stop
    # What is due comes before last.ckpt: a run that is killed in between does it again, and never not at all.
    if export or decision.is_best or ends:
        c.export(progress)
    if last or decision.is_best or ends:
        c.save(progress)
    return ends


def _look(c: Collaborators, step: int, looks: Sequence[Look]) -> None:
    """Look; the main process does the work, and if it goes wrong, training goes on."""
    for look in looks:
        try:
            look.run(step)
        except Exception as error:
            # A look at the run and not part of it: memory, a prompt file, a full disk.
            c.events.note(f"{look.name} failed", step=step, error=f"{type(error).__name__}: {error}")
            what = f"{look.name.capitalize()} at step {step} failed, training goes on"
            c.display.say(f"{what}: {type(error).__name__}: {error}")
        c.launch.wait()


def _kept(c: Collaborators, limits: Limits, saved: Progress) -> str | None:
    """Save, if the weights are still from before the first bad step; return why not, if so."""
    if c.accumulator.fused is not None and limits.max_grad_norm is None:
        return (
            "last.ckpt is an older one: under memory.fused_backward without train.max_grad_norm other parameters had "
            "stepped before the bad ones were seen"
        )
    c.save(saved)
    return c.saved(True)


def _bad_message(skipped: str | None, saved: Progress, unsaved: str | None, gathered: Gathered) -> str:
    kept = unsaved or f"last.ckpt is from step {saved.step}, with the weights from before the first of them"
    return (
        f"Too many steps in a row were skipped ({skipped}), so the run was stopped. {kept}. "
        f"The last batch held {', '.join(gathered.keys)}. "
        "Look at these images, lower the learning rates, or use train.precision: fp32."
    )
