"""kohya's scripts (sd-scripts): the TOML of a run, of a data set, or both, as a draft of ours."""

import math
import re
from pathlib import Path
from typing import Any

from everydream.errors import ConfigError
from everydream.tools.importing.draft import Draft, find
from everydream.tools.importing.keys import Keys
from everydream.tools.importing.kohya_data import put_data
from everydream.tools.importing.kohya_lengths import Lengths, draws_of
from everydream.tools.importing.kohya_method import put_method
from everydream.tools.importing.kohya_outputs import put_outputs
from everydream.tools.importing.kohya_tables import MISSING, NEEDLESS, NEUTRAL, OTHER_FAMILIES
from everydream.tools.importing.optimizers import put_optimizer, put_schedule
from everydream.tools.importing.reading import parse


def kohya(raw: dict[str, Any], file: Path) -> Draft:
    """Return the draft of a TOML, whose defaults count for missing keys.

    Raises ConfigError where the data-set TOML that it names is not there or cannot be read.
    """
    draft = Draft("kohya's sd-scripts")
    keys = Keys(raw, draft)
    _tell_other_families(keys, draft)
    draft.put_project(keys.text("output_name", None), "output_name")
    if keys.given("output_dir"):
        draft.put("runs_dir", keys.text("output_dir", "runs"), "output_dir")
    if keys.given("seed"):
        draft.put("seed", keys.whole("seed", 0), "seed")
    draft.put_model(keys.text("pretrained_model_name_or_path", None), "pretrained_model_name_or_path")
    if keys.flag("v_parameterization", False):
        draft.put("model.prediction", "v", "v_parameterization")
    put_data(draft, keys, *_data_set(keys, file, draft), file)
    suits = _put_optimizer(keys, draft)
    put_method(keys, draft, suits)
    lengths = _put_lengths(keys, draft, file)
    _put_training(keys, draft, lengths)
    put_outputs(keys, draft, lengths, file)
    keys.tell_rest(NEEDLESS, MISSING, NEUTRAL)
    return draft


def _tell_other_families(keys: Keys, draft: Draft) -> None:
    model = keys.text("pretrained_model_name_or_path", None) or ""
    for family, own, called in OTHER_FAMILIES:
        signs = [key for key in own.split() if keys.given(key) and keys.any(key) is not False]
        signs += (
            [f"pretrained_model_name_or_path {model}"] if re.search(called, Path(model).name, re.IGNORECASE) else []
        )
        if signs:
            draft.tell(
                "missing",
                f"{', '.join(signs)}: {family} cannot be trained yet; these settings are for Stable Diffusion 1.x and "
                "2.x, so choose such a model.",
            )


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
    for argument in keys.texts("optimizer_args"):
        key, _, value = argument.partition("=")
        _put_argument(keys, draft, key.strip(), value.strip())
    return suits


def _put_argument(keys: Keys, draft: Draft, key: str, value: str) -> None:
    """Take over one `key=value` of optimizer_args."""
    try:
        numbers = [float(number) for number in value.strip("()[] ").split(",") if number.strip()]
    except ValueError:
        numbers = []
    if key == "betas" and len(numbers) == 2:
        draft.put("optimizer.betas", numbers, "optimizer_args")
    elif key in ("weight_decay", "eps") and len(numbers) == 1:
        draft.put(f"optimizer.{key}", numbers[0], "optimizer_args")
    elif key == "momentum" and len(numbers) == 1:
        draft.put("optimizer.betas", [numbers[0], 0.999], "optimizer_args")
    elif key in ("betas", "weight_decay", "eps", "momentum"):
        keys.problem("optimizer_args", f"{key}={value} is no number")
    else:
        draft.tell("missing", f"optimizer_args: {key}={value}; our optimizer has no such argument.")


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


def _put_training(keys: Keys, draft: Draft, lengths: Lengths) -> None:
    precision = keys.text("mixed_precision", "no")
    draft.put("train.precision", "fp32" if precision == "no" else precision, "mixed_precision")
    if keys.given("gradient_checkpointing"):
        draft.put("train.gradient_checkpointing", keys.flag("gradient_checkpointing", True), "gradient_checkpointing")
    draft.put("train.max_grad_norm", keys.number("max_grad_norm", 1.0) or None, "max_grad_norm")
    draft.put("loss.min_snr_gamma", keys.number("min_snr_gamma", None) or None, "min_snr_gamma")
    draft.put("loss.offset_noise", keys.number("noise_offset", None) or 0.0, "noise_offset")
    if keys.given("max_data_loader_n_workers"):
        draft.put("data.workers", keys.whole("max_data_loader_n_workers", 8), "max_data_loader_n_workers")
    clip_skip = keys.whole("clip_skip", None)
    if clip_skip is not None:
        draft.put("text_encoder.clip_skip", max(0, clip_skip - 1), "clip_skip, which counts from 1 there")
    _put_schedule(keys, draft, lengths)


def _put_schedule(keys: Keys, draft: Draft, lengths: Lengths) -> None:
    name = keys.text("lr_scheduler", "constant")
    shape = put_schedule(draft, "lr_scheduler", name)
    power, cycles = keys.number("lr_scheduler_power", 1.0), keys.whole("lr_scheduler_num_cycles", 1)
    if shape == "polynomial":
        draft.put("lr_schedule.power", power, "lr_scheduler_power")
    elif keys.given("lr_scheduler_power"):
        draft.tell("idle", "lr_scheduler_power")
    if name == "cosine_with_restarts" and cycles > 1:
        draft.tell("missing", f"lr_scheduler_num_cycles: {cycles}; the rate falls once.")
    elif keys.given("lr_scheduler_num_cycles"):
        draft.tell("idle", "lr_scheduler_num_cycles")
    warmup = keys.number("lr_warmup_steps", 0.0)
    if warmup and name == "constant":
        draft.tell("idle", "lr_warmup_steps")
    elif 0 < warmup < 1:
        lengths.put_share(draft, warmup)
    elif warmup:
        draft.put("lr_schedule.warmup_steps", int(warmup), "lr_warmup_steps")
