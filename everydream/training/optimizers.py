"""Optimizers by name: whose class each is, and what it takes.

PyTorch's own, those of small well-kept libraries, and any other class of `torch.optim`. Libraries are imported only
when their optimizer is chosen.
"""

import contextlib
import difflib
import inspect
import io
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch.optim import Optimizer

from everydream.errors import ConfigError
from everydream.training.settings import OptimizerSettings

_ADAM = {"betas": [0.9, 0.999], "weight_decay": 0.01, "eps": 1e-8}
SETTINGS = ("betas", "weight_decay", "eps")
"""What the settings name themselves; everything else goes through `optimizer.args`."""


@dataclass(frozen=True)
class Kind:
    """One optimizer: where its class is, and its usual settings. What is not among those has no effect on it."""

    module: str
    cls: str
    usual: dict[str, Any] = field(default_factory=lambda: dict(_ADAM))
    fixed: dict[str, Any] = field(default_factory=dict)
    package: str | None = None
    """What to install, where it is not there in every installation."""


_BITSANDBYTES = "bitsandbytes"
KINDS: dict[str, Kind] = {
    "adamw": Kind("torch.optim", "AdamW", fixed={"fused": True}),
    "adam": Kind("torch.optim", "Adam", fixed={"fused": True}),
    "sgd": Kind("torch.optim", "SGD", {"betas": [0.9, 0.999], "weight_decay": 0.01}, {"fused": True}),
    "adafactor": Kind("torch.optim", "Adafactor", {"weight_decay": 0.01}),
    "adamw_8bit": Kind("bitsandbytes.optim", "AdamW8bit", package=_BITSANDBYTES),
    "paged_adamw_8bit": Kind("bitsandbytes.optim", "PagedAdamW8bit", package=_BITSANDBYTES),
    "lion": Kind("lion_pytorch", "Lion", {"betas": [0.9, 0.99], "weight_decay": 0.01}),
    "prodigy": Kind("prodigyopt", "Prodigy"),
    "schedule_free_adamw": Kind("schedulefree", "AdamWScheduleFree"),
    "came": Kind("came_pytorch.CAME", "CAME", {"betas": [0.9, 0.999, 0.9999], "weight_decay": 0.01}),
}
_UNUSABLE = {"LBFGS": "calls the model several times a step", "SparseAdam": "wants sparse gradients"}


def torch_classes() -> dict[str, type[Optimizer]]:
    """Return the classes of torch.optim that can be asked for by name."""
    found = {name: getattr(torch.optim, name) for name in dir(torch.optim)}
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, Optimizer) and cls is not Optimizer and name not in _UNUSABLE
    }


def kind_of(name: str) -> Kind:
    """Return what a name stands for: one of `KINDS`, or a class of torch.optim. Raises ConfigError for any other."""
    if name in KINDS:
        return KINDS[name]
    bare, classes = name.removeprefix("torch.").removeprefix("optim."), torch_classes()
    if bare in _UNUSABLE:
        raise ConfigError(
            f"optimizer.name: {name} {_UNUSABLE[bare]}, which this trainer does not do. Take another one."
        )
    if bare not in classes:
        near = difflib.get_close_matches(bare, [*KINDS, *classes], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join([*KINDS, *classes])}."
        raise ConfigError(f"optimizer.name: there is no {name!r}; {hint}")
    taken = inspect.signature(classes[bare]).parameters
    return Kind("torch.optim", bare, {key: None for key in SETTINGS if key in taken})


def class_of(kind: Kind) -> Any:
    """Return the optimizer's class. Raises ConfigError where its library is not installed."""
    if kind.package and sys.modules.get(kind.package, kind) is None:
        del sys.modules[kind.package]  # hidden from other libraries, see `models.common`
    try:
        return getattr(import_module(kind.module), kind.cls)
    except ImportError as error:
        package = kind.package or kind.module.split(".")[0]
        raise ConfigError(
            f"optimizer.name: {kind.cls} is {package}'s, which cannot be imported ({error}). Install it with "
            f"`pip install -c constraints.txt {package}`, or take another optimizer."
        ) from error


