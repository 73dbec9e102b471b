"""What the settings of optimizer and schedule have against each other: nothing that is set may be without effect."""

from collections.abc import Mapping

from everydream.errors import ConfigError
from everydream.methods.checks import changed_keys
from everydream.methods.settings import TextEncoderSettings, UNetSettings
from everydream.training.memory import Memory
from everydream.training.optimizers import optimizer_problems, with_usual_values
from everydream.training.settings import EmaSettings, LrScheduleSettings, OptimizerSettings, TrainSettings

Part = UNetSettings | TextEncoderSettings
_AVERAGES = "schedule_free_adamw"
_ONE_RATE = "prodigy"


def training_problems(
    optimizer: OptimizerSettings, schedule: LrScheduleSettings, ema: EmaSettings, parts: Mapping[str, Part]
) -> list[str]:
    """Return a line for each problem; the sections are as the run will use them, with their usual values.

    `parts` are the networks that train by themselves, none under methods that train what they add.
    """
    problems = optimizer_problems(optimizer)
    if not problems:
        problems += [line for name, part in parts.items() for line in _part_problems(optimizer, name, part)]
    problems += _schedule_problems(schedule)
    if optimizer.name == _AVERAGES:
        problems += _averaging_problems(schedule, ema)
    if optimizer.name == _ONE_RATE:
        problems += _one_rate_problems(parts)
    return problems


def compile_problems(train: TrainSettings, use: Memory) -> list[str]:
    """Return what does not go with train.compile; `use` is what `memory:` comes to."""
    if train.compile == "none":
        return []
    problems = []
    if train.compile == "whole" and use.fused_backward:
        problems.append(
            "train.compile: whole computes all gradients before any can be used, and memory.fused_backward is there to "
            "free each at once. Use train.compile: regional, or memory.fused_backward: false."
        )
    if use.attention in ("xformers", "sliced"):
        problems.append(
            f"train.compile: {train.compile} does not go with memory.attention: {use.attention}, which PyTorch's "
            "compiler cannot see through or makes a graph of for each size. Use memory.attention: auto."
        )
    return problems


def _part_problems(optimizer: OptimizerSettings, name: str, part: Part) -> list[str]:
    """Return what of the optimizer cannot differ in a part."""
    keys = [key.rpartition(".")[2] for key in changed_keys("optimizer", part.optimizer)]
    overridden = optimizer.model_copy(update={key: getattr(part.optimizer, key) for key in keys})
    problems = [f"{name}.{line}" for line in optimizer_problems(overridden)]
    if optimizer.name == _ONE_RATE and "betas" in keys:
        problems.append(
            f"{name}.optimizer.betas: {_ONE_RATE} estimates one d for all, with the same betas. Take it out."
        )
    return problems


def _schedule_problems(schedule: LrScheduleSettings) -> list[str]:
    name, own = schedule.name, changed_keys("", schedule)
    problems = [
        f"lr_schedule.{key}: has no effect with lr_schedule.name: {name}; it is of {wanted}."
        for key, wanted in (("cycles", "cosine"), ("power", "polynomial"))
        if f".{key}" in own and name != wanted
    ]
    if schedule.min_factor and name in ("constant", "one_cycle"):
        why = "never falls" if name == "constant" else "ends at its own 1/250000 of the peak"
        problems.append(f"lr_schedule.min_factor: has no effect with lr_schedule.name: {name}, which {why}.")
    if schedule.warmup_steps and schedule.warmup_share is not None:
        problems.append(
            "lr_schedule.warmup_steps, lr_schedule.warmup_share: the warm-up is given twice, as "
            f"{schedule.warmup_steps} steps and as {schedule.warmup_share:g} of the run. Take one out."
        )
    return problems


def _averaging_problems(schedule: LrScheduleSettings, ema: EmaSettings) -> list[str]:
    problems = []
    if schedule.name != "constant":
        problems.append(
            f"lr_schedule.name: {schedule.name} with optimizer.name: {_AVERAGES}, whose average takes the place of a "
            "falling rate. Use constant; a warm-up is welcome."
        )
    if ema.decay is not None:
        problems.append(
            f"ema.decay: optimizer.name: {_AVERAGES} averages by itself and shows that average. Set it to null."
        )
    return problems


def _one_rate_problems(parts: Mapping[str, Part]) -> list[str]:
    problems = [
        f"{name}.block_lr: {_ONE_RATE} finds one rate for all that trains, and cannot scale it by block. Take it out."
        for name, part in parts.items()
        if isinstance(part, UNetSettings) and part.block_lr
    ]
    rates = {f"{name}.lr": part.lr for name, part in parts.items() if part.train and part.lr}
    if len(set(rates.values())) > 1:
        told = ", ".join(f"{key} {rate:g}" for key, rate in rates.items())
        problems.append(
            f"{', '.join(rates)}: {_ONE_RATE} finds one rate for all that trains, and these differ ({told}). Leave "
            "them out: null means 1, times what it finds."
        )
    return problems


def usual_optimizer(settings: OptimizerSettings) -> OptimizerSettings:
    """Return the optimizer's settings with its usual values; those of an unknown name as they are."""
    try:
        return with_usual_values(settings)
    except ConfigError:
        return settings


def usual_schedule(schedule: LrScheduleSettings, optimizer: OptimizerSettings) -> LrScheduleSettings:
    """Return the schedule with its usual shape said outright."""
    name = schedule.name or ("constant" if optimizer.name == _AVERAGES else "cosine")
    return schedule.model_copy(update={"name": name})


def usual_rate(optimizer: OptimizerSettings) -> float | None:
    """Return the rate that an optimizer wants where none is given, whatever the method; None: the method's."""
    return 1.0 if optimizer.name == _ONE_RATE else None
