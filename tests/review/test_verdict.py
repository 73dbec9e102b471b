"""A run's folder is read as it is, its verdict follows from its numbers, and its page stands alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_images
from PIL import Image

from everydream.errors import ConfigError
from everydream.review.charts import charts, drawn, smoothed, svg_of, write_charts
from everydream.review.history import read_history
from everydream.review.page import write_review
from everydream.review.verdict import Verdict, verdict

SOURCES = [
    {"name": "mine", "role": "training", "images": 3, "draws": 90, "root": "?"},
    {"name": "real", "role": "ground_truth", "images": 3, "draws": 10, "root": "?"},
]


def look(
    learned: float, kept: float = 0.0, bleed: float = 0.0, gap: float = 0.0, ssim: float = 0.5
) -> dict[str, float]:
    return {
        "validation/coarse_change": learned, "validation/coarse_margin": 0.02, "preservation/coarse_change": kept,
        "preservation/coarse_margin": 0.01, "control/bleed": bleed, "overfit/gap": gap, "overfit/margin": 0.05,
        "copying/ssim": ssim,
    }  # fmt: skip


def make_run(folder: Path, looks: dict[int, dict[str, float]], **more: Any) -> Path:
    """Write what a run of a hundred steps leaves."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text('{"project": "cat"}')
    (folder / "config.yaml").write_text(yaml.safe_dump({"project": "cat"}))
    lines = [{"step": step, **numbers} for step, numbers in looks.items()]
    for step in range(1, 101):
        lines.append(
            {"step": step, "epoch": 0, "loss": 1 / step, "loss/noise_0-25": 0.5, "clipped": 1.0, "lr/unet": 0.1}
        )
    lines += more.get("lines", [])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 101, "ep')
    events = [{"event": "started"}, *more.get("events", []), {"event": "finished"}]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    sources = more.get("sources", SOURCES)
    (folder / "plan.json").write_text(
        json.dumps({"sources": sources, "twins": more.get("twins", []), "total_steps": 100})
    )
    (folder / "ledger.json").write_text(json.dumps(more.get("ledger", {})))
    for step in more.get("exports", [50, 100]):
        (folder / "checkpoints" / f"cat-e0001-s{step:06d}.safetensors").write_bytes(b"")
    return folder


def judged(folder: Path, looks: dict[int, dict[str, float]], **more: Any) -> Verdict:
    return verdict(read_history(make_run(folder, looks, **more)))


def test_the_best_point_its_file_and_why(tmp_path: Path) -> None:
    found = judged(tmp_path / "run", {0: look(0.0), 25: look(-0.2), 50: look(-0.4, 0.1), 100: look(-0.35, 0.3)})
    assert found.step == 50 and [path.name for path in found.exports] == ["cat-e0001-s000050.safetensors"]
    assert found.headline == "take step 50: cat-e0001-s000050.safetensors."
    why = "\n".join(found.why)
    assert "of 3 measured steps it has the least cost, -0.300" in why
    assert "-33.0 % (between -34.3 % and -31.6 %)" in why
    assert "its loss +10.5 %" in why and "the last measured step, 100, costs -0.050" in why
    assert json.loads(json.dumps(found.plain()))["step"] == 50


def test_the_latest_within_a_twentieth_is_taken_and_not_told_to_train_longer(tmp_path: Path) -> None:
    found = judged(tmp_path / "run", {0: look(0.0), 25: look(-0.2), 50: look(-0.4), 100: look(-0.385)})
    assert found.step == 100
    assert "of 3 measured steps the latest within a twentieth of the most that was won" in found.why[0]
    assert "its cost is -0.385, the least -0.400 at step 50" in found.why[0]
    assert not any("train longer" in line for line in found.change)


@pytest.mark.parametrize(
    ("looks", "more", "headline"),
    [
        ({}, {}, "nothing was validated"),
        ({0: look(0.0), 50: look(0.1)}, {}, "no step is better than the base model; the least bad one is step 50"),
        ({0: look(0.0), 25: look(-0.1)}, {}, "step 25 was the best and its export is not there"),
    ],
)
def test_what_cannot_be_recommended_is_not(
    tmp_path: Path, looks: dict[int, dict[str, float]], more: dict[str, Any], headline: str
) -> None:
    assert headline in judged(tmp_path / "run", looks, **more).headline


GOOD = {0: look(0.0), 50: look(-0.4), 100: look(-0.3)}
TRUTH_ALONE = [{**SOURCES[0], "draws": 100}]


