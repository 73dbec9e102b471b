"""Runs at every memory level: exact resume, what is kept in which precision, what leaves no trace in exports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here
from test_optimizers_in_runs import digest, stop_at

from everydream.config import load_config
from everydream.errors import ConfigError
from everydream.formats.files import read_file
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.training.state import read_checkpoint

Project = Callable[..., Path]
BF16 = {"precision": "bf16", "max_steps": 4}
pytestmark = pytest.mark.usefixtures("any_precision")


def last_of(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("level", "sections"),
    [
        ("low", {"ema": {"decay": 0.9}, "optimizer": {"name": "adamw_8bit"}}),
        ("minimal", {"train": {**BF16, "gradient_checkpointing": "selective"}}),
    ],
)
def test_killed_and_resumed_is_the_same_to_the_bit(
    project: Project, monkeypatch: pytest.MonkeyPatch, level: str, sections: dict[str, Any]
) -> None:
    sections = {"train": BF16, **sections}
    every = {"every_steps": 1, "formats": []}
    look = {"every_steps": 2, "steps": 1, "guidance": [1.0]}
    config = project(memory={"level": level}, checkpoints=every, samples=look, **sections)
    straight = train_here(config)
    last = stop_at(monkeypatch, config, 3)
    assert digest(train_here(config, resume=last)) == digest(straight)
    saved = read_checkpoint(last)
    kinds = {prefix: {t.dtype for n, t in saved.tensors.items() if n.startswith(prefix) and t.is_floating_point()}
             for prefix in ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")}  # fmt: skip
    bf16 = {torch.bfloat16}
    assert kinds == {"model.diffusion_model.": bf16, "cond_stage_model.": bf16, "first_stage_model.": {torch.float32}}
    assert {t.dtype for t in saved.ema.values()} <= {torch.float32}
    if level == "minimal":
        moments = {t.dtype for s in saved.optimizer.values() for t in s.values() if t.dim()}
        assert moments == bf16


def test_fused_backward_trains_what_the_loop_trains(project: Project) -> None:
    """In fp32 to the bit, clipping included, and with a part that stops early."""
    common = {"train": {"max_steps": 4, "max_grad_norm": 0.05}, "text_encoder": {"lr": 1e-3, "epochs": 1}}
    runs = [train_here(project(memory={"fused_backward": fused}, **common)) for fused in (False, True)]
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    assert metrics_of(runs[0])[0]["grad_norm"] > 0.05
    plain, fused = (read_checkpoint(last_of(run)) for run in runs)
    assert all(torch.equal(tensor, fused.tensors[name]) for name, tensor in plain.tensors.items())


def test_bad_gradients_inside_the_backward_pass_count_as_a_skipped_step(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everydream.training import fused

    original, calls = fused.norm_of, [0]

    def sometimes(norms: Any) -> torch.Tensor:
        calls[0] += 1
        return torch.tensor(torch.inf) if calls[0] == 2 else original(norms)

    monkeypatch.setattr(fused, "norm_of", sometimes)
    lines = metrics_of(train_here(project(memory={"fused_backward": True}, train={"max_steps": 3})))
    assert ["skipped" in line for line in lines] == [False, True, False]


def test_exports_hold_the_frozen_parts_untouched(project: Project, model_folder: Path) -> None:
    formats = {"formats": ["safetensors"], "dtype": "fp32"}
    run = train_here(
        project(memory={"level": "low"}, train=BF16, checkpoints=formats, text_encoder={"lr": 1e-4, "train": False})
    )
    (export,) = (run / "checkpoints").glob("*.safetensors")
    base, made = load(ModelSettings(path=str(model_folder))), load(ModelSettings(path=str(export)))
    for part in ("vae", "text_encoder"):
        was, now = (model.modules()[part].state_dict() for model in (base, made))
        assert all(torch.equal(tensor, now[name]) for name, tensor in was.items()), part
    rounded = [t for t in made.modules()["unet"].state_dict().values() if t.is_floating_point()]
    assert all(torch.equal(t, t.bfloat16().float()) for t in rounded)


def test_frozen_parts_in_bf16_on_the_device_are_rounded(project: Project) -> None:
    run = train_here(project(memory={"frozen": "bf16"}, train=BF16, text_encoder={"lr": 1e-4, "train": False}))
    tensors = read_file(last_of(run)).tensors
    assert tensors["model.diffusion_model.time_embed.0.weight"].dtype == torch.float32
    assert {t.dtype for n, t in tensors.items() if n.startswith(("first_stage", "cond_stage")) and t.is_floating_point()} == {torch.bfloat16}  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("method", "section"),
    [
        ("lora", {"lora": {"rank": 4}}),
        ("textual_inversion", {"textual_inversion": {"words": [{"token": "<x>", "init": "dog"}]}}),
        ("hypernetwork", {"hypernetwork": {"layer_structure": [1, 1]}}),
    ],
)
def test_every_method_trains_at_the_lowest_level(
    project: Project, tmp_path: Path, method: str, section: dict[str, Any]
) -> None:
    project()
    section["data"] = {"sources": [{"path": str(tmp_path / "mine"), "label": "photo of <x>"}]}
    rates = {} if method == "lora" else {"unet": {"lr": None}, "text_encoder": {"lr": None}}
    run = train_here(
        project(method=method, memory={"level": "minimal"}, train={**BF16, "max_steps": 2}, **rates, **section)
    )
    assert all(line["grad_norm"] > 0 for line in metrics_of(run))
    added = read_checkpoint(last_of(run)).added
    assert added and {t.dtype for t in added.values()} == {torch.bfloat16}


def test_what_changes_room_and_not_numbers(project: Project) -> None:
    settings = {"attention": "sliced", "sliced_vae": True, "offload_optimizer": True, "offload_frozen": True}
    plain, other = (metrics_of(train_here(project(memory=m, train={"max_steps": 2}))) for m in ({}, settings))
    assert [line["loss"] for line in other] == pytest.approx([line["loss"] for line in plain], rel=1e-4)


def test_the_plan_tells_the_level(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    train_here(project(train=BF16 | {"max_steps": 1}), "memory.level=low", "optimizer.name=adamw_8bit")
    assert "level low: as balanced, and" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ({"level": "low"}, "memory.level: low keeps weights in bf16, and train.precision: fp32"),
        ({"level": "lowest"}, "memory.level"),
        ({"attention": "flash"}, "memory.attention: flash computes in 16 bits"),
    ],
)
def test_settings_are_refused_before_anything_starts(project: Project, memory: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match="1 problem;") as error:
        load_config(project(memory=memory))
    assert told in str(error.value)


def test_flash_needs_its_device(project: Project) -> None:
    with pytest.raises(ConfigError, match="flash runs on NVIDIA GPUs"):
        train_here(project(memory={"attention": "flash"}, train=BF16))
