"""Optimizers and schedules by the names that other trainers give them."""

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from everydream.tools.importing.draft import Draft
from everydream.training.optimizers import KINDS, optimizer_problems, torch_classes, with_usual_values
from everydream.training.settings import OptimizerSettings

_OPTIMIZERS = {
    "adamw": "adamw", "adam": "adam", "sgd": "sgd", "sgdnesterov": "sgd", "adafactor": "adafactor", "lion": "lion",
    "adamw8bit": "adamw_8bit", "pagedadamw8bit": "paged_adamw_8bit", "prodigy": "prodigy", "came": "came",
    "adamwschedulefree": "schedule_free_adamw", "schedule_free_adamw": "schedule_free_adamw",
}  # fmt: skip
_FINDS_ITS_RATE = ("dadapt", "dowg", "coordinate_dowg", "scalar_dowg", "prodigyplus")
_SHAPES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "polynomial": "polynomial",
    "rex": "rex",
    "one_cycle": "one_cycle",
    "onecyclelr": "one_cycle",
}
_NO_DECAY = ("adafactor", "lion", "prodigy", "came", "schedule_free_adamw", "sgd")
"""Ours that decay weights unless told otherwise, where their authors' classes do not."""
_RATES = ("unet.lr", "text_encoder.lr", "text_encoder_2.lr", "text_encoder_3.lr", "textual_inversion.lr")


def put_optimizer(draft: Draft, key: str, name: str) -> bool:
    """Set the optimizer that is, or is nearest to, `name`; return whether rates that were meant for it suit ours."""
    bare = name.rpartition(".")[2]
    plain = bare.lower()
    rougher = re.sub(r"^paged|_?(8|32)bit$", "", plain)
    ours = _OPTIMIZERS.get(plain) or (f"torch.{bare}" if bare in torch_classes() else _OPTIMIZERS.get(rougher))
    draft.put("optimizer.name", ours or "adamw", key)
    if ours in _NO_DECAY:
        draft.put("optimizer.weight_decay", 0.0, "its own default there")
    if plain.startswith(_FINDS_ITS_RATE):
        draft.tell(
            "changed",
            f"{key}: {name} is adamw here, and the learning rates are our usual ones: {name} finds its "
            "own, so the rates beside it would wreck a run. Consider optimizer.name: prodigy.",
        )
        return False
    if ours is None:
        draft.tell("changed", f"{key}: {name} is adamw here; the learning rates were chosen for {name}, so check them.")
    elif plain not in _OPTIMIZERS and not ours.startswith("torch."):
        draft.tell(
            "changed",
            f"{key}: {name} is {ours} here, whose state takes 32 bits: the same learning, more memory. "
            "memory.optimizer_state: bf16 halves it.",
        )
    elif plain == "sgdnesterov":
        draft.put("optimizer.betas", [0.9, 0.999], f"{key}; the first is the momentum")
        draft.put("optimizer.args", {"nesterov": True}, key)
    return True


def put_arguments(draft: Draft, key: str, given: Iterable[str]) -> list[str]:
    """Take over `name=value` arguments of the optimizer that is set; return those with a value that cannot be read."""
    broken, args = [], dict(draft.entries["optimizer.args"].value) if "optimizer.args" in draft.entries else {}
    for argument in given:
        name, _, text = (part.strip() for part in argument.partition("="))
        value = _read(text)
        if name in ("betas", "weight_decay", "eps", "momentum") and not _is_numeric(value):
            broken.append(argument)
        elif value is not None and not _put_own(draft, key, name, value):
            if _takes(draft, name, value):
                args[name] = value
            else:
                draft.tell("missing", f"{key}: {argument}; our optimizer has no such argument.")
    if args:
        draft.put("optimizer.args", args, key)
    return broken


