"""The picture in docs/benchmarks.md, of what the other scripts wrote with --json.

python benchmarks/plot.py --loading FILE --step FILE --start FILE --processes FILE --out docs/benchmarks.png
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

_OURS, _OTHERS, _GOAL = "#2a6f97", "#c9c9c9", "#d1495b"
_NOT_OURS = ("bare", "diffusers", "EveryDream2", "kohya", "by hand", "least", "first", "two plain loops")
Bars = dict[str, float]


def loading(facts: Any, kind: str) -> Bars:
    """Return CPU time per image, ours = 1."""
    found = facts["results"][kind]
    shown = {name: row["cpu_ms_per_image"] for name, row in found.items() if "workers" not in name}
    return {name: value / shown["ours"] for name, value in shown.items()}


def ratios(seconds: dict[str, list[list[float]]], base: str) -> Bars:
    """Return each side's CPU time beside that of `base`, the median of the rounds."""
    return {
        name: statistics.median(mine[1] / theirs[1] for mine, theirs in zip(rounds, seconds[base], strict=True))
        for name, rounds in seconds.items()
    }


def step(facts: Any, how: str) -> Bars:
    """Return CPU time per step, the loop by hand = 1."""
    found = {name: rounds for name, rounds in facts["seconds"].items() if name.endswith(f", {how}")}
    return {name.partition(",")[0]: value for name, value in ratios(found, f"by hand, {how}").items()}


def draw(axis: Any, bars: Bars, title: str, goal: float | None) -> None:
    """Draw horizontal bars, ours in colour, and where the goal is."""
    names = list(bars)
    colours = [_OTHERS if name.startswith(_NOT_OURS) else _OURS for name in names]
    axis.barh(names, list(bars.values()), color=colours)
    for place, value in enumerate(bars.values()):
        axis.text(value, place, f" {value:.2f}", va="center", fontsize=8)
    if goal is not None:
        axis.axvline(goal, color=_GOAL, linewidth=1, linestyle="--")
    axis.set_title(title, fontsize=9, loc="left")
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(labelsize=8, bottom=False, labelbottom=False, left=False)


def main() -> None:
    """Draw."""
    import matplotlib as mpl  # noqa: PLC0415 - a second to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("loading", "step", "start", "processes", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    read = {name: json.loads(getattr(options, name).read_text()) for name in ("loading", "step", "start", "processes")}
    speeds = read["processes"]["images_per_s"]
    faster = {
        name: statistics.median(mine / one for mine, one in zip(rounds, speeds["one"], strict=True))
        for name, rounds in speeds.items()
        if name != "cores"
    } | {"two plain loops, the ceiling": statistics.median(speeds["cores"])}
    panels = (
        (loading(read["loading"], "square"), "loading 1024 px squares, CPU time, ours = 1", None),
        (loading(read["loading"], "mix"), "loading photos up to 12 megapixels, CPU time, ours = 1", None),
        (step(read["step"], "cached"), "a step on cached latents, CPU time, by hand = 1", 1.03),
        (step(read["step"], "not cached"), "a step that encodes its images, CPU time, by hand = 1", 1.03),
        (ratios(read["start"]["seconds"], "least"), "start to first step, CPU time, imports and loading = 1", 1.2),
        (faster, "two processes, images/s, one = 1", 1.7),
    )
    figure, axes = plt.subplots(3, 2, figsize=(10, 7.5), layout="constrained", facecolor="white")
    for axis, (bars, title, goal) in zip(axes.flat, panels, strict=True):
        draw(axis, bars, title, goal)
    figure.savefig(options.out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