@pytest.mark.parametrize(
    ("looks", "more", "advice"),
    [
        (GOOD, {}, None),
        ({0: look(0.0), 50: look(-0.2), 75: look(-0.3), 100: look(-0.4)}, {}, "still getting better: train longer"),
        ({**GOOD, 100: look(-0.3, gap=0.2)}, {}, "18 % further down than on others: learned by heart. Stop near"),
        ({**GOOD, 100: look(-0.3, gap=0.04)}, {}, None),
        ({**GOOD, 100: look(-0.3, kept=0.1)}, {}, "suffered beyond doubt: more ground truth (it is 10 % of the draws)"),
        ({**GOOD, 100: look(-0.3, kept=0.1)}, {"sources": TRUTH_ALONE}, "beyond doubt: ground truth, a quarter of the"),
        ({**GOOD, 100: look(-0.3, kept=0.005)}, {}, None),
        ({0: look(0.0), 50: look(-0.4, bleed=0.4), 100: look(-0.2)}, {}, "take on the look of the subject: name it by"),
        ({**GOOD, 100: look(-0.3, ssim=0.9)}, {}, "samples look like training images (SSIM 0.90 with the nearest"),
        (GOOD, {"twins": [["mine/a.png", "mine/b.png"]]}, "near duplicates: 1; remove the copies: mine/a.png"),
        (
            GOOD, {"ledger": {"high": [{"key": "mine/odd.png", "visits": 9, "excess": 0.4, "fallen": 0.0}]}},
            "loss is far above the others' of their source: 1; look at them: mine/odd.png (+40 %)",
        ),
        (
            GOOD, {"ledger": {"fallen": [{"key": "mine/known.png", "visits": 9, "excess": 0.0, "fallen": 0.6}]}},
            "learned by heart, 1 in all; lower their repeats or look for copies: mine/known.png",
        ),
    ],
)  # fmt: skip
def test_advice_follows_from_numbers(
    tmp_path: Path, looks: dict[int, dict[str, float]], more: dict[str, Any], advice: str | None
) -> None:
    found = judged(tmp_path / "run", looks, **more)
    if advice is None:
        assert found.change == []
    else:
        assert len(found.change) == 1 and advice in found.change[0]


def test_what_went_wrong_is_listed(tmp_path: Path) -> None:
    events = [
        {"event": "alarm", "step": 7, "alarm": "diverging", "advice": "Lower the rate."},
        {"event": "image rejected", "path": "a.png", "reason": "broken"},
        {"event": "sampling failed", "step": 50, "error": "MemoryError"},
    ]
    lines = [{"step": 101, "epoch": 1, "skipped": "loss or gradients are not finite", "images": []}]
    found = judged(tmp_path / "run", GOOD, events=events, lines=lines)
    assert found.wrong == [
        "step 7, diverging: Lower the rate.", "rejected images: 1; events.jsonl has the reasons",
        "1 of 101 steps were skipped", "sampling failed; events.jsonl says when and why",
    ]  # fmt: skip
    assert read_history(tmp_path / "run").last_step == 101, "the line that is cut short is not one yet"


def test_how_a_run_ended_is_told_by_its_last_start(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", GOOD, events=[{"event": "stopping"}])
    assert read_history(run).ended == "overfit"
    with (run / "events.jsonl").open("a") as file:
        file.write('{"event": "resumed"}\n')
    assert read_history(run).ended is None
    with pytest.raises(ConfigError, match="is not a run folder of EveryDream"):
        read_history(tmp_path)


def test_charts_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    history = read_history(make_run(tmp_path / "run", GOOD))
    names = [chart.name for chart in charts(history)]
    assert names == ["cost", "changes", "loss", "bands", "bleed", "lr", "clipped"]
    assert "chosen: step 50" in svg_of(charts(history)[0])
    assert svg_of(charts(history)[1]) == svg_of(charts(history)[1]), "nothing in it depends on the day"
    written = write_charts(history.run, drawn(history))
    with Image.open(tmp_path / "run" / "charts.png") as image:
        assert image.width > 1000 and len(image.convert("L").getcolors() or ()) > 10
    assert [path.name for path in written] == ["charts.svg", "charts.png"]
    bare = make_run(tmp_path / "bare", {})
    (bare / "metrics.jsonl").write_text("")
    assert charts(read_history(bare)) == [] == write_charts(bare, [])
    assert smoothed([float(n) for n in range(40)])[-3:] == [36.5, 37.5, 38.5] and smoothed([1.0, 3.0]) == [1.0, 3.0]


def test_the_page_stands_alone_and_shows_names_as_text(tmp_path: Path) -> None:
    make_images(tmp_path / "mine", 2)
    name, _ = sorted(path.name for path in (tmp_path / "mine").iterdir())
    entries = [
        {"key": f"mine/{name}", "visits": 9, "excess": 0.4, "fallen": 0.0},
        {"key": "mine/<script>alert(1)</script>.png", "visits": 9, "excess": 0.3, "fallen": 0.0},
    ]
    sources = [{**SOURCES[0], "root": str(tmp_path / "mine")}]
    run = make_run(tmp_path / "run", GOOD, ledger={"high": entries}, sources=sources)
    write_review(run)
    page = (run / "verdict.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    loads = re.findall(r"(?:src|href|url\()=?[\"']?(https?:|//)", page)
    assert not loads and page.count('src="data:image/jpeg;base64,') == 1
    assert "Take step 50" in page and "+40 %" in page and json.loads((run / "verdict.json").read_text())["step"] == 50
