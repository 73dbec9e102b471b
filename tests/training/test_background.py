"""Saves are written beside the training, from a copy that training does not change."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import metrics_of, train_here

from everydream import outputs
from everydream.errors import DiskError
from everydream.formats.files import write_pickle
from everydream.training.background import Background, Snapshot
from everydream.training.export import exports_in
from everydream.training.state import read_checkpoint
from everydream.training.waits import Waits


def test_a_copy_stays_as_it_was_and_the_next_one_takes_the_same_memory() -> None:
    snapshot, weight = Snapshot(), torch.arange(6.0).reshape(2, 3)
    value = {"a": {"w": weight.T}, "b": [weight, 3, "x"], "c": None}
    copy = snapshot.of(value)
    weight += 1
    assert torch.equal(copy["a"]["w"], torch.arange(6.0).reshape(2, 3).T) and copy["a"]["w"].is_contiguous()
    assert copy["b"][1:] == [3, "x"] and copy["c"] is None
    first = copy["b"][0].data_ptr()
    again = snapshot.of(value)
    assert again["b"][0].data_ptr() == first and torch.equal(again["b"][0], weight)
    assert snapshot.of({"b": [weight.double()]})["b"][0].dtype == torch.float64


def test_what_goes_wrong_in_a_job_is_raised_where_it_is_taken_in() -> None:
    background, done = Background(), []
    assert not background.ended(wait=True), "nothing is under way"
    background.start(lambda: done.append(1))
    assert background.ended(wait=True) and done == [1] and not background.ended(wait=True)

    def full() -> None:
        raise DiskError("no room")

    background.start(full)
    with pytest.raises(DiskError, match="no room"):
        background.ended(wait=True)
    background.start(lambda: done.append(2))
    assert background.ended(wait=True) and done == [1, 2]


def test_waits_are_counted_by_what_for() -> None:
    waits = Waits()
    assert list(waits.over("data", iter([1, 2]))) == [1, 2]
    with waits.on("save"):
        pass
    taken = waits.taken()
    assert list(taken) == ["wait/data_s", "wait/save_s"] and min(taken.values()) > 0
    assert set(waits.taken().values()) == {0.0} and waits.facts().keys() == {"waited_for_data_s", "waited_for_save_s"}


def test_training_goes_on_while_a_save_is_written(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = project(
        checkpoints={"every_steps": 2, "keep": 1, "formats": ["safetensors"]}, train={"max_steps": 5},
        ema={"decay": 0.9}, validation={"images": 2, "timesteps": 1, "every_steps": 2},
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(outputs.Snapshot, "has_room", lambda *_: False)
        at_once = train_here(config)
    at_once.parent.rename(tmp_path / "at once")
    at_once = tmp_path / "at once" / at_once.name
    ahead: list[int] = []
    exports: list[list[int]] = []

    def late(path: Path, contents: dict[str, Any]) -> None:
        step, begun = contents["everydream"]["progress"]["step"], time.monotonic()
        run = path.parent.parent
        while len(metrics_of(run)) <= step < 5 and time.monotonic() - begun < 60:
            time.sleep(0.01)
        ahead.append(len(metrics_of(run)) - step)
        exports.append(sorted(exports_in(path.parent, "trial")))
        write_pickle(path, contents)

    monkeypatch.setattr(outputs, "write_pickle", late)
    beside = train_here(config)
    assert ahead[0] > 0 and ahead[-1] == 0, (
        "steps were done between the copy and the writing; at the end it is waited for"
    )
    assert exports == [[2], [2, 4], [4, 5]], "an older export stays until the file is there"
    last = [run / "checkpoints" / "last.ckpt" for run in (at_once, beside)]
    assert read_checkpoint(last[1]).progress.step == 5
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in last}) == 1
    saved = [line for line in (beside / "events.jsonl").read_text().splitlines() if '"saved"' in line]
    assert [f'"step": {step}' in line for step, line in zip((2, 4, 5), saved, strict=True)] == [True] * 3


def test_a_disk_that_is_full_beside_the_training_is_told_and_the_run_goes_on(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = [0]

    def full_once(path: Path, contents: dict[str, Any]) -> None:
        writes[0] += 1
        if writes[0] == 1:
            raise DiskError("the disk is full")
        write_pickle(path, contents)

    monkeypatch.setattr(outputs, "write_pickle", full_once)
    run = train_here(project(checkpoints={"every_steps": 2, "formats": []}, train={"max_steps": 4}))
    events = (run / "events.jsonl").read_text()
    assert "last.ckpt at step 2 could not be written: the disk is full" in events
    assert read_checkpoint(run / "checkpoints" / "last.ckpt").progress.step == 4
