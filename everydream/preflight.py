"""`everydream preflight`: what a run will take, before it starts.

GPU     real steps on the largest bucket -> peak memory, seconds a step, the whole run's time
none    the same step on tensors without data -> peak memory, as an estimate; no times, which nobody measured
"""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException as FakeTensorError

from everydream.config import RunConfig
from everydream.data.loader import Loaded
from everydream.data.plan import Piece
from everydream.errors import ConfigError
from everydream.formats.atomic import format_bytes
from everydream.models.family import Family
from everydream.outputs import Trainee, size_report
from everydream.plan import Planned, plan_run
from everydream.preparing import clipping, fused_backward, load_family, prepare
from everydream.training.accumulating import Accumulator, Pending
from everydream.training.footprint import Footprint, count_step, measure_step, without_data
from everydream.training.launch import Launch
from everydream.training.memory import LEVELS, memory_problems, resolved
from everydream.training.metrics import Events
from everydream.training.placing import parts_away
from everydream.types import Batch, Crop

_STEPS = 3
"""Measured steps, after one that makes the optimizer's state and warms up."""


@dataclass(frozen=True)
class Preflight:
    """What a step takes."""

    footprint: Footprint
    seconds: float | None
    """Of a step; None where nothing was measured."""
    flops: int | None
    """Of a step; None where it was measured and not counted."""


def preflight(config: RunConfig, measure: bool | None = None, all_levels: bool = False) -> list[str]:
    """Return the lines to print. `measure`: real steps on this machine; None: if it has an accelerator."""
    planned = plan_run(config)
    size = largest_bucket(planned)
    measured = torch.accelerator.is_available() if measure is None else measure
    images = config.train.batch_size
    how = "measured on this machine" if measured else "an estimate, from shapes, without a GPU"
    lines = [f"One step of {images} images of {size[0]}x{size[1]}, the largest bucket: {how}"]
    levels = list(LEVELS) if all_levels else [config.memory.level]
    rows = []
    sizes: Mapping[str, str] = {}
    for level in levels:
        chosen = config.model_copy(update={"memory": config.memory.model_copy(update={"level": level})})
        if problems := memory_problems(chosen.memory, chosen.train, chosen.optimizer):
            lines += [f"memory.level {level}: not with this config: {problem}" for problem in problems]
            continue
        found, trainee = look(replace(planned, config=chosen), load_family(chosen), size, measured)
        rows.append((level, found))
        if level == config.memory.level:
            sizes = size_report(chosen, trainee)
        # Or the next level would be measured on top of this one.
        del trainee
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return lines + describe(rows, planned, sizes)


def largest_bucket(planned: Planned) -> tuple[int, int]:
    """Return (width, height) of the bucket in use with the most pixels."""
    used = {planned.buckets.sizes[int(bucket)] for bucket in planned.epoch(0).bucket_of_batch}
    return max(used, key=lambda size: (size[0] * size[1], size))


def look(planned: Planned, family: Family, size: tuple[int, int], measured: bool) -> tuple[Preflight, Trainee]:
    """Return what a step on images of this size takes, and what was made for it; the family is of no use after it."""
    config = planned.config
    launch = Launch(config.train, [], config.seed)
    if launch.world > 1:
        raise ConfigError("preflight looks at one process. Run it without torchrun or accelerate launch.")
    if measured:
        trainee = prepare(config, launch, planned, family, None, [])
        return _measured(config, launch, trainee, size), trainee
    try:
        with without_data(family):
            trainee = prepare(config, launch, planned, family, None, [])
            step = _step(config, launch, trainee, size, counted=True)
            footprint, flops = count_step(trainee, _away(config, trainee), step)
    except FakeTensorError as error:
        raise ConfigError(
            f"preflight: optimizer.name: {config.optimizer.name} with method: {config.method} looks at numbers on its "
            "way, so a step cannot be counted from shapes alone. Run it with --measure, which does real steps here."
        ) from error
    return Preflight(footprint, None, flops), trainee


