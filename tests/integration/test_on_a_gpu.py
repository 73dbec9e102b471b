"""What only a GPU can show: that the host does not wait for it, and that a resume is exact there too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here

from everydream.training import accumulating
from everydream.training.state import read_checkpoint
from everydream.training.stepping import Stepper

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
Project = Callable[..., Path]


@pytest.mark.parametrize("cached", [False, True])
def test_the_steady_loop_does_not_wait_for_the_device(
    project: Project, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """PyTorch raises where a call would wait. Not in the first step, in which libraries look at what the device can."""
    steps = [0]

    def unwaiting(call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **named: Any) -> Any:
            steps[0] += call is stepped
            torch.cuda.set_sync_debug_mode("error" if steps[0] > 1 else "default")
            try:
                return call(*arguments, **named)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return checked

    added, stepped = accumulating.Accumulator.add, Stepper.step
    monkeypatch.setattr(accumulating.Accumulator, "add", unwaiting(added))
    monkeypatch.setattr(Stepper, "step", unwaiting(stepped))
    cache = {"latents": True, "text": False} if cached else {}
    train = {"epochs": 9, "max_steps": 6, "precision": "bf16"}
    run = train_here(project(train=train, cache=cache, ema={"decay": 0.9}, data={"crop": "center"}))
    assert [line["step"] for line in metrics_of(run) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_resume_is_exact_where_it_is_asked_to_be(project: Project, tmp_path: Path) -> None:
    train = {"epochs": 9, "max_steps": 6, "precision": "bf16", "deterministic": True}
    same = {"train": train, "lr_schedule": {"name": "constant"}}
    first = train_here(project(**{**same, "train": {**train, "max_steps": 3}}))
    config = project(**same, runs_dir=str(tmp_path / "straight"))
    straight = train_here(config)
    resumed = train_here(config, resume=first / "checkpoints" / "last.ckpt", allow_changes=True)
    ours, theirs = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in (resumed, straight))
    assert all(torch.equal(ours.tensors[name], tensor) for name, tensor in theirs.tensors.items())
