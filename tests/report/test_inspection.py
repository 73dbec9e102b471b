"""The facts of whole plans, and what the inspection makes of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import make_images

from everydream.config import resolve
from everydream.plan import Planned, plan_run
from everydream.report.balance import subjects, suggested
from everydream.report.buckets import bucket_map
from everydream.report.inspection import describe_findings, inspect_run
from everydream.report.steps import arithmetic, group_draws, last_run, saves


def planned_of(tmp_path: Path, *sources: dict[str, Any], **sections: Any) -> Planned:
    raw: dict[str, Any] = {
        "project": "trial", "model": {"path": "none"}, "runs_dir": str(tmp_path / "runs"),
        "data": {"resolution": 64, "bucket_step": 16, "sources": list(sources)}, "train": {"batch_size": 4}, **sections,
    }  # fmt: skip
    return plan_run(resolve(raw, Path("trial"), []), check=False)


def test_the_guides_formula_and_the_steps_that_are(tmp_path: Path) -> None:
    make_images(tmp_path / "set", 15)  # five of each of three shapes
    planned = planned_of(tmp_path, {"path": str(tmp_path / "set"), "repeats": 2})
    numbers = arithmetic(planned)
    assert numbers["draws"] == 30 and numbers["formula"] == 7
    assert (numbers["full_batches"], numbers["smaller_batches"], numbers["steps"]) == (6, 3, 9)
    assert group_draws(planned).tolist() == [10, 10, 10]
    assert [(row["images"], row["draws"], row["left_over"]) for row in bucket_map(planned)] == [(5, 10, 2)] * 3


def test_folders_of_a_source_are_subjects(tmp_path: Path) -> None:
    make_images(tmp_path / "set" / "ann", 6, seed=1)
    make_images(tmp_path / "set" / "bob", 2, seed=2)
    (tmp_path / "set" / "bob" / "multiply.txt").write_text("1", encoding="utf-8")
    make_images(tmp_path / "truth", 3, seed=3)
    truth = {"path": str(tmp_path / "truth"), "role": "ground_truth"}
    planned = planned_of(tmp_path, {"path": str(tmp_path / "set")}, truth)
    facts = subjects(planned.index, planned.config.data.sources, planned.mix.counts(0), planned.held_out())
    assert [(fact["folder"], fact["images"], fact["draws"]) for fact in facts] == [("ann", 6, 6), ("bob", 2, 2)]
    assert [fact["multiply"] for fact in suggested(facts)] == [1.0, 3.0]


def test_saves_by_epochs_and_steps(tmp_path: Path) -> None:
    make_images(tmp_path / "set", 8, sizes=((64, 64),))
    source = {"path": str(tmp_path / "set")}
    every = {"every_epochs": 2, "every_steps": 3, "keep": 2, "every_minutes": None}
    planned = planned_of(tmp_path, source, train={"batch_size": 4, "epochs": 4}, checkpoints=every)
    assert planned.total_steps == 8
    found = saves(planned.config, planned.steps_per_epoch, planned.total_steps)  # after 3, 4, 6, 8
    assert found["saves"] == 4 and found["exports_kept"] == 2 and found["every_minutes"] is None
    best = planned.config.model_copy(
        update={"checkpoints": planned.config.checkpoints.model_copy(update={"keep_best": True})}
    )
    assert saves(best, planned.steps_per_epoch, planned.total_steps)["exports_kept"] == 3


def test_time_is_that_of_a_whole_run_or_none(tmp_path: Path) -> None:
    make_images(tmp_path / "set", 4)
    config = planned_of(tmp_path, {"path": str(tmp_path / "set")}).config
    assert last_run(config, 10) is None
    run = tmp_path / "runs" / "trial-20260101-000000"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"x" * 100)
    (run / "run.json").write_text('{"project": "trial"}', encoding="utf-8")
    of_another = tmp_path / "runs" / "trial-v2-20260102-000000"
    of_another.mkdir()
    (of_another / "run.json").write_text('{"project": "trial-v2"}', encoding="utf-8")
    rows = [{"time": "2026-01-01T00:00:00+0000", "event": "started", "step": 0},
            {"time": "2026-01-01T00:01:00+0000", "event": "saved", "step": 10},
            {"time": "2026-01-01T00:01:00+0000", "event": "finished", "step": 30}]  # fmt: skip
    events = run / "events.jsonl"
    events.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    shutil.copy(events, of_another)
    assert last_run(config, 10) == {
        "run": run.name, "seconds_per_step": 2.0, "seconds": 20.0, "last_ckpt_bytes": 100}  # fmt: skip
    rows[2]["event"] = "stopped"
    events.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert last_run(config, 10) is None
    events.write_text("no json", encoding="utf-8")
    assert last_run(config, 10) is None


def test_a_picture_that_is_trained_and_measured_is_a_problem(tmp_path: Path) -> None:
    make_images(tmp_path / "set", 4, seed=1)
    make_images(tmp_path / "apart", 3, seed=2)
    shutil.copy(tmp_path / "set" / "a picture of thing 1_(1).png", tmp_path / "apart" / "a copy.png")
    preservation = {"path": str(tmp_path / "apart"), "images": 4}
    planned = planned_of(tmp_path, {"path": str(tmp_path / "set")}, preservation=preservation)
    report = inspect_run(planned, tmp_path / "cache", tmp_path / "page.html")
    (leak,) = [finding for finding in report["findings"] if finding["kind"] == "leak"]
    assert leak["level"] == "problem" and leak["images"] == [
        "preservation.path/a copy.png",
        "set/a picture of thing 1_(1).png",
    ]
    assert report["duplicates"][0]["parts"] == ["measured", "training"] and report["duplicates"][0]["leak"]
    first = describe_findings(report)[0]
    assert first.startswith("problem: Pictures that are trained and also held out or measured: 1. What was trained")
    assert "trained and measured" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_second_time_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "set", 6)
    shutil.copy(tmp_path / "set" / "a picture of thing 1_(1).png", tmp_path / "set" / "copy.png")
    planned = planned_of(tmp_path, {"path": str(tmp_path / "set")})
    first = inspect_run(planned, tmp_path / "cache")
    monkeypatch.setattr("everydream.data.likeness.clusters", lambda _: pytest.fail("compared again"))
    assert inspect_run(planned, tmp_path / "cache") == first
    assert [item["kind"] for item in first["duplicates"]] == ["same"]