def with_usual_values(settings: OptimizerSettings) -> OptimizerSettings:
    """Return the settings with what is null as this optimizer usually has it."""
    usual = kind_of(settings.name).usual
    given = {key: getattr(settings, key) for key in SETTINGS}
    update = {key: usual.get(key) if value is None else value for key, value in given.items()}
    # Configs of before these could be null say the defaults outright, also where nothing reads them.
    update |= {key: None for key in SETTINGS if key not in usual and update[key] == _ADAM[key]}
    return settings.model_copy(update=update)


def optimizer_problems(settings: OptimizerSettings) -> list[str]:
    """Return what is wrong with the settings, a line each; they are as `with_usual_values` gives them."""
    try:
        kind = kind_of(settings.name)
        taken = _arguments(class_of(kind), kind)
    except ConfigError as error:
        return [str(error)]
    problems = [
        f"optimizer.{key}: {settings.name} has none, so this has no effect. Take it out."
        for key in SETTINGS
        if getattr(settings, key) is not None and key not in kind.usual
    ]
    wanted = len(kind.usual.get("betas") or [0, 0])
    if settings.betas is not None and "betas" in kind.usual and len(settings.betas) != wanted:
        problems.append(f"optimizer.betas: {settings.name} takes {wanted} numbers, and here are {len(settings.betas)}.")
    for key in settings.args:
        if key in SETTINGS or key == "lr":
            problems.append(f"optimizer.args.{key}: say it as optimizer.{key}, so that it is there once.")
        elif key not in taken:
            near = difflib.get_close_matches(key, taken, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(taken) or 'no other arguments'}."
            problems.append(f"optimizer.args.{key}: {settings.name} has no such argument; {hint}")
    return problems


def _arguments(cls: Any, kind: Kind) -> list[str]:
    """Return what can stand in optimizer.args."""
    ours = {"params", "lr", "fused", "foreach", "capturable", "differentiable", *SETTINGS, *kind.fixed}
    return [name for name in inspect.signature(cls).parameters if name not in ours]


def options(settings: OptimizerSettings) -> dict[str, Any]:
    """Return the settings as the class's own arguments, those that a group can have too."""
    given = {key: getattr(settings, key) for key in SETTINGS if getattr(settings, key) is not None}
    if "betas" in given:
        given["betas"] = tuple(given["betas"])
    if settings.name == "sgd":
        given["momentum"] = given.pop("betas")[0]
    return given


def construct(groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> Any:
    """Return the optimizer over PyTorch's kind of groups. Raises ConfigError if its class refuses the settings."""
    settings = with_usual_values(settings)
    kind = kind_of(settings.name)
    cls = class_of(kind)
    # A rate over all groups besides theirs: some classes look at no other when they are made, and refuse 0.
    rate = max((group["lr"] for group in groups), default=0.0) or 1.0
    known = {"lr": rate} if "lr" in inspect.signature(cls).parameters else {}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # prodigy prints what it was told
            optimizer = cls(list(groups), **known, **options(settings), **kind.fixed, **settings.args)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"optimizer: {settings.name} does not take these settings ({error or type(error).__name__}). Change "
            "optimizer.args or the betas, or take another optimizer."
        ) from error
    if hasattr(optimizer, "train"):
        optimizer.train()
    if settings.name == "paged_adamw_8bit":
        # Where nothing can be paged the library warns in the first step; we say it in the plan.
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
    return optimizer


def optimizer_notes(settings: OptimizerSettings, device: torch.device) -> list[str]:
    """Return what a user should know of the optimizer on this device."""
    if settings.name == "paged_adamw_8bit" and device.type == "cpu":
        return ["optimizer.name: paged_adamw_8bit pages between a GPU and its host; here it is adamw_8bit"]
    return []
