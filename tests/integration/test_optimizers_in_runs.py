"""Runs with the optimizers that keep more than moments: exact resume, what is shown, what is logged; refusals."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here
from integration.test_resume import Killed, die_after

from everydream.config import load_config
from everydream.errors import ConfigError
from everydream.formats.files import read_file
from everydream.training.runs import find_checkpoint
from everydream.training.state import read_checkpoint

Project = Callable[..., Path]


def digest(run: Path) -> tuple[str, str]:
    last, metrics = run / "checkpoints" / "last.ckpt", run / "metrics.jsonl"
    return hashlib.sha256(last.read_bytes()).hexdigest(), hashlib.sha256(metrics.read_bytes()).hexdigest()


def stop_at(monkeypatch: pytest.MonkeyPatch, config: Path, calls: int) -> Path:
    """Train until the process ends without another word in the micro-batch after so many; return its last.ckpt."""
    from everydream.training import accumulating

    with monkeypatch.context() as patch:
        die_after(patch, accumulating, "training_step", calls)
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", config.parent / "runs", "trial")
    assert last is not None
    return last


@pytest.mark.parametrize(
    ("optimizer", "unet"),
    [
        ({"name": "schedule_free_adamw"}, {"lr": 1e-3}),
        ({"name": "prodigy", "args": {"d0": 1e-4}}, {"lr": None}),
        ({"name": "adamw_8bit"}, {"lr": 1e-3, "block_lr": {"down_blocks.*": 0.5, "mid_block": 0.0}}),
    ],
)
def test_killed_and_resumed_is_the_same_to_the_bit(
    project: Project, monkeypatch: pytest.MonkeyPatch, optimizer: dict[str, Any], unet: dict[str, Any]
) -> None:
    """With samples in between, which show other weights than those that train."""
    config = project(
        optimizer=optimizer, unet=unet, text_encoder={"lr": unet["lr"] and 1e-4}, train={"max_steps": 6},
        checkpoints={"every_steps": 1, "formats": []},
        samples={"every_steps": 2, "steps": 1, "guidance": [1.0]},
    )  # fmt: skip
    straight = train_here(config)
    last = stop_at(monkeypatch, config, 3)
    assert straight not in last.parents
    assert digest(train_here(config, resume=last)) == digest(straight)
    saved = read_checkpoint(last).optimizer_groups
    if optimizer["name"] == "prodigy":
        found = [line["d/unet"] for line in metrics_of(straight)]
        assert saved["unet"]["d"] == found[-1] >= found[0] > 0 and saved["unet"]["k"] == 6
    elif optimizer["name"] == "schedule_free_adamw":
        assert saved["text_encoder"]["k"] == 6 and saved["unet"]["weight_sum"] > 0
    else:
        rates = metrics_of(straight)[0]
        assert rates["lr/unet/down_blocks.*"] == 0.5 * rates["lr/unet"] and rates["lr/unet/mid_block"] == 0.0


def test_a_schedule_free_run_exports_its_average(project: Project) -> None:
    settings = {"formats": ["safetensors"], "dtype": "fp32", "every_epochs": None}
    optimizer = {"name": "schedule_free_adamw"}
    run = train_here(project(optimizer=optimizer, train={"max_steps": 4}, checkpoints=settings))
    (export,) = (run / "checkpoints").glob("*.safetensors")
    shown, last = read_file(export).tensors, read_checkpoint(run / "checkpoints" / "last.ckpt")
    name = "model.diffusion_model.time_embed.0.weight"
    z = last.optimizer["unet.time_embedding.linear_1.weight"]["z"]
    torch.testing.assert_close(0.1 * z + 0.9 * shown[name], last.tensors[name])
    assert not torch.equal(shown[name], last.tensors[name])


def test_a_block_with_rate_0_stays(project: Project) -> None:
    blocks = {"mid_block": 0.0}
    runs = [train_here(project(unet={"block_lr": blocks}, train={"max_steps": steps})) for steps in (1, 3)]
    before, after = (read_checkpoint(run / "checkpoints" / "last.ckpt") for run in runs)
    moved = {name for name, tensor in before.tensors.items() if not torch.equal(tensor, after.tensors[name])}
    assert any(".input_blocks." in name for name in moved) and not any(".middle_block." in name for name in moved)


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"optimizer": {"name": "prodigy"}, "unet": {"lr": 1.0}, "text_encoder": {"lr": 0.5}}, "unet.lr 1, text_enc"),
        ({"optimizer": {"name": "prodigy"}, "unet": {"lr": None, "block_lr": {"mid_block": 0.5}},
          "text_encoder": {"lr": None}}, "unet.block_lr: prodigy finds one rate"),
        ({"optimizer": {"name": "prodigy"}, "unet": {"lr": None, "optimizer": {"betas": [0.5, 0.9]}},
          "text_encoder": {"lr": None}}, "unet.optimizer.betas: prodigy estimates one d"),
        ({"optimizer": {"name": "schedule_free_adamw"}, "lr_schedule": {"name": "rex"}}, "lr_schedule.name: rex"),
        ({"optimizer": {"name": "schedule_free_adamw"}, "ema": {"decay": 0.9}}, "ema.decay: optimizer.name"),
        ({"optimizer": {"name": "lion"}, "unet": {"lr": 1e-4, "optimizer": {"eps": 1e-6}}}, "optimizer.eps: lion"),
        ({"lr_schedule": {"cycles": 2, "name": "linear"}}, "lr_schedule.cycles: has no effect"),
        ({"lr_schedule": {"power": 3.0}}, "lr_schedule.power: has no effect with lr_schedule.name: cosine"),
        ({"lr_schedule": {"name": "one_cycle", "min_factor": 0.1}}, "lr_schedule.min_factor: has no effect"),
        ({"lr_schedule": {"warmup_steps": 3, "warmup_share": 0.1}}, "the warm-up is given twice, as 3 steps"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(project: Project, sections: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match="1 problem;") as error:
        load_config(project(**sections))
    assert told in str(error.value)


def test_prodigys_rate_is_1_where_none_is_given(project: Project) -> None:
    config = project(optimizer={"name": "prodigy"}, unet={"lr": None}, text_encoder={"lr": None})
    found = load_config(config)
    assert (found.unet.lr, found.text_encoder.lr, found.lr_schedule.name) == (1.0, 1.0, "cosine")
    words = {"textual_inversion": {"words": [{"token": "<x>", "init": "dog"}]}, "method": "textual_inversion"}
    config = project(optimizer={"name": "prodigy"}, unet={"lr": None}, text_encoder={"lr": None}, **words)
    assert load_config(config).textual_inversion.lr == 1.0
    assert load_config(project(optimizer={"name": "schedule_free_adamw"})).lr_schedule.name == "constant"
