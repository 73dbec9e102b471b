"""Every method through the one loop: stopped and resumed to the bit, and what is written of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here
from integration.test_resume import Killed, die_after, digest
from safetensors.torch import load_file

from everydream.training import accumulating
from everydream.training.runs import find_checkpoint

WORDS = {"words": [{"token": "<thing>", "vectors": 2, "init": "dog"}]}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora": {"rank": 2, "dropout": 0.3}, "ema": {"decay": 0.9}},
    "lokr": {"method": "lora", "lora": {"kind": "lokr", "rank": 2, "dropout": 0.3, "targets": ["convolution"]}},
    "words": {"method": "textual_inversion", "textual_inversion": {**WORDS, "lr": 0.1}},
    "hypernetwork": {"method": "hypernetwork", "hypernetwork": {"dropout": [0, 0.3, 0], "lr": 0.01}},
    "parts": {"unet": {"only": ["attention"], "lr": 1e-3}, "text_encoder": {"epochs": 1, "lr": 1e-3}},
}
ENDINGS = {"lora": ".safetensors", "lokr": ".safetensors", "words": ".safetensors", "hypernetwork": ".pt",
           "parts": ".safetensors"}  # fmt: skip


@pytest.fixture
def teach(project: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a project for a method, its images captioned with the new word."""

    def write(**sections: Any) -> Path:
        common: dict[str, Any] = {"unet": {"lr": None}, "text_encoder": {"lr": None}, "checkpoints": {"formats": None}}
        for name, section in sections.items():
            common[name] = {**common[name], **section} if isinstance(common.get(name), dict) else section
        path = project(**common)
        text = path.read_text(encoding="utf-8")
        if "textual" in text:
            text = text.replace("repeats: 2", "repeats: 2\n    label: a photo of <thing>")
            path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", METHODS)
def test_killed_and_resumed_to_the_bit(teach: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    config = teach(**METHODS[name], checkpoints={"every_steps": 2, "keep": 2})
    straight = train_here(config)
    with monkeypatch.context() as patch:
        die_after(patch, accumulating, "training_step", 5)
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and straight not in last.parents
    assert bool(torch.load(last, weights_only=True)["added"]) is (name != "parts")
    resumed = train_here(config, resume=last)
    assert digest(resumed) == digest(straight)
    exports = sorted((straight / "checkpoints").glob("trial-*"))
    assert len(exports) == 4 and {path.suffix for path in exports} == {ENDINGS[name], ".md"}
    for path in exports:
        assert (resumed / "checkpoints" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("first", "then", "lost"),
    [
        ("words", {"textual_inversion": {"words": [{"token": "<thing>", "vectors": 3, "init": "dog"}]}}, "1 of 1"),
        ("lora", {"lora": {"rank": 4}}, "trained tensors fit nothing"),
        ("lora", {"method": "full", "lora": {"rank": 16, "dropout": 0.0}}, "trained tensors fit nothing"),
    ],
)
def test_changed_on_purpose(
    teach: Callable[..., Path], capsys: pytest.CaptureFixture[str], first: str, then: dict[str, Any], lost: str
) -> None:
    """What fits nothing any more starts afresh, and the user is told."""
    run = train_here(teach(**METHODS[first], train={"max_steps": 2}))
    settings = {name: {**METHODS[first].get(name, {}), **value} if isinstance(value, dict) else value
                for name, value in {**METHODS[first], **then}.items()}  # fmt: skip
    changed = train_here(
        teach(**settings, train={"max_steps": 4}), resume=run / "checkpoints" / "last.ckpt", allow_changes=True
    )
    assert lost in capsys.readouterr().err
    assert [line["step"] for line in metrics_of(changed)] == [1, 2, 3, 4]
    assert all("skipped" not in line for line in metrics_of(changed))


def test_a_part_stops_after_its_epochs(teach: Callable[..., Path]) -> None:
    run = train_here(teach(**METHODS["parts"]), "checkpoints.every_epochs=1", "checkpoints.dtype=fp32")
    first, last = sorted((run / "checkpoints").glob("trial-e000*.safetensors"))
    one, two = load_file(first), load_file(last)
    changed = {key for key in one if not torch.equal(one[key], two[key])}
    assert changed and all(".attn1." in key or ".attn2." in key for key in changed)
    lines = metrics_of(run)
    assert {line["lr/text_encoder"] > 0 for line in lines if line["epoch"] == 0} == {True}
    assert {line["lr/text_encoder"] for line in lines if line["epoch"] == 1} == {0.0}
