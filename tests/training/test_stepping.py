"""Gradients to weights without waiting for the device, and the guard that is judged there."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from everydream.errors import TrainingError
from everydream.methods.method import ParameterGroup
from everydream.training import accumulating, stepping
from everydream.training.ema import Ema
from everydream.training.launch import Launch
from everydream.training.optim import make_optimizer
from everydream.training.reading import Submitted
from everydream.training.settings import EmaSettings, OptimizerSettings, TrainSettings
from everydream.training.state import read_checkpoint
from everydream.training.stepping import Stepped, Stepper

Project = Callable[..., Path]
FINE = torch.ones(2)
EVERY_FOUR = {"every_steps": 4, "every_epochs": None, "every_minutes": None, "formats": []}


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge steps where they are computed, as is done on every device but a CPU."""
    monkeypatch.setattr(stepping, "READ_AT_ONCE", ())


@pytest.fixture(scope="module")
def launch() -> Launch:
    return Launch(TrainSettings(precision="fp32"), [], 0)


def stepper(launch: Launch, name: str = "adamw", **settings: Any) -> Stepper:
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(5, 3, generator=generator)), nn.Parameter(torch.randn(7, generator=generator))]
    groups = [ParameterGroup("unet", ["unet.a", "unet.b"], weights, lr=1e-2)]
    optimizer = launch.accelerator.prepare_optimizer(make_optimizer(groups, OptimizerSettings(name=name, **settings)))
    return Stepper(launch, groups, optimizer, launch.clip, 1.0, None, Ema(groups, EmaSettings(decay=0.9)))


def go(s: Stepper, number: int, gradient: float = 1.0, losses_B: torch.Tensor = FINE) -> Stepped:
    for nth, weight in enumerate(s.groups[0].parameters):
        weight.grad = torch.full_like(weight, gradient * (number + nth))
    return s.step(losses_B, 0, number)


def held(s: Stepper) -> list[torch.Tensor]:
    assert s.ema is not None
    states = [s.optimizer.state[p] for p in s.groups[0].parameters]
    moments = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return [t.detach().clone() for t in [*s.groups[0].parameters, *s.ema.state_dict().values(), *moments]]


def same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["adamw", "adam", "torch.RAdam", "sgd", "lion"])
@pytest.mark.parametrize("bad", ["gradient", "loss", "no image"])
def test_a_skipped_step_changes_nothing(launch: Launch, name: str, bad: str) -> None:
    """Weights, moments, counts of steps and average, also where it is the first step."""
    ours, theirs = stepper(launch, name), stepper(launch, name)
    assert ours.skips_on_device == (name in ("adamw", "adam"))
    gradient = float("inf") if bad == "gradient" else 1.0
    losses_B = {"gradient": FINE, "loss": torch.tensor([1.0, float("nan")]), "no image": FINE[:0]}[bad]
    assert bool(go(ours, 5, gradient, losses_B).skipped)
    for number in (1, 2):
        assert not bool(go(ours, number).skipped) and not bool(go(theirs, number).skipped)
    before = held(ours)
    assert same(before, held(theirs))
    assert bool(go(ours, 3, gradient, losses_B).skipped)
    assert same(before, held(ours))
    go(ours, 4), go(theirs, 4)
    assert same(held(ours), held(theirs)) and not same(before, held(ours))


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_after_three_bad_steps_in_a_row_the_weights_wait_for_the_host(launch: Launch, name: str) -> None:
    """A step without images is no step: it neither ends the row nor adds to it."""
    s = stepper(launch, name)
    go(s, 1)
    for number in (2, 3):
        go(s, number, float("nan"))
    assert not bool(go(s, 4).skipped), "two are not three"
    before = held(s)
    for number in (5, 6):
        go(s, number, float("nan"))
    go(s, 7, 1.0, FINE[:0])
    go(s, 8, float("nan"))
    assert bool(go(s, 9).skipped) and same(before, held(s))


def test_the_average_moves_alike_on_device_and_on_host(launch: Launch) -> None:
    s = stepper(launch)
    go(s, 1)
    assert s.ema is not None
    for step in range(2, 6):
        go(s, step)
        other = copy.deepcopy(s.ema)
        s.ema.update(step)
        other.update(step, torch.tensor(False))
        assert same(list(s.ema.state_dict().values()), list(other.state_dict().values()))


class Reads(TorchDispatchMode):
    """Counts the times that the host asks for a number of the device's."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_on_a_cpu_numbers_are_read_at_once(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not stepper(launch).skips_on_device


@pytest.mark.parametrize(("name", "order"), [("adamw", "ssrsrsrrsr"), ("lion", "srsrsrsrsr")])
def test_numbers_are_read_while_the_next_step_is_under_way(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str, order: str
) -> None:
    """Of five steps, with a save after the fourth, for which all is read; nothing else asks the device for a number."""
    seen, reads = [], Reads()
    submitted, gathered, added = Stepper.step, Submitted.gather, accumulating.Accumulator.add

    def step(*arguments: Any) -> Stepped:
        seen.append("s")
        with reads:
            return submitted(*arguments)

    def add(*arguments: Any) -> None:
        with reads:
            added(*arguments)

    monkeypatch.setattr(Stepper, "step", step)
    monkeypatch.setattr(accumulating.Accumulator, "add", add)
    monkeypatch.setattr(Submitted, "gather", lambda *arguments: (seen.append("r"), gathered(*arguments))[1])
    optimizer = {"name": name, "lr": 1e-4}
    run = train_here(project(train={"epochs": 9, "max_steps": 5}, checkpoints=EVERY_FOUR, optimizer=optimizer))
    assert "".join(seen) == order
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4, 5]
    assert bool(reads.count) == (name == "lion")


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """The steps whose loss is not a number; each is a micro-batch here."""
    steps, count, original = set[int](), [0], accumulating.training_step

    def poisoned(*arguments: Any, **keywords: Any) -> Any:
        result = original(*arguments, **keywords)
        count[0] += 1
        result.loss.mul_(float("nan") if count[0] in steps else 1.0)
        return result

    monkeypatch.setattr(accumulating, "training_step", poisoned)
    yield steps


def test_what_is_under_way_behind_three_bad_steps_is_not_in_the_checkpoint(
    project: Project, nan_at: set[int], tmp_path: Path
) -> None:
    same_for_both = {"ema": {"decay": 0.9}, "lr_schedule": {"name": "constant"}}
    nan_at |= {4, 5, 6}
    with pytest.raises(TrainingError, match=r"last\.ckpt is from step 3, with the weights from before"):
        train_here(project(train={"epochs": 9, "max_steps": 8}, runs_dir=str(tmp_path / "a"), **same_for_both))
    nan_at.clear()
    train_here(project(train={"epochs": 9, "max_steps": 3}, runs_dir=str(tmp_path / "b"), **same_for_both))
    ours, theirs = (read_checkpoint(next((tmp_path / name).rglob("last.ckpt"))) for name in "ab")
    assert ours.progress == theirs.progress
    for mine, other in ((ours.tensors, theirs.tensors), (ours.ema, theirs.ema)):
        assert same([mine[name] for name in other], list(other.values()))
    for name, state in theirs.optimizer.items():
        assert all(torch.equal(ours.optimizer[name][key], value) for key, value in state.items())
