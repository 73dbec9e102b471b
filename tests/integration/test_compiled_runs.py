"""Runs with train.compile and train.channels_last: the same training, files and resume as without."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here
from safetensors.torch import load_file

from everydream.training import accumulating, compiling
from everydream.training.runs import find_checkpoint
from everydream.training.state import read_checkpoint

Project = Callable[..., Path]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of one run are not another's. With PyTorch's own kernels: others take half a minute a graph here."""
    torch._dynamo.reset()
    monkeypatch.setenv(compiling.BACKEND, "eager")


def resumed(config: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kill a run in its third step, and go on with it; return the run."""
    step, calls = accumulating.training_step, [0]

    def dying(*inputs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return step(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(accumulating, "training_step", dying)
        with pytest.raises(KeyboardInterrupt):
            train_here(config)
    torch._dynamo.reset()
    last = find_checkpoint("auto", runs, "trial")
    assert last is not None
    return train_here(config, resume=last)


def same_files(one: Path, other: Path) -> bool:
    return (one / "checkpoints/last.ckpt").read_bytes() == (other / "checkpoints/last.ckpt").read_bytes()


def test_a_compiled_run(project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Recomputed activations, an average, looks at the model; resumed to the bit."""
    train = {"compile": "regional", "max_steps": 3, "batch_size": 1, "gradient_checkpointing": True}
    config = project(
        train=train, ema={"decay": 0.9}, samples={"every_steps": 2, "steps": 2}, text_encoder={"train": False},
        checkpoints={"formats": ["safetensors"], "every_steps": 1, "keep": 1},
    )  # fmt: skip
    compiled = train_here(config)
    said = capfd.readouterr().err
    events = [json.loads(line) for line in (compiled / "events.jsonl").read_text().splitlines()]
    assert [event["graph"] for event in events if event["event"] == "compiled"] == [1, 2], "blocks are of two widths"
    assert "regional: 4 x BasicTransformerBlock; at most 2 graphs" in said and "Compiled graph 2 of at most 2" in said
    assert same_files(resumed(config, compiled.parent, monkeypatch), compiled)
    plain = train_here(config, "train.compile=none")
    assert metrics_of(compiled) == metrics_of(plain)
    exports = [load_file(next((run / "checkpoints").glob("*.safetensors"))) for run in (compiled, plain)]
    assert exports[0].keys() == exports[1].keys()
    a, b = (read_checkpoint(run / "checkpoints/last.ckpt") for run in (compiled, plain))
    assert list(a.tensors) == list(b.tensors) and list(a.optimizer) == list(b.optimizer) and list(a.ema) == list(b.ema)


@pytest.mark.parametrize(
    "sections",
    [
        {"method": "lora", "lora": {"rank": 2}, "unet": {"lr": 1e-3}},
        {"memory": {"fused_backward": True}},
    ],
    ids=["lora", "stepping in the backward pass"],
)
def test_what_goes_into_the_compiled_blocks_trains_as_ever(project: Project, sections: dict[str, Any]) -> None:
    train = {"compile": "regional", "max_steps": 3, "batch_size": 1}
    config = project(**{**sections, "train": train, "text_encoder": {"train": False}})
    compiled, plain = train_here(config), train_here(config, "train.compile=none")
    assert [line["loss"] for line in metrics_of(compiled)] == pytest.approx([x["loss"] for x in metrics_of(plain)])
    assert (compiled / "events.jsonl").read_text().count('"compiled"') > 0


def test_channels_last_leaves_files_as_they_are(project: Project) -> None:
    """Seen where steps change no weight, for kernels round otherwise; the moments in last.ckpt are plain as well."""
    config = project(
        unet={"lr": 0.0}, text_encoder={"lr": 0.0}, optimizer={"weight_decay": 0.0}, ema={"decay": 0.9},
        checkpoints={"formats": ["safetensors", "diffusers"], "dtype": "fp32", "provenance": "none"},
        train={"max_steps": 2},
    )  # fmt: skip
    plain, last = train_here(config), train_here(config, "train.channels_last=true")
    losses = [[line["loss"] for line in metrics_of(run)] for run in (plain, last)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    written = list((plain / "checkpoints").rglob("*.safetensors"))
    assert len(written) == 4
    for path in written:
        theirs = last / path.relative_to(plain).as_posix().replace(plain.name, last.name)
        assert path.read_bytes() == theirs.read_bytes()
    saved = read_checkpoint(last / "checkpoints/last.ckpt")
    moments = [value for state in saved.optimizer.values() for value in state.values()]
    assert len(moments) > 100
    assert all(t.is_contiguous() for t in [*saved.tensors.values(), *saved.ema.values(), *moments])


def test_channels_last_resumes_to_the_bit(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from the file is laid out as the weights are: fused optimizers do not look at strides."""
    train = {"channels_last": True, "max_steps": 4}
    config = project(train=train, ema={"decay": 0.9}, checkpoints={"every_steps": 1})
    straight = train_here(config)
    again = resumed(config, straight.parent, monkeypatch)
    assert same_files(again, straight)
    plain = [line["loss"] for line in metrics_of(train_here(config, "train.channels_last=false"))]
    assert [line["loss"] for line in metrics_of(again)] == pytest.approx(plain, rel=1e-4)
