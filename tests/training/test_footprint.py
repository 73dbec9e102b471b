"""What a step takes, counted from shapes: beside what PyTorch's profiler sees when the step is really done."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_images
from torch.profiler import profile

from everydream import preflight
from everydream.cli import main
from everydream.config import RunConfig, load_config
from everydream.errors import ConfigError
from everydream.plan import plan_run
from everydream.preparing import load_family, prepare
from everydream.train import train
from everydream.training.footprint import LiveStorages
from everydream.training.launch import Launch

SIZE = (256, 192)
pytestmark = pytest.mark.usefixtures("any_precision")


def settings(project: Callable[..., Path], tmp_path: Path, **sections: Any) -> RunConfig:
    make_images(tmp_path / "mine", 4, (SIZE,), seed=1)
    data = {"resolution": 224, "bucket_step": 32, "sources": [{"path": str(tmp_path / "mine")}]}
    return load_config(project(data=data, **{"train": {"batch_size": 3, "precision": "bf16"}, **sections}))


def profiled_peak(config: RunConfig) -> int:
    """Return the peak of a real step by the allocator's own count, with what was there before it."""
    planned, launch = plan_run(config), Launch(config.train, [], config.seed)
    trainee = prepare(config, launch, planned, load_family(config), None, [])
    step = preflight._step(config, launch, trainee, SIZE, counted=False)
    step()
    gc.collect()
    held = LiveStorages()
    for network in trainee.family.modules().values():
        for parameter in network.parameters():
            held.add(parameter)
    for values in trainee.optimizer.state.values():
        for value in values.values():
            if isinstance(value, torch.Tensor):
                held.add(value)
    with profile(profile_memory=True) as profiler:
        step()
    now = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return held.now + peak


@pytest.mark.parametrize("sections", [
    {"memory": {"level": "max_speed"}},
    {"memory": {"level": "balanced"}},
    {"memory": {"weights": "bf16", "optimizer_state": "bf16"}},
    {"memory": {"fused_backward": True}},
    {"ema": {"decay": 0.9}, "method": "lora"},
])  # fmt: skip
def test_the_estimate_is_within_15_percent_of_what_a_step_takes(
    project: Callable[..., Path], tmp_path: Path, sections: dict[str, Any]
) -> None:
    config = settings(project, tmp_path, **sections)
    found, _ = preflight.look(plan_run(config), load_family(config), SIZE, measured=False)
    assert found.footprint.peak == pytest.approx(profiled_peak(config), rel=0.15)
    assert found.footprint.working > 0 and (found.flops or 0) > 1e9


def test_levels_hold_less_and_less(project: Callable[..., Path], tmp_path: Path) -> None:
    """Between steps, on the device; at this size the vocabulary's own update is what takes most."""
    held = []
    for level in ("balanced", "low"):
        config = settings(project, tmp_path, memory={"level": level})
        found, _ = preflight.look(plan_run(config), load_family(config), SIZE, measured=False)
        held.append(found.footprint.held)
    assert held[1]["weights that train"] * 2 == held[0]["weights that train"]
    assert held[1]["optimizer state"] == held[1]["frozen weights"] == 0 < held[0]["frozen weights"]


def test_the_command(project: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings(project, tmp_path)
    with pytest.raises(SystemExit):
        main(["preflight", "--config", str(tmp_path / "project.yaml"), "memory.level=low"])
    said = capsys.readouterr().out
    assert "largest bucket: an estimate, from shapes, without a GPU" in said
    assert "memory.level low: peak" in said and "TFLOP a step" in said and "s a batch" not in said
    assert "Disk, at memory.level low: last.ckpt" in said and "epochs" in said


@pytest.mark.parametrize("name", ["adafactor", "prodigy"])
def test_what_cannot_be_counted_from_shapes_is_said(project: Callable[..., Path], tmp_path: Path, name: str) -> None:
    config = settings(project, tmp_path, optimizer={"name": name}, unet={"lr": None}, text_encoder={"lr": None})
    with pytest.raises(ConfigError, match=rf"optimizer.name: {name} with method: full looks at numbers.*--measure"):
        preflight.preflight(config)


def test_a_level_that_does_not_go_with_the_config_is_named(project: Callable[..., Path], tmp_path: Path) -> None:
    config = settings(project, tmp_path, train={"batch_size": 2, "precision": "fp32"})
    lines = preflight.preflight(config, all_levels=True)
    assert any(line.startswith("memory.level balanced: peak") for line in lines)
    refused = [line for line in lines if line.startswith("memory.level minimal: not with this config: ")]
    assert refused and "Use train.precision: bf16" in refused[0]


def test_measured_here(project: Callable[..., Path], tmp_path: Path) -> None:
    lines = preflight.preflight(settings(project, tmp_path), measure=True)
    assert "measured on this machine" in lines[0]
    assert "s a batch" in lines[1] and "h of training in all" in lines[1]


@pytest.mark.parametrize("sections", [{"memory": {"level": "balanced"}}, {"memory": {"level": "low"}}])
def test_the_plan_knows_how_large_last_ckpt_will_be(
    project: Callable[..., Path], tmp_path: Path, sections: dict[str, Any]
) -> None:
    config = settings(project, tmp_path, **sections, train={"batch_size": 2, "precision": "bf16", "max_steps": 1})
    planned, launch = plan_run(config), Launch(config.train, [], config.seed)
    said = prepare(config, launch, planned, load_family(config), None, []).last_bytes
    run, _ = train(config)
    # What the monitors remember is not in it: half a megabyte of each part, whatever the model's size.
    assert said == pytest.approx((run / "checkpoints" / "last.ckpt").stat().st_size, rel=0.05)