def put_adafactor(draft: Draft, given: Mapping[str, Any], rates_given: bool) -> bool:
    """Say what PyTorch's Adafactor does otherwise than transformers'; return whether the rates there suit it."""
    if given.get("relative_step", "True").lower() != "false":
        # transformers: min(0.01, 1/sqrt(step)) times the weight's size; PyTorch: min(lr, 1/sqrt(step)) times the same.
        draft.put("optimizer.lr", 0.01, "relative_step, which goes before all learning rates there")
        draft.put("lr_schedule.name", "constant", "relative_step falls by itself")
        if given.get("warmup_init", "False").lower() == "true":
            draft.tell("missing", "optimizer_args: warmup_init=True; set lr_schedule.warmup_steps.")
        if rates_given:
            draft.tell("idle", "learning_rate")
        return False
    if given.get("scale_parameter", "True").lower() == "false":
        draft.tell(
            "changed",
            "optimizer_args: scale_parameter=False; PyTorch's Adafactor scales each step by the size of the weights "
            "(about 0.02 in a large layer), so a rate that suits it is about fifty times as high. Check the rates.",
        )
    return True


def settle_rates(draft: Draft, key: str) -> None:
    """Say prodigy's rate once for all parts, as it takes no other; leave it out where it is its usual 1."""
    if draft.entries["optimizer.name"].value != "prodigy":
        return
    trained = [name for name in _RATES if draft.settings_at(name.replace(".lr", ".train")) is not False]
    rates = {name: draft.entries[name].value for name in trained if name in draft.entries}
    for name in _RATES:
        draft.entries.pop(name, None)
    if len(set(rates.values())) > 1:
        told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        draft.tell("changed", f"{key}: prodigy finds one rate for all parts ({told} there), so it starts from 1 here.")
    elif rates and set(rates.values()) != {1.0}:
        draft.put("optimizer.lr", next(iter(rates.values())), "learning_rate")


def put_schedule(draft: Draft, key: str, name: str) -> str:
    """Set the shape of the learning rate nearest to `name` and return ours."""
    plain = name.rpartition(".")[2].lower()
    ours = _SHAPES.get(plain, "cosine" if plain.startswith("cosine") else "constant")
    if draft.settings_at("optimizer.name") == "schedule_free_adamw" and ours != "constant":
        draft.tell("needless", f"{key}: {name}; schedule-free takes no schedule, there as here.")
        ours = "constant"
    elif plain not in _SHAPES:
        draft.tell("changed", f"{key}: {name} is {ours} here.")
    draft.put("lr_schedule.name", ours, key)
    return ours


def _put_own(draft: Draft, key: str, name: str, value: Any) -> bool:
    """Set what our settings have a key of their own for; return whether it is one of these."""
    numbers = list(value) if isinstance(value, tuple | list) else [value]
    ours = draft.entries["optimizer.name"].value
    if name == "betas" and len(numbers) >= 2:
        draft.put("optimizer.betas", [float(number) for number in numbers], key)
    elif name == "momentum" and len(numbers) == 1 and ours == "sgd":
        draft.put("optimizer.betas", [float(numbers[0]), 0.999], key)
    elif name in ("weight_decay", "eps") and len(numbers) == 1:
        if getattr(with_usual_values(OptimizerSettings(name=ours)), name) is None:
            return False  # this one has none
        draft.put(f"optimizer.{name}", float(numbers[0]), key)
    else:
        return False
    return True


def _takes(draft: Draft, name: str, value: Any) -> bool:
    """Tell whether the optimizer that is set has such an argument, and our settings can hold its value."""
    if isinstance(value, tuple | list) and not _is_numeric(value):
        return False
    ours = draft.entries["optimizer.name"].value
    settings = OptimizerSettings.model_construct(name=ours, args={name: value})
    return not any(f"optimizer.args.{name}" in line for line in optimizer_problems(settings)) or ours not in KINDS


def _read(text: str) -> Any:
    """Return a value as Python reads it, as kohya's scripts do: a number, true or false, numbers, or a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _is_numeric(value: Any) -> bool:
    numbers = value if isinstance(value, tuple | list) else [value]
    return all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers)
