"""A run's curves: one picture for people (PNG, SVG), or one SVG a chart for pages. Drawn by matplotlib."""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everydream.evaluation.judging import best_of, points_of
from everydream.formats.atomic import atomic_file
from everydream.review.history import History

_GREY = "#808080"
"""Text and axes: it can be read on white and on black, so that one picture serves both."""
_COLOURS = ("#1f77b4", "#e8710a", "#2ca02c", "#b65fcf", "#d62728", "#8c7b5a")
_WIDTH, _HEIGHT, _COLUMNS, _POINTS = 6.4, 3.0, 2, 72
"""Of a chart, in inches; how many stand beside each other; points of an inch."""
_LEFT, _RIGHT, _ABOVE, _BELOW = 0.75, 0.15, 0.35, 0.35
"""Room around the axes, in inches."""


@dataclass(frozen=True)
class Chart:
    """One chart."""

    name: str
    title: str
    about: str
    """What it shows and how to read it, in a sentence."""
    draw: Callable[[Any], None]
    """Draws on a matplotlib axes."""


Drawn = tuple[Chart, str]
"""A chart, and its <svg> element."""


def charts(history: History) -> list[Chart]:
    """Return the charts for which the run has numbers."""
    found = [
        _cost(history),
        _changes(history),
        _series(history, "loss", "Loss", "Each step's loss: what it is depends on the noise drawn, so it scatters.",
                ["loss"], smooth=True, raw=True),
        _series(history, "since_start", "Loss since the start",
                "The loss as a part of what it was at the start at the same noise levels: the curve without the noise.",
                ["loss_since_start"], smooth=True),
        _series(history, "bands", "Loss by noise level", "The loss by quarters of the noise, 0 clean and 100 noise.",
                _names(history.steps, "loss/noise_"), smooth=True, log=True),
        _looks(history, "bleed", "Bleeding and copying",
               "Bleed: how far control pictures moved towards the training images. SSIM: how alike samples and their "
               "nearest training images are.", ["control/bleed", "control/moved", "copying/ssim"]),
        _looks(history, "moved", "Movement", "How far each part's weights are from the base, relative to their size.",
               _names(history.looks.values(), "moved/")),
        _series(history, "lr", "Learning rate", "Of each part, as it was used.", _names(history.steps, "lr/")),
        _series(history, "grad_norm", "Gradient norm", "Before clipping.", ["grad_norm"], smooth=True, raw=True,
                log=True),
        _series(history, "clipped", "Clipped steps", "Share of steps whose gradients were clipped.", ["clipped"],
                smooth=True),
        _series(history, "weight", "Loss weight", "Mean weight of the images in the loss.", ["loss_weight"],
                smooth=True),
        _series(history, "seen", "Images seen", "By source, visit by visit.", _names(history.steps, "seen/")),
    ]  # fmt: skip
    return [chart for chart in found if chart is not None]


def drawn(history: History) -> list[Drawn]:
    """Return the charts of a run, each with its <svg> element."""
    return [(chart, svg_of(chart)) for chart in charts(history)]


def svg_of(chart: Chart) -> str:
    """Return a chart as an <svg> element."""
    text = _rendered(_figure([chart]), "svg").decode()
    return text[text.index("<svg") :].rstrip()


def write_charts(run: Path, charts_drawn: Sequence[Drawn]) -> list[Path]:
    """Write charts.png and charts.svg into a run folder; return what was written."""
    if not charts_drawn:
        return []
    figure = _figure([chart for chart, _ in charts_drawn])
    figure.set_facecolor("white")
    contents = {"charts.svg": _side_by_side([svg for _, svg in charts_drawn]), "charts.png": _rendered(figure, "png")}
    for name, content in contents.items():
        with atomic_file(run / name) as partial:
            partial.write_bytes(content)
    return [run / name for name in contents]


