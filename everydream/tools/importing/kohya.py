"""kohya's scripts (sd-scripts): the TOML of a run, of a data set, or both, as a draft of ours."""

import math
from pathlib import Path
from typing import Any

from everydream.errors import ConfigError
from everydream.tools.importing.draft import Draft, find
from everydream.tools.importing.keys import Keys
from everydream.tools.importing.kohya_data import put_data
from everydream.tools.importing.kohya_family import put_block_rates, put_model, put_reading, put_timesteps, script_of
from everydream.tools.importing.kohya_lengths import Lengths, draws_of
from everydream.tools.importing.kohya_loss import put_loss
from everydream.tools.importing.kohya_memory import put_memory
from everydream.tools.importing.kohya_method import put_method
from everydream.tools.importing.kohya_outputs import put_outputs
from everydream.tools.importing.kohya_tables import MISSING, NEEDLESS, NEUTRAL
from everydream.tools.importing.optimizers import (
    put_adafactor,
    put_arguments,
    put_optimizer,
    put_schedule,
    settle_rates,
)
from everydream.tools.importing.reading import parse


def kohya(raw: dict[str, Any], file: Path) -> Draft:
    """Return the draft of a TOML, whose defaults count for missing keys.

    Raises ConfigError where the data-set TOML that it names is not there or cannot be read.
    """
    draft = Draft("kohya's sd-scripts")
    keys = Keys(raw, draft)
    script = script_of(keys)
    draft.put_project(keys.text("output_name", None), "output_name")
    if keys.given("output_dir"):
        draft.put("runs_dir", keys.text("output_dir", "runs"), "output_dir")
    if keys.given("seed"):
        draft.put("seed", keys.whole("seed", 0), "seed")
    put_model(keys, draft, script, file)
    put_data(draft, keys, *_data_set(keys, file, draft), file)
    suits = _put_optimizer(keys, draft)
    put_method(keys, draft, suits, script)
    put_block_rates(keys, draft)
    settle_rates(draft, "optimizer_type")
    lengths = _put_lengths(keys, draft, file)
    _put_training(keys, draft)
    put_reading(keys, draft, script)
    put_timesteps(keys, draft, script)
    put_memory(keys, draft)
    put_outputs(keys, draft, lengths, file)
    keys.tell_rest(NEEDLESS, MISSING, NEUTRAL)
    return draft


def _data_set(keys: Keys, file: Path, draft: Draft) -> tuple[Keys, list[Keys]]:
    """Return `general` and `datasets` of the file itself, or of the one that it names; no data sets if neither."""
    if keys.given("datasets"):
        return keys.table("general"), keys.tables("datasets")
    name = keys.text("dataset_config", None)
    if name is None:
        return keys.table("general"), []
    path = find(name, file)
    if path is None:
        raise ConfigError(
            f"{file}: dataset_config is {name}, and there is no such file here or in {file.absolute().parent}. It says "
            "which images are trained on; put it there, or correct the name."
        )
    data_set = Keys(parse(path), draft, f"{path.name}: ")
    found = data_set.table("general"), data_set.tables("datasets")
    if not found[1]:
        data_set.problem("datasets", "missing, so it says of no images; is it a data set's TOML?")
    data_set.tell_rest({}, {}, {})
    return found


def _put_optimizer(keys: Keys, draft: Draft) -> bool:
    """Set the optimizer and what it is told; return whether learning rates that were meant for it suit ours."""
    old = [
        name for name, key in (("AdamW8bit", "use_8bit_adam"), ("Lion", "use_lion_optimizer")) if keys.flag(key, False)
    ]
    name = keys.text("optimizer_type", None) or (old[0] if old else "AdamW")
    suits = put_optimizer(draft, "optimizer_type", name)
    arguments = keys.texts("optimizer_args")
    if draft.entries["optimizer.name"].value == "adafactor":
        known = ("relative_step", "scale_parameter", "warmup_init")
        given = {key.strip(): value.strip() for key, _, value in (argument.partition("=") for argument in arguments)}
        suits = put_adafactor(draft, given, keys.given("learning_rate"))
        arguments = [argument for argument in arguments if argument.partition("=")[0].strip() not in known]
    for broken in put_arguments(draft, "optimizer_args", arguments):
        keys.problem("optimizer_args", f"{broken} is no number")
    return suits


