"""`python -m demo.memory`: the demo at every memory level, and in bf16 with both roundings; scored, into the docs.

configs/demo.yaml + overrides -> training -> the export -> the exam
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.board import QUIET, train, with_table
from demo.methods import export_of
from demo.run import ROOT, pictures
from demo.score import Scoreboard, exam, score
from everydream.config import load_config
from everydream.training.memory import resolved, static_bytes

CONFIG, PAGE = "configs/demo.yaml", Path("docs/memory.md")
START, END = "<!-- scores: written by `make memory` -->", "<!-- end of scores -->"
_BF16 = "train.precision=bf16"
_BY_LEVEL = ("train.gradient_checkpointing=null", "checkpoints.every_steps=null")
_SLOWLY = ("unet.lr=2e-4", "text_encoder.lr=2e-4", "train.epochs=14")
"""A fifth of the demo's rates, twice its steps: nearer to full size, where updates are far smaller parts of weights."""
WAYS: dict[str, tuple[str, ...]] = {
    "max_speed": ("memory.level=max_speed",),
    "balanced": (),
    "balanced, computed in bf16": (_BF16,),
    "low": (_BF16, "memory.level=low"),
    "minimal": (_BF16, "memory.level=minimal"),
    "bf16 weights, rounded by chance": (_BF16, "memory.weights=bf16"),
    "bf16 weights, rounded to the nearest": (_BF16, "memory.weights=bf16", "memory.rounding=nearest"),
    "slowly: balanced": _SLOWLY,
    "slowly: bf16 weights, rounded by chance": (*_SLOWLY, _BF16, "memory.weights=bf16"),
    "slowly: bf16 weights, rounded to the nearest": (*_SLOWLY, _BF16, "memory.weights=bf16", "memory.rounding=nearest"),
}
_SD15 = {"trained": 982_581_444, "frozen": 83_653_863, "largest": 49408 * 768}
"""Stable Diffusion 1.5 with UNet and text encoder trained."""


@dataclass(frozen=True)
class Result:
    """What one way gave."""

    board: Scoreboard
    seconds: float
    """Of the whole process that trained."""
    static_gb: float
    """What it would hold on the device between steps for Stable Diffusion 1.5, in 10^9 bytes."""


def measure(overrides: tuple[str, ...], runs_dir: Path) -> Result:
    """Train and let the export draw the exam."""
    overrides = (*_BY_LEVEL, *overrides)
    started = time.monotonic()
    run = train(CONFIG, [f"runs_dir={runs_dir}", *overrides, *QUIET], runs_dir)
    seconds = time.monotonic() - started
    config = load_config(ROOT / CONFIG, list(overrides))
    held = static_bytes(_SD15, resolved(config.memory, config.train, config.optimizer))
    static = sum(size for what, size in held.items() if what != "update")
    return Result(score(pictures(export_of(run)), exam()[0]), seconds, static / 1e9)


def table(results: Mapping[str, Result]) -> str:
    """Return the table of the page."""
    head = ["| memory | rings learned | known shapes kept | seconds | SD 1.5: GB held |", "|---|---:|---:|---:|---:|"]
    rows = [
        f"| {name} | {100 * r.board.new.all_three:.0f} % | {100 * r.board.old.all_three:.0f} % | {r.seconds:.0f} | "
        f"{r.static_gb:.1f} |"
        for name, r in results.items()
    ]
    return "\n".join([*head, *rows])


def main() -> None:
    """Measure every way from the repository's root and write the page's table."""
    os.chdir(ROOT)
    folder = Path("runs") / f"memory-{time.strftime('%Y%m%d-%H%M%S')}"
    results: dict[str, Result] = {}
    for number, (name, overrides) in enumerate(WAYS.items()):
        results[name] = measure(overrides, folder / str(number))
        print(f"\n{table(results)}\n", flush=True)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(results), START, END), encoding="utf-8")
    print(f"Written to {PAGE}")


if __name__ == "__main__":
    main()