def _away(config: RunConfig, trainee: Trainee) -> list[str]:
    return parts_away(trainee.family, resolved(config.memory, config.train, config.optimizer))


def _measured(config: RunConfig, launch: Launch, trainee: Trainee, size: tuple[int, int]) -> Preflight:
    step = _step(config, launch, trainee, size, counted=False)
    away, flops = _away(config, trainee), None
    if launch.device.type == "cuda":
        step()
        footprint = measure_step(trainee, away, step)
    else:
        footprint, flops = count_step(trainee, away, step)
    started = time.perf_counter()
    for _ in range(_STEPS):
        step()
    if launch.device.type == "cuda":
        torch.cuda.synchronize()
    return Preflight(footprint, (time.perf_counter() - started) / _STEPS, flops)


def _step(
    config: RunConfig, launch: Launch, trainee: Trainee, size: tuple[int, int], counted: bool
) -> Callable[[], None]:
    """Return one optimizer step on made-up images. `counted`: without a look at numbers, which fake tensors lack."""
    fused = fused_backward(trainee, config)
    stepping: Any = trainee.optimizer if counted else launch.prepare(trainee.family, trainee.optimizer)
    accumulator = Accumulator(
        launch, trainee.family, config.loss, config.timesteps, config.train.batch_size, None if counted else fused,
        lambda: stepping.zero_grad(set_to_none=True), Events(None), print,
    )  # fmt: skip
    loaded = Loaded(Piece(0, 0, 0, config.train.batch_size, True), made_up(size, config.train.batch_size), [])
    parameters = [p for group in trainee.groups for p in group.parameters]

    def step() -> None:
        if counted and fused is not None:
            fused.step_through(accumulator.forward(loaded.batch.to(launch.device)).loss, launch.backward)
            return
        accumulator.add(loaded, Pending(), 0)
        if fused is None and not counted:
            clipping(stepping, launch)(parameters, config.train.max_grad_norm)
        if fused is None:
            stepping.step()
            stepping.zero_grad(set_to_none=True)

    return step


def made_up(size: tuple[int, int], images: int) -> Batch:
    """Return a batch of grey images."""
    width, height = size
    return Batch(
        pixels_BCHW=torch.full((images, 3, height, width), 127, dtype=torch.uint8),
        captions=["a photo"] * images,
        crops=[Crop((height, width), 0, 0, (height, width), False)] * images,
        loss_scale_B=torch.ones(images),
        seeds=list(range(images)),
        keys=["preflight"] * images,
        num_real=images,
        places=[(number, images) for number in range(images)],
    )


def describe(rows: Sequence[tuple[str, Preflight]], planned: Planned, sizes: Mapping[str, str]) -> list[str]:
    """Return what was found, level by level, then what does not depend on it."""
    lines = []
    for level, found in rows:
        parts = {**found.footprint.held, "activations and gradients": found.footprint.working}
        shown = ", ".join(f"{name} {format_bytes(held)}" for name, held in parts.items() if held)
        lines.append(f"memory.level {level}: peak {format_bytes(found.footprint.peak)}: {shown}{_time(found, planned)}")
    capacity = _capacity()
    if capacity is not None:
        lines.append(f"This GPU has {format_bytes(capacity)}.")
    lines.append(f"Steps {planned.total_steps} in {planned.config.train.epochs} epochs")
    disk = ", ".join(f"{name} {size}" for name, size in sizes.items())
    lines.append(f"Disk, at memory.level {planned.config.memory.level}: {disk}")
    if rows and rows[-1][1].seconds is None:
        lines.append(
            "What an allocator and a GPU's own libraries take comes on top, about a gigabyte. Run this where you will "
            "train: it measures there, times as well."
        )
    return lines


def _time(found: Preflight, planned: Planned) -> str:
    if found.seconds is not None:
        hours = found.seconds * planned.config.train.gradient_accumulation * planned.total_steps / 3600
        return f"; {found.seconds:.2f} s a batch, about {hours:.1f} h of training in all"
    return f"; {(found.flops or 0) / 1e12:.3g} TFLOP a step"


def _capacity() -> int | None:
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
