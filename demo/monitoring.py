"""`python -m demo.monitoring`: what the monitors are worth, measured on the demo and written into docs/monitoring.md.

    over-trained   far longer than it takes, at a constant rate: does the choice find what the judge finds best?
    bleeding       with and without ground truth
    ledger         a picture with another's caption among 60
    validation     its interval where something was learned, and at a rate of 0
    cost           the time that measuring takes at the default cadence

The judge is the demo's own (`demo.score`): the mean of rings and of known shapes that are drawn right.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from demo import board
from demo.run import ROOT
from demo.score import exam, sample, score
from everydream.config import load_config
from everydream.evaluation.judging import Judge, best_of, points_of
from everydream.monitors import Monitor
from everydream.train import train

PAGE = Path("docs/monitoring.md")
START, END = "<!-- monitoring: written by `make monitoring` -->", "<!-- end of monitoring -->"
WORK = Path("runs") / "monitoring"
SEEDS = range(1, 6)
CONCEPT, TRUTH = Path("datasets/demo/concept"), Path("datasets/demo/ground_truth")
EVERY, STEPS, PATIENCE = 75, 900, 3
HELD_OUT, PICTURES = 18, 24
"""Rings to measure by, of 36; pictures of each ring that is asked for, so that chance moves a score by about 1 %."""
CONTROL = [
    "a red circle on a white background", "a blue square on a black background",
    "a green triangle on a yellow background", "a white circle on a green background",
]  # fmt: skip
TRUTH_AT_HALF = {"path": str(TRUTH), "share": 0.5, "role": "ground_truth"}
BASE: dict[str, Any] = {
    "model": {"path": "demo/model"},
    "train": {"epochs": 99, "batch_size": 16, "precision": "fp32", "gradient_checkpointing": False},
    "unet": {"lr": 1e-3},
    "text_encoder": {"lr": 1e-3},
    "lr_schedule": {"name": "constant", "warmup_steps": 10},
    "captions": {"dropout": 0.05},
    "checkpoints": {"every_epochs": None, "every_minutes": None, "keep": None, "formats": []},
    "samples": {"every_steps": None, "steps": 20, "guidance": [3.0]},
    "trackers": [],
}


def write(name: str, sources: Sequence[dict[str, Any]], max_steps: int, **sections: Any) -> Path:
    """Write a config whose run goes to a new folder; return its path."""
    config = {**BASE, **sections, "project": name, "runs_dir": str(WORK / name)}
    config["data"] = {"resolution": 64, "sources": list(sources)}
    config["train"] = {**BASE["train"], "max_steps": max_steps}
    config["checkpoints"] = {**BASE["checkpoints"], **sections.get("checkpoints", {})}
    shutil.rmtree(WORK / name, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def run(name: str, sources: Sequence[dict[str, Any]], max_steps: int, **sections: Any) -> Path:
    """Train in a process of its own; return the run folder."""
    return board.train(str(write(name, sources, max_steps, **sections)), (), WORK / name)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def looks(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what the monitors wrote, by step."""
    found: dict[int, dict[str, Any]] = {}
    for line in lines(folder):
        if "epoch" not in line:
            found.setdefault(line["step"], {}).update(line)
    return found


def right(model: Path) -> float:
    """Return the mean share of rings and of known shapes that a model draws right, in per cent."""
    expected, seeds = exam(num_new_each=PICTURES)
    found = score(sample(model, [subject.caption for subject in expected], seeds), expected)
    return 50 * (found.new.all_three + found.old.all_three)


def some(folder: Path, num: int, seed: int, to: Path) -> list[Path]:
    """Copy some pictures into a new folder; return the others."""
    every = sorted(folder.rglob("*.png"))
    chosen = set(random.Random(seed).sample(every, num))
    to.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        shutil.copy(path, to / path.name)
    return [path for path in every if path not in chosen]


