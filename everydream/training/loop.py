"""The one loop: losses become optimizer steps; metrics, looks at the model and checkpoints follow on their cadence.

It is never subclassed and never copied. What differs between models, methods and objectives is behind
the family, the parameter groups and the step.

The device is sent the next step before the numbers of the last one are read, where the optimizer allows that
(`stepping`). Whatever looks at the model, or writes it, waits until all is read.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from everydream.data.loader import Loaded
from everydream.data.plan import draws_of_step
from everydream.errors import TrainingError
from everydream.evaluation.judging import Decision
from everydream.methods.method import ParameterGroup
from everydream.training.accumulating import Accumulator, Pending
from everydream.training.cadence import SaveCadence
from everydream.training.display import Display
from everydream.training.launch import Launch
from everydream.training.ledger import Ledger
from everydream.training.metrics import Events, JsonLines
from everydream.training.reading import BY_SCALER, NO_IMAGES, NOT_FINITE, Gathered, Submitted
from everydream.training.signals import StopRequest
from everydream.training.stepping import MAX_BAD_STEPS, Stepper
from everydream.training.waits import Waits
from everydream.types import EpochPlan, Progress

_MAX_UNSCALED_STEPS = 100
_MAX_EMPTY_STEPS = 10


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
    stepper: Stepper
    accumulator: Accumulator
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


@dataclass
class _Run:
    """Where a run stands: what the device was sent, and what was read of it."""

    sent: Progress
    read: Progress
    unread: deque[Submitted] = field(default_factory=deque)
    before_bad: Progress = field(init=False)
    bad_in_a_row: int = 0
    unscaled_in_a_row: int = 0
    empty_in_a_row: int = 0
    stop: int | None = None
    is_time: bool = False

    def __post_init__(self) -> None:
        self.before_bad = self.read


def fit(c: Collaborators, limits: Limits, progress: Progress) -> tuple[Progress, int | None]:
    """Train from `progress` to the end; return where it stands and the signal that stopped it short, if one did.

    Raises TrainingError after three non-finite steps in a row, with last.ckpt from before the first.
    """
    if progress.step == 0:
        _look(c, 0, c.looks)
    run = _Run(progress, progress)
    while run.sent.epoch < limits.epochs and run.sent.step < limits.total_steps:
        plan = c.plan(run.sent.epoch)
        pending = Pending()
        for loaded in c.waits.over("data", c.load(plan, run.sent.step_in_epoch)):
            if not pending.loaded:
                _set_learning_rates(c, run.sent)
            c.accumulator.add(loaded, pending, run.sent.epoch)
            if not loaded.piece.is_last_of_step:
                continue
            _submit(c, run, pending, plan)
            pending = Pending()
            if _catch_up(c, limits, run):
                return run.sent, None
            if run.stop is not None:
                c.save(run.sent)
                return run.sent, run.stop
        # An epoch whose every step was done before the resume, or that has none at all.
        if run.sent.epoch == plan.epoch:
            run.sent = replace(run.sent, epoch=plan.epoch + 1, step_in_epoch=0)
    return run.sent, None


def _submit(c: Collaborators, run: _Run, pending: Pending, plan: EpochPlan) -> None:
    """Step with the gradients that are there; what came of it may be read later."""
    before, after = run.sent, _advance(run.sent, plan)
    with c.accumulator.advising():
        stepped = c.stepper.step(pending.losses(), before.epoch, after.step)
    run.unread.append(Submitted.of(before, after, pending.loaded, _rates(c), pending.results, stepped))
    run.sent = after


def _advance(progress: Progress, plan: EpochPlan) -> Progress:
    epoch_ended = progress.step_in_epoch + 1 == plan.num_steps
    return Progress(
        step=progress.step + 1,
        epoch=progress.epoch + epoch_ended,
        step_in_epoch=0 if epoch_ended else progress.step_in_epoch + 1,
        images_seen=progress.images_seen + draws_of_step(plan, progress.step_in_epoch)[1],
    )


def _catch_up(c: Collaborators, limits: Limits, run: _Run) -> bool:
    """Read what is to be read by now, and look, export and save where due; return whether the run ends."""
    c.saved(False)
    epoch_ended, is_last = run.sent.step_in_epoch == 0, run.sent.step >= limits.total_steps
    looks = [look for look in c.looks if is_last or look.is_due(run.sent, epoch_ended)]
    is_due = is_last or bool(looks) or any(c.cadence.due(run.sent, epoch_ended))
    run.is_time = False
    _read(c, limits, run, 0 if is_due or not c.stepper.skips_on_device else 1)
    if run.stop is not None or run.is_time:
        _read(c, limits, run, 0)
    return not run.unread and _periodic(c, run, looks, epoch_ended, is_last)


def _read(c: Collaborators, limits: Limits, run: _Run, unread: int) -> None:
    """Read steps, report them and judge them, until no more than `unread` are left."""
    while len(run.unread) > unread:
        submitted = run.unread.popleft()
        gathered = submitted.gather(c.launch, c.stop.signal, c.cadence.is_time())
        images = submitted.after.images_seen - submitted.before.images_seen - len(gathered.failed)
        before, run.read = run.read, replace(submitted.after, images_seen=run.read.images_seen + images)
        run.stop, run.is_time = gathered.stop, run.is_time or gathered.is_time
        _report(c, submitted, run.read, gathered, limits.max_grad_norm)
        _judge(c, limits, run, before, gathered)
    if not run.unread:
        run.sent = run.read


def _judge(c: Collaborators, limits: Limits, run: _Run, before: Progress, gathered: Gathered) -> None:
    """Raise TrainingError where too many steps in a row were skipped."""
    if gathered.skipped == NOT_FINITE:
        run.before_bad = run.before_bad if run.bad_in_a_row else before
        run.bad_in_a_row += 1
    elif gathered.skipped is None:
        run.bad_in_a_row = 0
    run.unscaled_in_a_row = run.unscaled_in_a_row + 1 if gathered.skipped == BY_SCALER else 0
    run.empty_in_a_row = run.empty_in_a_row + 1 if gathered.skipped == NO_IMAGES else 0
    if run.empty_in_a_row == _MAX_EMPTY_STEPS:
        raise TrainingError(
            f"No image of the last {_MAX_EMPTY_STEPS} steps could be read, so the run was stopped. The last one: "
            f"{gathered.failed[-1].path}: {gathered.failed[-1].reason}. What was saved before is still there."
        )
    if run.bad_in_a_row == MAX_BAD_STEPS or run.unscaled_in_a_row == _MAX_UNSCALED_STEPS:
        saved = run.before_bad if run.bad_in_a_row else run.read
        raise TrainingError(_bad_message(gathered, saved, _kept(c, limits, saved)))


def _set_learning_rates(c: Collaborators, progress: Progress) -> None:
    factor = c.lr_at(progress.step)
    for group, live in zip(c.groups, c.optimizer.param_groups, strict=True):
        live["lr"] = group.lr * factor if group.trains_in(progress.epoch) else 0.0


def _rates(c: Collaborators) -> dict[str, float]:
    """Return the learning rates, and the steps that some optimizers find by themselves, by metrics.jsonl's names."""
    live = list(zip(c.groups, c.optimizer.param_groups, strict=True))
    found = {f"d/{group.part}": held["d"] for group, held in live if "d" in held}
    return {**{f"lr/{group.part}": held["lr"] for group, held in live}, **found}


