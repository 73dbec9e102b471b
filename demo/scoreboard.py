"""`python -m demo.scoreboard`: how much ground truth it takes, measured on the demo and written into the docs.

    configs/demo.yaml + overrides -> runs with 0, 10, 25 and 50 % -> pictures scored, losses read -> table and plot

What is compared is a fixed budget: every run makes the same number of steps of the same size at the same rates, and
the share of ground truth is taken from the new concept's draws. The control run has no ground truth and half the
steps, so that it sees the rings as often as the run with 50 % does: it tells keeping from merely training less.
"""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from demo import board
from demo.run import ROOT, export_of, pictures
from demo.score import exam, score

PAGE, PLOT = Path("docs/ground_truth.md"), Path("docs/ground_truth.png")
START, END = "<!-- scoreboard: written by `make scoreboard` -->", "<!-- end of scoreboard -->"
SHARES = (0.0, 0.1, 0.25, 0.5)
STEPS = 336
HELD_OUT = 32
_REPEATS = 16
"""Of the rings without ground truth: 768 draws an epoch, 48 steps, seven epochs."""
_BESIDE = -2.5
_KEPT, _LEARNED, _GRID = "#0072B2", "#D55E00", "#d8d8d8"  # told apart by colour-blind readers too


@dataclass(frozen=True)
class Result:
    """What one run gave; shares of pictures are in [0, 1]."""

    share: float
    steps: int
    ring_draws: int
    rings: float
    known: float
    base: float
    change: float
    """Of the preservation loss, against the base's."""
    margin: float
    """Half its 95 % confidence interval."""


def overrides(share: float, steps: int, runs_dir: Path) -> list[str]:
    """Return what makes the demo's config a run with this share of ground truth."""
    return [
        f"runs_dir={runs_dir}", f"data.sources.0.repeats={_REPEATS * (1 - share):g}", f"data.sources.1.share={share:g}",
        f"train.max_steps={steps}", f"preservation.images={HELD_OUT}", "checkpoints.every_steps=null", *board.QUIET,
    ]  # fmt: skip


def drawn_right(model: Path) -> tuple[float, float]:
    """Return the shares of rings and of known shapes that a model draws right."""
    right = score(pictures(model), exam()[0])
    return right.new.all_three, right.old.all_three


def run(share: float, steps: int, runs_dir: Path) -> Result:
    """Train, let the model draw the exam, and read what the monitor said last."""
    folder = board.train("configs/demo.yaml", overrides(share, steps, runs_dir), runs_dir)
    rings, known = drawn_right(export_of(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if "preservation/change" in line][-1]
    return Result(
        share=share,
        steps=steps,
        ring_draws=round(steps * 16 * (1 - share)),
        rings=rings,
        known=known,
        base=last["preservation/base"],
        change=last["preservation/change"],
        margin=last["preservation/margin"],
    )


def table(before: tuple[float, float], results: Sequence[Result], control: Result) -> str:
    """Return the table of the page; `before` is what the untrained model draws right."""
    head = [
        "| ground truth | steps | ring draws | rings learned | known shapes kept | preservation loss |",
        "|---|---:|---:|---:|---:|---:|",
        _row("before training", 0, 0, before, f"{results[0].base:.4f}"),
    ]
    rows = [
        _row(
            f"{100 * r.share:.0f} %" + (", control" if r is control else ""), r.steps, r.ring_draws, (r.rings, r.known),
            f"{r.change:+.4f} ± {r.margin:.4f} ({100 * r.change / r.base:+.0f} %)",
        )
        for r in (*results, control)
    ]  # fmt: skip
    return "\n".join([*head, *rows])


def _row(what: str, steps: int, draws: int, right: tuple[float, float], loss: str) -> str:
    return f"| {what} | {steps} | {draws:,} | {100 * right[0]:.0f} % | {100 * right[1]:.0f} % | {loss} |"


with_table = partial(board.with_table, start=START, end=END)


def plot(results: Sequence[Result], control: Result, path: Path) -> None:
    """Draw the two sides of the bargain over the share: what is drawn right, and what the monitor says."""
    import matplotlib as mpl  # noqa: PLC0415 - a second to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    # A white card: on a dark page, too, black on white can be read.
    figure, (drawn, lost) = plt.subplots(1, 2, figsize=(9, 3.9), layout="constrained", facecolor="white")
    x = [100 * result.share for result in results]
    for name, colour in (("known", _KEPT), ("rings", _LEARNED)):
        drawn.plot(x, [100 * getattr(result, name) for result in results], "o-", color=colour, clip_on=False, zorder=3)
        # Beside its place, or it would hide what it is compared with.
        drawn.plot([_BESIDE], [100 * getattr(control, name)], "o", mfc="white", color=colour, clip_on=False, zorder=4)
    drawn.text(12, 103, "rings learned", color=_LEARNED, va="bottom")
    drawn.text(13, 100 * results[1].known - 3, "known shapes kept", color=_KEPT, va="top")
    drawn.set(ylabel="pictures that are right, %", ylim=(-4, 115), yticks=range(0, 101, 20))
    drawn.set_title("What the model draws", loc="left")
    for place, result, face in [*((at, result, _KEPT) for at, result in zip(x, results, strict=True)),
                                (_BESIDE, control, "white")]:  # fmt: skip
        factor, margin = 1 + result.change / result.base, result.margin / result.base
        lost.errorbar([place], [factor], [margin], fmt="o", mfc=face, color=_KEPT, capsize=3, zorder=4)
        offset = (9, 2) if place >= 0 else (-9, -24)
        lost.annotate(f"{factor:.1f}", (place, factor), offset, textcoords="offset points", color=_KEPT)
    lost.plot(x, [1 + result.change / result.base for result in results], color=_KEPT, zorder=3)
    lost.axhline(1, color="black", linewidth=1)
    lost.text(50, 0.97, "the base model", va="top", ha="right")
    lost.set(yscale="log", ylim=(0.8, 10), ylabel="loss, times the base model's")
    lost.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    lost.minorticks_off()
    lost.set_title("Preservation loss on held-out images", loc="left")
    lost.plot([], [], "o", color="black", label=f"{results[0].steps} steps")
    lost.plot([], [], "o", mfc="white", color="black", label=f"{control.steps} steps, without ground truth")
    lost.legend(frameon=False, loc="upper right")
    for axes in (drawn, lost):
        axes.set(xlabel="share of ground truth, %", xticks=x, xlim=(-7, 56))
        axes.grid(axis="y", color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run the comparison from the repository's root and write it into the docs."""
    os.chdir(ROOT)
    started = time.monotonic()
    folder = Path("runs") / f"scoreboard-{time.strftime('%Y%m%d-%H%M%S')}"
    before = drawn_right(Path("demo/model"))
    results = [run(share, STEPS, folder / f"{share:.0%}") for share in SHARES]
    control = run(0.0, STEPS // 2, folder / "control")
    text = table(before, results, control)
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")
    plot(results, control, PLOT)
    print(f"\n{text}\n\nWritten to {PAGE} and {PLOT} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
