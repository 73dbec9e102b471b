"""Memory that does not suffice: micro-batches go in parts, the step stays what it is, and advice comes at the end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here

from everydream.errors import TrainingError
from everydream.training import accumulating
from everydream.training.state import read_checkpoint


def with_room_for(images: int, monkeypatch: pytest.MonkeyPatch, wide_only: bool = False) -> list[int]:
    """Let a step run out of memory beyond so many images, after it has added a part of its gradients."""
    original, sizes = accumulating.training_step, []

    def cramped(batch: Any, family: Any, *rest: Any) -> Any:
        sizes.append(len(batch.seeds))
        result = original(batch, family, *rest)
        tight = len(batch.seeds) > images and (not wide_only or batch.pixels_BCHW.shape[-1] > 64)
        if tight:
            result.loss.backward()
            raise torch.OutOfMemoryError("not enough of it")
        return result

    monkeypatch.setattr(accumulating, "training_step", cramped)
    return sizes


def test_a_batch_that_does_not_fit_goes_in_parts_and_the_step_stays_the_same(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {"train": {"epochs": 2, "batch_size": 5, "gradient_accumulation": 2}, "optimizer": {"name": "sgd"}}
    plain = train_here(project(**sections))
    sizes = with_room_for(2, monkeypatch)
    cramped = train_here(project(**sections))
    for a, b in zip(metrics_of(plain), metrics_of(cramped), strict=True):
        assert (a["step"], a["images_seen"]) == (b["step"], b["images_seen"])
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5) and b["grad_norm"] == pytest.approx(
            a["grad_norm"], rel=1e-3
        )
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt").tensors for run in (plain, cramped))
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=1e-5) for key in first)
    events = [json.loads(line) for line in (cramped / "events.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "out of memory"]
    shapes = {(event["width"], event["height"]) for event in told}
    assert told and all((event["images"], event["now"]) in ((5, 3), (4, 2), (3, 2)) for event in told)
    assert len(told) <= 2 * len(shapes), "each bucket learns it once"
    assert max(sizes[len(sizes) // 2 :]) <= 2, "and from then on nothing larger is tried"


def test_one_image_that_does_not_fit_ends_with_advice(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room_for(0, monkeypatch)
    with pytest.raises(TrainingError, match=r"not even one image fits.*memory.level: low.*everydream preflight"):
        train_here(project())


def test_a_step_inside_the_backward_pass_cannot_begin_anew(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room_for(1, monkeypatch)
    config = project(memory={"fused_backward": True}, train={"max_grad_norm": None})
    with pytest.raises(TrainingError, match="with memory.fused_backward, which steps as it goes"):
        train_here(config)