def over_trained(seed: int) -> tuple[int, int, float, float, float]:
    """Return the steps at which a run stopped and which it kept; what the kept, the best and the last one draw right.

    The run goes to its end, so that the best of all is known; the choice is made from what had been measured by then.
    """
    folder = run(
        f"over-{seed}", [{"path": str(CONCEPT), "repeats": 12}, TRUTH_AT_HALF], STEPS, seed=seed, ema={"decay": 0.99},
        validation={"images": HELD_OUT, "every_steps": EVERY}, preservation={"images": 32, "every_steps": EVERY},
        checkpoints={"every_steps": EVERY, "formats": ["diffusers"], "dtype": "fp32"},
    )  # fmt: skip
    stopped = replayed(looks(folder))
    best = best_of([point for point in points_of(looks(folder)) if point.step <= stopped])
    assert best is not None
    found = {int(path.name[-6:]): right(path) for path in sorted((folder / "checkpoints").glob("over-*-s??????"))}
    return stopped, best.step, found[best.step], max(found.values()), found[max(found)]


def replayed(history: dict[int, dict[str, Any]]) -> int:
    """Return the step at which `stop: {when: overfit}` ends a run of this history."""
    judge = Judge(PATIENCE)
    for step in sorted(history):
        judge.note(step, history[step])
        if judge.decide(step).stop:
            return step
    return max(history)


def really_stopped() -> tuple[int, str]:
    """Train the first seed's run with the stop on; return where it ended and what its verdict says."""
    sources = yaml.safe_load((WORK / f"over-{SEEDS[0]}.yaml").read_text(encoding="utf-8"))
    folder = run(
        "stopped", sources["data"]["sources"], STEPS, seed=SEEDS[0], validation=sources["validation"],
        preservation=sources["preservation"], ema=sources["ema"], stop={"when": "overfit", "patience": PATIENCE},
        checkpoints={"keep_best": True, "keep": 1, "formats": ["diffusers"], "dtype": "fp32"},
    )  # fmt: skip
    verdict = json.loads((folder / "verdict.json").read_text(encoding="utf-8"))
    return max(line["step"] for line in lines(folder)), verdict["headline"]


def bleeding(share: float) -> list[tuple[int, float]]:
    """Return (step, bleed) of a run with this share of ground truth."""
    sources = [{"path": str(CONCEPT), "repeats": 8}]
    if share:
        sources.append({"path": str(TRUTH), "share": share, "role": "ground_truth"})
    name = f"bleeding-{100 * share:.0f}"
    folder = run(
        name, sources, 240, control={"every_steps": 60, "control": CONTROL, "captions": 0, "concept": ["a ring"]}
    )
    return [(step, look["control/bleed"]) for step, look in looks(folder).items() if "control/bleed" in look]


def planted(seed: int) -> tuple[str, str, int, float]:
    """Return a picture's name, the caption it was given, its rank in the ledger and its excess, among 60 pictures."""
    work = WORK / f"planted-{seed}-images"
    shutil.rmtree(work, ignore_errors=True)
    some(CONCEPT, 45, seed, work)
    some(TRUTH, 15, seed, work)
    draw = random.Random(seed)
    odd = draw.choice(sorted(work.glob("*.png")))
    words = _words(odd)
    wrong = draw.choice([path for path in sorted(work.glob("*.png")) if not words & _words(path)])
    caption = wrong.name.split("_")[0]
    odd.with_suffix(".txt").write_text(caption, encoding="utf-8")
    folder = run(f"planted-{seed}", [{"path": str(work), "repeats": 4}], 120, seed=seed)
    high = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))["high"]
    (rank,) = [number for number, entry in enumerate(high, 1) if entry["key"].endswith(f"/{odd.name}")]
    return odd.name, caption, rank, high[rank - 1]["excess"]


def _words(path: Path) -> set[str]:
    return set(path.name.split("_")[0].split()) - {"a", "on", "background"}


