"""From settings and plan to what trains: the model in its place, its method, its optimizer, its average."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from everydream.caching import require_cacheable
from everydream.config import RunConfig
from everydream.errors import ConfigError
from everydream.formats.files import DTYPES
from everydream.methods import METHODS
from everydream.methods.method import text_settings
from everydream.models.family import Family
from everydream.models.load import load, restore
from everydream.models.write import require_format
from everydream.outputs import Trainee
from everydream.plan import Planned, require_fitting_buckets
from everydream.sampling.sampler import require_sampler
from everydream.training import export, state
from everydream.training.blocks import split_by_blocks
from everydream.training.compiling import Graphs, compile_denoiser
from everydream.training.ema import Ema
from everydream.training.fused import FusedBackward
from everydream.training.launch import Launch
from everydream.training.lean import Lean
from everydream.training.memory import resolved
from everydream.training.optim import load_optimizer_state, make_optimizer
from everydream.training.placing import place, require_one_process, require_unsharded
from everydream.training.stepping import Stepper


def load_family(config: RunConfig, checkpoint: state.Checkpoint | None = None) -> Family:
    """Return the model, on the CPU: the config's, or as the checkpoint has it."""
    reading = (config.text_encoder.clip_skip, config.text_encoder.chunks)
    if checkpoint is not None:
        return restore(checkpoint.tensors, checkpoint.model, checkpoint.path, *reading)
    return load(config.model, *reading)


def require_fitting(config: RunConfig, planned: Planned, family: Family) -> None:
    """Raise ConfigError for settings that do not fit the model."""
    require_fitting_buckets(planned.buckets, family)
    require_fitting_timesteps(config, family)
    if config.method in ("full", "dreambooth"):
        for name in config.checkpoints.formats or ():
            require_format(family, name)
    for section in ("samples", "class_images"):
        require_sampler(family, getattr(config, section).sampler, f"{section}.sampler")


def require_fitting_timesteps(config: RunConfig, family: Family) -> None:
    """Raise ConfigError for a shift of timesteps where the model's schedule has none."""
    if config.timesteps.shift is not None and family.objective.prediction != "flow":
        raise ConfigError(
            f"timesteps.shift: only flow models have one, and this {family.name} model predicts "
            f"{family.objective.prediction}. Take it out; timesteps.law: logit_normal with a mean moves the noise too."
        )


def prepare(
    config: RunConfig,
    launch: Launch,
    planned: Planned,
    family: Family,
    checkpoint: state.Checkpoint | None,
    changed: list[str],
) -> Trainee:
    """Return the model on its device with its optimizer and average, new or as the checkpoint has them.

    Adds to `changed` what of the checkpoint found no place.
    """
    require_fitting(config, planned, family)
    use = resolved(config.memory, config.train, config.optimizer)
    require_one_process(use, launch.world, launch.shards)
    require_unsharded(config.train, launch.shards)
    method = METHODS[config.method](config)
    groups = method.attach(family, config.seed, planned.index.captions)
    require_cacheable(planned, family)
    if checkpoint is not None:
        num_added = len(checkpoint.added)
        checkpoint = state.without_misfits(checkpoint, family, groups)
        state.load_added(groups, checkpoint.added)
        if lost := num_added - len(checkpoint.added):
            changed.append(f"{lost} of {num_added} trained tensors fit nothing that trains now, and were left behind")
    place(family, groups, use, config.train, launch.device)
    moment_bytes = DTYPES[use.optimizer_state].itemsize
    last_bytes = state.checkpoint_bytes(family, groups, config.ema.decay is not None, moment_bytes)
    export_bytes = export.export_bytes(method, family, config.checkpoints)
    groups = split_by_blocks(groups, {family.denoiser: config.unet.block_lr})
    groups = launch.shard(family, groups, config.optimizer.name)
    own = {family.denoiser: config.unet.optimizer}
    own |= {part: section.optimizer for part, section in text_settings(family, config).items()}
    lean = Lean(groups, config.optimizer, own, use, config.seed) if use.is_lean else None
    trainee = Trainee(
        family,
        method,
        groups,
        lean or make_optimizer(groups, config.optimizer, own),
        Ema(groups, config.ema) if config.ema.decay is not None else None,
        last_bytes,
        export_bytes,
    )
    if checkpoint is not None:
        take_up(config, launch, trainee, checkpoint, changed)
    return trainee


def take_up(
    config: RunConfig, launch: Launch, trainee: Trainee, checkpoint: state.Checkpoint, changed: list[str]
) -> None:
    """Put optimizer, average and loss scaler back to where the checkpoint has them."""
    same = checkpoint.facts.config["optimizer"]["name"] == config.optimizer.name
    saved, by_group = (checkpoint.optimizer, checkpoint.optimizer_groups) if same else ({}, {})
    fresh = load_optimizer_state(trainee.optimizer, trainee.groups, saved, by_group)
    if fresh and checkpoint.progress.step and (saved or not same):
        changed.append(f"{len(fresh)} tensors start without optimizer state, {fresh[0]} for one")
    if trainee.ema is not None:
        trainee.ema.load_state_dict(checkpoint.ema)
    launch.load_scaler_state(checkpoint.scaler)


def wrapped(planned: Planned, trainee: Trainee, launch: Launch) -> tuple[Any, Graphs]:
    """Have the denoiser compiled, if that is wanted, and wrap what trains; return the optimizer to step and the graphs.

    Raises ConfigError where it cannot be compiled.
    """
    family, train = trainee.family, planned.config.train
    denoiser, sizes = family.modules()[family.denoiser], len(planned.buckets.sizes)
    graphs = compile_denoiser(denoiser, train.compile, train.batch_size, sizes, launch.device)
    return launch.prepare(family, trainee.optimizer), graphs


def clipping(stepping: Any, launch: Launch) -> Callable[[Sequence[nn.Parameter], float | None], torch.Tensor]:
    """Return what clips all gradients together before `stepping` steps; returns their norm before."""
    return stepping.clip if isinstance(stepping, Lean) else launch.clip


def fused_backward(trainee: Trainee, config: RunConfig) -> FusedBackward | None:
    """Return what steps inside the backward pass, if that is wanted."""
    optimizer = trainee.optimizer
    if not isinstance(optimizer, Lean) or not resolved(config.memory, config.train, config.optimizer).fused_backward:
        return None
    return FusedBackward(optimizer, trainee.groups, config.train.max_grad_norm)


def make_stepper(config: RunConfig, launch: Launch, trainee: Trainee, stepping: Any) -> Stepper:
    """Return what steps with the gradients; `stepping`: the optimizer as `launch.prepare` returned it."""
    return Stepper(
        launch, trainee.groups, stepping, clipping(stepping, launch), config.train.max_grad_norm,
        fused_backward(trainee, config), trainee.ema,
    )  # fmt: skip