def _figure(every: Sequence[Chart]) -> Any:
    """Return a figure of charts, two in a row, on no background."""
    # Not pyplot: it keeps state for the whole process, and looks for a screen.
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second to import

    rows = -(-len(every) // _COLUMNS)
    width, height = _WIDTH * min(len(every), _COLUMNS), _HEIGHT * rows
    figure = Figure(figsize=(width, height))
    figure.set_facecolor("none")
    for number, chart in enumerate(every):
        # Places are reckoned here: a layout that looks at every label draws all twice, and takes as long again.
        left, bottom = _WIDTH * (number % _COLUMNS) + _LEFT, height - _HEIGHT * (number // _COLUMNS + 1) + _BELOW
        size = (_WIDTH - _LEFT - _RIGHT, _HEIGHT - _ABOVE - _BELOW)
        _draw(chart, figure.add_axes((left / width, bottom / height, size[0] / width, size[1] / height)))
    return figure


def _side_by_side(svgs: Sequence[str]) -> bytes:
    """Return one SVG of several, two in a row, as they are."""
    width, height = _WIDTH * _POINTS, _HEIGHT * _POINTS
    whole = f"{_COLUMNS * width:g}pt", f"{-(-len(svgs) // _COLUMNS) * height:g}pt"
    places = ((number % _COLUMNS * width, number // _COLUMNS * height) for number in range(len(svgs)))
    parts = [
        svg.replace("<svg ", f'<svg x="{x:g}pt" y="{y:g}pt" ', 1) for svg, (x, y) in zip(svgs, places, strict=True)
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole[0]}" height="{whole[1]}">'
    return "\n".join([head, *parts, "</svg>\n"]).encode()


def _rendered(figure: Any, kind: str) -> bytes:
    from matplotlib import rc_context  # noqa: PLC0415

    buffer = io.BytesIO()
    # Text as text, and nothing in the file that depends on the day.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "everydream"}):
        figure.savefig(buffer, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _draw(chart: Chart, axes: Any) -> None:
    axes.set_facecolor("none")
    axes.set_title(chart.title, loc="left", fontsize=10, color=_GREY)
    axes.tick_params(which="both", colors=_GREY, labelsize=8)
    axes.grid(True, color=_GREY, alpha=0.2)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GREY)
    chart.draw(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, labelcolor=_GREY)


def _names(lines: Iterable[dict[str, Any]], prefix: str) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line if name.startswith(prefix)))


def _series(
    history: History, name: str, title: str, about: str, keys: Sequence[str], *, smooth: bool = False,
    raw: bool = False, log: bool = False,
) -> Chart | None:  # fmt: skip
    """Return a chart of numbers of the steps."""
    found = {key: [(line["step"], line[key]) for line in history.steps if line.get(key) is not None] for key in keys}
    return _lines_chart(name, title, about, found, smooth, raw, log)


def _looks(history: History, name: str, title: str, about: str, keys: Sequence[str]) -> Chart | None:
    """Return a chart of numbers of the monitors."""
    steps = sorted(history.looks)
    found = {key: [(step, history.looks[step][key]) for step in steps if key in history.looks[step]] for key in keys}
    return _lines_chart(name, title, about, found, False, False, False)


def _lines_chart(
    name: str, title: str, about: str, found: dict[str, list[tuple[int, float]]], smooth: bool, raw: bool, log: bool
) -> Chart | None:
    found = {key: points for key, points in found.items() if points}
    if not found:
        return None

    def draw(axes: Any) -> None:
        for (key, points), colour in zip(found.items(), _COLOURS * 9, strict=False):
            steps, values = zip(*points, strict=True)
            if raw:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            shown = smoothed(values) if smooth else values
            axes.plot(steps, shown, color=colour, marker="" if smooth or len(steps) > 50 else ".", label=_short(key))
        every = [value for points in found.values() for _, value in points]
        if log and min(every) > 0:
            axes.set_yscale("log")
            # As plain numbers: powers are typeset, slowly. Between powers of ten only where there is none, or one.
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}" if max(every) < 10 * min(every) else "")

    return Chart(name, title, about, draw)


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the running mean over a twentieth of the values, up to and with each."""
    window = max(len(values) // 20, 1)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[n + 1] - sums[max(n + 1 - window, 0)]) / min(n + 1, window) for n in range(len(values))]


def _changes(history: History) -> Chart | None:
    """Return the chart of the losses on fixed images, in per cent of the base's, with 95 % intervals."""
    names = ("validation", "train", "preservation", "validation_trained", "validation_averaged")
    found = {
        name: [
            (step, look[f"{name}/coarse_change"], look.get(f"{name}/coarse_margin", 0.0))
            for step, look in sorted(history.looks.items())
            if f"{name}/coarse_change" in look
        ]
        for name in names
    }
    found = {name: points for name, points in found.items() if points}
    if not found:
        return None

    def draw(axes: Any) -> None:
        for (name, points), colour in zip(found.items(), _COLOURS, strict=False):
            steps = [step for step, _, _ in points]
            axes.plot(steps, [_percent(value) for _, value, _ in points], color=colour, marker=".", label=name)
            low, high = ([_percent(value + sign * margin) for _, value, margin in points] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(0, color=_GREY, linewidth=0.8)
        axes.set_ylabel("% of the base's loss", fontsize=8, color=_GREY)

    about = (
        "The loss on fixed images at fixed noise (the noisier three quarters), as a change of the base model's, with "
        "95 % intervals: validation and train should fall together, preservation should stay at 0."
    )
    return Chart("changes", "Fixed images", about, draw)


def _percent(coarse_change: float) -> float:
    return 100.0 * math.expm1(coarse_change)


def _cost(history: History) -> Chart | None:
    """Return the chart of what the choice of the best goes by."""
    points = points_of(history.looks)
    best = best_of(points)
    if best is None:
        return None

    def draw(axes: Any) -> None:
        axes.plot([p.step for p in points], [p.cost for p in points], color=_COLOURS[0], marker=".", label="cost")
        parts = {"learned": [p.learned for p in points], "forgotten": [max(p.forgotten, 0) for p in points]}
        for (name, values), colour in zip(parts.items(), _COLOURS[1:], strict=False):
            axes.plot([p.step for p in points], values, color=colour, alpha=0.5, linewidth=1, label=name)
        axes.plot([best.step], [best.cost], "o", color=_COLOURS[4], markersize=8, label=f"chosen: step {best.step}")
        axes.axhline(0, color=_GREY, linewidth=0.8)

    about = (
        "What the choice goes by: learned + max(forgotten, bled / 4, 0), as logarithms of losses; less is better. The "
        "latest within a twentieth of the most that was won is chosen."
    )
    return Chart("cost", "The choice", about, draw)


def _short(key: str) -> str:
    return key.removeprefix("loss/").removeprefix("lr/").removeprefix("seen/").replace("_", " ")