def _put_lengths(keys: Keys, draft: Draft, file: Path) -> Lengths:
    """Set how long the run is, and return what is known of that."""
    epochs, steps = keys.whole("max_train_epochs", None), keys.whole("max_train_steps", None)
    accumulation = keys.whole("gradient_accumulation_steps", 1)
    draft.put("train.gradient_accumulation", accumulation, "gradient_accumulation_steps")
    images_per_step = max(1, accumulation) * max(1, draft.entries["train.batch_size"].value)
    draws = draws_of(draft, file)
    if epochs is not None:
        draft.put("train.epochs", epochs, "max_train_epochs")
        if steps is not None:
            draft.tell("idle", "max_train_steps")
        return Lengths(epochs, math.ceil(draws / images_per_step) if draws else None, None)
    steps = 1600 if steps is None else steps
    # Rejected images make epochs shorter than they look, so a quarter more than is needed.
    enough = math.ceil(max(1, steps) * images_per_step / max(draws or 1, 1) * 1.25)
    draft.put("train.epochs", enough, "enough for max_steps, which ends the run")
    draft.put("train.max_steps", steps, "max_train_steps")
    return Lengths(None, math.ceil(draws / images_per_step) if draws else None, steps)


def _put_training(keys: Keys, draft: Draft) -> None:
    precision = keys.text("mixed_precision", "no")
    draft.put("train.precision", "fp32" if precision == "no" else precision, "mixed_precision")
    draft.put("train.max_grad_norm", keys.number("max_grad_norm", 1.0) or None, "max_grad_norm")
    put_loss(keys, draft)
    if keys.given("max_data_loader_n_workers"):
        draft.put("data.workers", keys.whole("max_data_loader_n_workers", 8), "max_data_loader_n_workers")
    _put_schedule(keys, draft)


def _put_schedule(keys: Keys, draft: Draft) -> None:
    """Set the schedule; `lr_scheduler_type`, a class of PyTorch's, goes before `lr_scheduler`."""
    key = "lr_scheduler_type" if keys.given("lr_scheduler_type") else "lr_scheduler"
    name = keys.text("lr_scheduler_type", keys.text("lr_scheduler", "constant"))
    if draft.settings_at("lr_schedule.name") is not None:  # relative_step has decided
        draft.tell("needless", f"{key}: {name}; relative_step goes before it.")
        return
    shape = put_schedule(draft, key, name)
    _put_shape(keys, draft, name, shape)
    warmup = keys.number("lr_warmup_steps", 0.0)
    if warmup and name == "constant":
        draft.tell("idle", "lr_warmup_steps")
    elif 0 < warmup < 1:
        draft.put("lr_schedule.warmup_share", warmup, "lr_warmup_steps")
    elif warmup:
        draft.put("lr_schedule.warmup_steps", int(warmup), "lr_warmup_steps")


def _put_shape(keys: Keys, draft: Draft, name: str, shape: str) -> None:
    """Set what single shapes take: powers, cycles, the least rate, one-cycle's arguments."""
    power, cycles = keys.number("lr_scheduler_power", 1.0), keys.whole("lr_scheduler_num_cycles", 1)
    least = keys.number("lr_scheduler_min_lr_ratio", 0.0)
    used = {"lr_scheduler_power": shape == "polynomial", "lr_scheduler_num_cycles": name == "cosine_with_restarts"}
    used |= {"lr_scheduler_min_lr_ratio": name == "cosine_with_min_lr"}
    if used["lr_scheduler_power"]:
        draft.put("lr_schedule.power", power, "lr_scheduler_power")
    if used["lr_scheduler_num_cycles"]:
        draft.put("lr_schedule.cycles", cycles, "lr_scheduler_num_cycles")
    if used["lr_scheduler_min_lr_ratio"]:
        draft.put("lr_schedule.min_factor", least, "lr_scheduler_min_lr_ratio")
    for key, counts in used.items():
        if keys.given(key) and not counts:
            draft.tell("idle", key)
    for argument in keys.texts("lr_scheduler_args"):
        key, _, value = argument.partition("=")
        if key.strip() == "pct_start" and shape == "one_cycle":
            draft.put("lr_schedule.warmup_share", float(value), "lr_scheduler_args")
        else:
            draft.tell("missing", f"lr_scheduler_args: {argument}; our schedule has no such argument.")