def _report(
    c: Collaborators, submitted: Submitted, after: Progress, gathered: Gathered, max_norm: float | None
) -> None:
    """Write the step's line, tell the trackers, the bar and, where something went wrong, the user."""
    since_start, norm, skipped = None, gathered.norm, gathered.skipped
    if skipped is None:
        since_start = c.ledger.add(gathered.records, gathered.levels, gathered.losses)
    if not c.launch.is_main:
        return
    c.alarm(after.step, since_start, norm, skipped != NOT_FINITE)
    for rejection in gathered.failed:
        source = c.source_names[rejection.source]
        c.events.note("image rejected", source=source, path=rejection.path, reason=rejection.reason, step=after.step)
        c.display.say(f"Rejected {source}/{rejection.path}: {rejection.reason}. The batch went on without it.")
    line: dict[str, Any] = {"step": after.step, "epoch": submitted.before.epoch, "images_seen": after.images_seen}
    if skipped is not None:
        images = gathered.not_finite() or gathered.keys
        c.metrics.write({**line, "skipped": skipped, "images": images})
        c.events.note("step skipped", step=after.step, reason=skipped, images=images)
        if skipped == NOT_FINITE:
            what = "Images with such a loss" if gathered.not_finite() else "Images in the batch"
            c.display.say(f"Step {after.step} was skipped: {skipped}. {what}: {', '.join(images)}")
        return
    numbers: dict[str, Any] = {**gathered.numbers(), "grad_norm": norm, **submitted.rates}
    if since_start is not None:
        numbers["loss_since_start"] = math.exp(since_start)
    if max_norm is not None:
        numbers["clipped"] = float(norm is not None and norm > max_norm)
    numbers |= {f"seen/{name}": count for name, count in c.ledger.seen(c.source_names).items()}
    c.metrics.write({**line, **numbers})
    c.display.advance(after.step, submitted.before.epoch, len(gathered.losses), gathered.mean)
    speed = {"images_per_s": c.display.images_per_s, **c.waits.taken()}
    c.launch.track({**numbers, **speed, "epoch": submitted.before.epoch}, after.step)


def _periodic(c: Collaborators, run: _Run, looks: Sequence[Look], epoch_ended: bool, is_last: bool) -> bool:
    """Look, export and save where due; return whether the run ends. The main process's clock decides for all."""
    progress = run.sent
    last, export = c.cadence.due(progress, epoch_ended, run.is_time)
    _look(c, progress.step, looks)
    decision = c.launch.from_main(c.decide(progress.step)) if looks else Decision(False, False)
    if decision.stop and not is_last:
        _look(c, progress.step, [look for look in c.looks if look not in looks])
        c.events.note("stopping", step=progress.step, reason="overfit")
        c.display.say(f"Stopping at step {progress.step}: stop.when overfit; nothing has been better for long enough.")
    ends = is_last or decision.stop
    # What is due comes before last.ckpt: a run that is killed in between does it again, and never not at all.
    if export or decision.is_best or ends:
        c.export(progress)
    if last or decision.is_best or ends:
        c.save(progress)
        c.cadence.restart()
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


def _bad_message(gathered: Gathered, saved: Progress, unsaved: str | None) -> str:
    kept = unsaved or f"last.ckpt is from step {saved.step}, with the weights from before the first of them"
    return (
        f"Too many steps in a row were skipped ({gathered.skipped}), so the run was stopped. {kept}. "
        f"The last batch held {', '.join(gathered.keys)}. "
        "Look at these images, lower the learning rates, or use train.precision: fp32."
    )