def validated(rate: float) -> dict[str, Any]:
    """Return what validation found after 120 steps at this rate."""
    sources = [{"path": str(CONCEPT), "repeats": 8}, TRUTH_AT_HALF]
    rates = {"unet": {"lr": rate}, "text_encoder": {"lr": rate}}
    folder = run(f"validated-{rate:g}", sources, 120, validation={"images": 12, "every_steps": 120}, **rates)
    return looks(folder)[120]


def time_share() -> tuple[float, float]:
    """Return the share of CPU time that validation and preservation took between the ends of a run, and in all of it.

    16 images each at their default cadence, 768 draws an epoch, 12 epochs.
    """
    taken: dict[int, float] = {}
    measure = Monitor.__call__

    def timed(monitor: Monitor, step: int) -> None:
        before = time.process_time()
        measure(monitor, step)
        taken[step] = taken.get(step, 0.0) + time.process_time() - before

    path = write("timed", [{"path": str(CONCEPT), "repeats": 12}, TRUTH_AT_HALF], 12 * 48, **{
        "validation": {"images": 16}, "preservation": {"images": 16},
    })  # fmt: skip
    with patch.object(Monitor, "__call__", timed):
        before = time.process_time()
        train(load_config(path, ["data.workers=0"], to_train=True))
        total = time.process_time() - before
    between = sum(seconds for step, seconds in taken.items() if 0 < step < max(taken))
    return between / total, sum(taken.values()) / total


def report() -> Iterator[str]:
    """Yield the lines of the page."""
    yield f"**An over-trained run.** {36 - HELD_OUT} rings and half ground truth, a constant rate of 1e-3, weights"
    yield f"averaged (decay 0.99), {STEPS} steps, measured every {EVERY} on {HELD_OUT} others, patience {PATIENCE}."
    yield "Score: mean of the rings and of the known shapes that are drawn right, of 144 and 90 pictures."
    yield ""
    yield "| seed | stopped at | kept | its score | best of all checkpoints | last |"
    yield "|---:|---:|---:|---:|---:|---:|"
    for seed in SEEDS:
        stopped, kept, its, best, last = over_trained(seed)
        yield f"| {seed} | {stopped} | {kept} | {its:.1f} % | {best:.1f} % | {last:.1f} % |"
    ended, headline = really_stopped()
    yield ""
    yield f"Trained again with `stop.when: overfit` and `keep_best`, the first run ended at step {ended}: {headline}"
    yield ""
    yield "**Bleeding** into four prompts of known shapes, by step:"
    yield ""
    for share in (0.0, 0.5):
        told = ", ".join(f"{step}: {bleed:.2f}" for step, bleed in bleeding(share))
        yield f"- {100 * share:.0f} % ground truth: {told}"
    yield ""
    yield "**A picture with another's caption** among 60, 120 steps:"
    yield ""
    for seed in SEEDS:
        name, caption, rank, excess = planted(seed)
        yield f'- {name} as "{caption}": rank {rank}, {excess:+.0%}'
    yield ""
    yield "**Validation** after 120 steps on 12 held-out rings:"
    yield ""
    for rate in (1e-3, 0.0):
        look = validated(rate)
        change, margin = look["validation/change"], look["validation/margin"]
        yield f"- rate {rate:g}: {change:+.4f} ± {margin:.4f}"
    between, whole = time_share()
    yield ""
    yield "**Time.** 16 images of each kind, cadence by default: of the CPU time of a run of 12 epochs, measuring took"
    yield f"{between:.1%} between its first and last step, {whole:.1%} with these."


def main() -> None:
    """Measure, and write the page."""
    os.chdir(ROOT)
    lines_of_page = []
    for line in report():
        print(line, flush=True)
        lines_of_page.append(line)
    text = "\n".join(lines_of_page)
    PAGE.write_text(board.with_table(PAGE.read_text(encoding="utf-8"), text, START, END), encoding="utf-8")


if __name__ == "__main__":
    main()
