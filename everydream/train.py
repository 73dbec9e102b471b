"""The table of contents of the project: what happens in a run, in order.

    settings -> checkpoint? -> class images -> images -> plan -> model -> what trains -> run folder -> loop -> files

Lives in the package so that `everydream train` works wherever it is installed; `train.py` in a clone
is its door.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import yaml

from everydream import provenance
from everydream.caching import make_caches, variants_of, workers_of
from everydream.class_images import describe_missing, make_missing, with_class_images
from everydream.config import RunConfig, completed
from everydream.data.loader import JobDataset, Known, Loaded
from everydream.data.streaming import Stream
from everydream.errors import DiskError
from everydream.formats.atomic import atomic_file, require_space
from everydream.methods import METHODS
from everydream.outputs import Sampler, Trainee, Writer, disk_needed
from everydream.plan import Planned, plan_run
from everydream.preparing import load_family, make_stepper, prepare, require_fitting, wrapped
from everydream.report.run import describe_end, describe_plan, plan_facts
from everydream.review.page import PAGE, write_review
from everydream.training import metrics, runs, state
from everydream.training.accumulating import Accumulator
from everydream.training.cadence import SaveCadence
from everydream.training.display import Display
from everydream.training.launch import Launch
from everydream.training.loop import Collaborators, Limits, fit
from everydream.training.lr import lr_factor
from everydream.training.memory import resolved
from everydream.training.placing import leave_device
from everydream.training.signals import StopRequest
from everydream.types import EpochPlan, Progress
from everydream.watching import make_watching


def train(config: RunConfig, resume: Path | None = None, allow_changes: bool = False) -> tuple[Path, int | None]:
    """Run the config, or go on with it from a last.ckpt; return the run folder and the signal that ended it.

    Raises EveryDreamError subclasses, before anything is overwritten.
    """
    launch = Launch(config.train, config.trackers, config.seed)
    display = Display(launch.is_main)
    checkpoint = read(resume, launch)
    if checkpoint is not None:
        was = completed(checkpoint.facts.config)
        checkpoint = replace(checkpoint, facts=replace(checkpoint.facts, config=was))
    progress = checkpoint.progress if checkpoint is not None else Progress()

    config = with_made_images(config, checkpoint, allow_changes, launch, display)
    # One process scans, looks for near duplicates and leaves what it saw in its machine's cache for the others.
    with display.counting("Checking images") as counter, launch.first_of_each_machine():
        planned = plan_run(config, counter)
    facts = state.Facts.of(config.plain(), planned.index, *planned.apart())
    changed: list[str] = []
    if checkpoint is not None:
        changed += state.require_same(checkpoint, facts, allow_changes)
        changed += state.rounding_notes(checkpoint, launch.machine())
    if checkpoint is not None and progress.step >= planned.total_steps:
        display.say(f"{resume} is complete: {progress.step} of {planned.total_steps} steps are done. Nothing to do.")
        return runs.run_of(checkpoint.path) or checkpoint.path.parent, None

    trainee = prepare(config, launch, planned, load_family(config, checkpoint), checkpoint, changed)
    made_of = provenance.made_of(planned, facts.images, checkpoint) if launch.is_main else {}
    base, watch, keys = (
        (checkpoint.base, checkpoint.watch, checkpoint.facts.images.keys) if checkpoint is not None else ({}, {}, [])
    )
    del checkpoint  # its tensors now live in the networks; at full size it holds gigabytes
    stepping, graphs = wrapped(planned, trainee, launch)
    display.say(describe_plan(planned, trainee, launch.describe(images_per_step(config)), launch.device, graphs))
    for line in changed:
        display.say(f"Changed since the checkpoint: {line}")
    run = launch.from_main(open_run(config, resume, progress, trainee, planned) if launch.is_main else Path())
    display.say(f"Run folder: {run}")
    if resume is not None:
        display.say(f"Going on after step {progress.step} of {planned.total_steps}, epoch {progress.epoch + 1}.")

    known = filled_caches(planned, trainee, launch, display)
    only_main = run if launch.is_main else None
    launch.start_trackers(run / "trackers", config.project, state.flatten(config.plain()))
    with (
        metrics.Events(only_main and only_main / "events.jsonl") as events,
        metrics.JsonLines(only_main and only_main / "metrics.jsonl") as lines,
        StopRequest() as stop,
        display.training(planned.total_steps, progress.step, config.train.epochs),
        loading(planned, launch, known) as stream,
    ):
        note_start("started" if resume is None else "resumed", progress, planned, events)
        graphs.say, graphs.note = display.say, events.note
        writer = Writer(config, run / "checkpoints", launch, trainee, facts, events, display, made_of, base)
        sampler = Sampler(config, run / "samples", launch, writer, planned.index)
        watching = make_watching(planned, writer, lines, run, sampler)
        watching.load(watch, keys)
        writer.watch, writer.best_of = watching.state, watching.best_of
        collaborators = Collaborators(
            launch=launch,
            groups=trainee.groups,
            optimizer=stepping,
            stepper=(stepper := make_stepper(config, launch, trainee, stepping)),
            accumulator=Accumulator(
                launch,
                trainee.family,
                config.loss,
                config.timesteps,
                images_per_step(config),
                stepper.fused,
                lambda: stepping.zero_grad(set_to_none=True),
                events,
                display.say,
            ),
            lr_at=lambda step: lr_factor(config.lr_schedule, step, planned.total_steps),
            plan=stream.plan_of,
            load=telling(stream.epoch, display.say),
            save=writer.save,
            saved=writer.saved,
            export=writer.export,
            looks=watching.looks(),
            decide=watching.decide,
            ledger=watching.ledger,
            alarm=watching.alarm,
            cadence=SaveCadence(config.checkpoints),
            metrics=lines,
            waits=writer.waits,
            events=events,
            display=display,
            stop=stop,
            source_names=planned.index.names,
        )
        with writer.finishing():
            progress, ended_by = fit(collaborators, limits(planned), progress)
        events.note("finished" if ended_by is None else "stopped", step=progress.step, **writer.waits.facts())
    launch.close(trainee.family)
    if failed := writer.unsaved or writer.unexported:
        raise DiskError(failed)
    display.say(describe_end(run, progress, planned.total_steps, ended_by))
    if launch.is_main:
        review(run, display)
    return run, ended_by


def read(resume: Path | None, launch: Launch) -> state.Checkpoint | None:
    """Return the checkpoint to go on with, if there is one. Raises ConfigError where the processes do not agree."""
    launch.require_same("what to go on with", None if resume is None else str(resume.absolute()))
    return state.read_checkpoint(resume) if resume is not None else None


def note_start(kind: str, progress: Progress, planned: Planned, events: metrics.Events) -> None:
    """Write where the run begins, and why images of the data set are not used."""
    events.note(kind, step=progress.step)
    for rejection in planned.index.rejected:
        source = planned.index.names[rejection.source]
        events.note("image rejected", source=source, path=rejection.path, reason=rejection.reason)


def review(run: Path, display: Display) -> None:
    """Write the run's page and charts, and say what they come to; the run itself is done and saved."""
    try:
        found = write_review(run)
    except Exception as error:
        display.say(f"The review could not be written ({type(error).__name__}: {error}); everydream review {run}")
        return
    display.say("\n".join([*found.lines(), f"Page:            {run / PAGE}"]))


def with_made_images(
    config: RunConfig, checkpoint: state.Checkpoint | None, allow_changes: bool, launch: Launch, display: Display
) -> RunConfig:
    """Return the config with its class images in place, once those that were missing are made."""
    config, folders = with_class_images(config)
    missing = describe_missing(folders)
    if not missing:
        return config
    # Before anything is made that other settings would not want: the settings alone, as if no image had changed.
    if checkpoint is not None:
        state.require_same(checkpoint, state.Facts(config.plain(), checkpoint.facts.images), allow_changes)
    # The settings on the model, before hours are spent on its class images.
    planned, family = plan_run(config, check=False), load_family(config)
    require_fitting(config, planned, family)
    METHODS[config.method](config).attach(family, config.seed, planned.index.captions)
    del family
    for line in missing:
        display.say(f"{line}; the model makes them now.")
    with display.counting("Making class images") as counter:
        make_missing(config, folders, launch, counter)
    return config


def open_run(config: RunConfig, resume: Path | None, progress: Progress, trainee: Trainee, planned: Planned) -> Path:
    """Return the run's folder, new or the one that is gone on with, once there is room for what it will hold."""
    run = runs.run_of(resume) if resume is not None else None
    # What is there already will be replaced, and needs no room a second time.
    held = runs.tidy(run) if run is not None else 0
    require_space(run or Path(config.runs_dir), disk_needed(config, trainee) - held, "This run")
    if run is None:
        run = runs.create_run(Path(config.runs_dir), config.project, resume)
    else:
        metrics.cut_after(run / "metrics.jsonl", progress.step)
    with atomic_file(run / "config.yaml") as partial:
        text = yaml.safe_dump(config.plain(), sort_keys=False, allow_unicode=True)
        partial.write_text(text, encoding="utf-8")
    with atomic_file(run / runs.PLAN) as partial:
        plan = json.dumps(plan_facts(planned), ensure_ascii=False, indent=1)
        partial.write_text(plan + "\n", encoding="utf-8", errors="surrogateescape")
    return run


def loading(planned: Planned, launch: Launch, known: Known | None) -> Stream:
    """Return what loads this process's pieces of the run; `known`: what caches have of it."""
    config = planned.config
    jobs = JobDataset(
        planned.index, planned.buckets, config.data, config.seed, config.captions, planned.total_steps,
        variants_of(config), known,
    )  # fmt: skip
    return Stream(
        jobs,
        lru_cache(1)(planned.epoch),  # the stream asks for an epoch's plan some steps before the loop does
        [0, *accumulate(planned.steps_per_epoch)][:-1],
        planned.total_steps,
        (launch.rank, launch.world),
        workers_of(config, launch),
        pin=launch.device.type == "cuda",
    )


def telling(
    load: Callable[[EpochPlan, int], Iterator[Loaded]], say: Callable[[str], None]
) -> Callable[[EpochPlan, int], Iterator[Loaded]]:
    """Return `load` with what caches have to tell said."""

    def load_epoch(plan: EpochPlan, start: int) -> Iterator[Loaded]:
        for loaded in load(plan, start):
            for note in loaded.notes:
                say(f"Cache: {note}")
            yield loaded

    return load_epoch


def filled_caches(planned: Planned, trainee: Trainee, launch: Launch, display: Display) -> Known | None:
    """Return the run's caches, filled; the networks that are not needed then have left the device."""
    config = planned.config
    if not config.cache.is_on:
        return None
    caches = make_caches(planned, trainee.family, launch, display.say, display.counting)
    caches.fill(disk_needed(config, trainee))
    away = caches.whole()
    leave_device(trainee.family, away, resolved(config.memory, config.train, config.optimizer), launch.device)
    display.say(caches.describe() + (f"; off the device but for samples: {', '.join(away)}" if away else ""))
    return caches.known()


def limits(planned: Planned) -> Limits:
    """Return how far the loop goes."""
    settings = planned.config.train
    return Limits(settings.epochs, planned.total_steps, settings.max_grad_norm)


def images_per_step(config: RunConfig) -> int:
    """Return what an optimizer step sees, on all processes together."""
    return config.train.batch_size * config.train.gradient_accumulation
