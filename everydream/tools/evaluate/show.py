"""Numbers of candidates as a table for people and as plain data."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from everydream.tools.evaluate.judge import Judged
from everydream.tools.evaluate.measures import Measure

_SHOWN_PAIRS = 3
_BETTER = {"FID": "lower", "KID x1000": "lower", "CLIP score": "higher"}


def show(judged: Sequence[Judged], console: Console) -> None:
    """Print a row a candidate, then what was said of each."""
    names = list(dict.fromkeys(name for one in judged for name in one.measures))
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("pictures of")
    table.add_column("n", justify="right")
    for name in names:
        better = f"\n{_BETTER[name]} is better" if name in _BETTER else ""
        table.add_column(name + better, justify="right")
    for one in judged:
        cells = [_words(one.measures[name]) if name in one.measures else "-" for name in names]
        table.add_row(Text(one.candidate.name), str(len(one.candidate.paths)), *cells)
    console.print(table)
    console.print("± is half the 95 % interval, where one can be had.", style="dim")
    for note in dict.fromkeys(note for one in judged for note in one.notes):
        console.print(Text(note), style="yellow")
    for one in judged:
        for pair in one.pairs[:_SHOWN_PAIRS]:
            console.print(
                Text(
                    f"{one.candidate.name}: {pair.picture.name} is nearest to {pair.training.name}: "
                    f"{pair.hash_distance} of 64 hash bits, SSIM {pair.ssim:.2f}, cosine {pair.cosine:.3f}"
                ),
                style="dim",
            )


def _words(measure: Measure) -> str:
    digits = 3 if abs(measure.value) < 10 else 1
    margin = f" ± {measure.margin:.{digits}f}" if measure.margin is not None else ""
    return f"{measure.value:.{digits}f}{margin}"


def plain(judged: Sequence[Judged], by: str) -> dict[str, Any]:
    """Return all numbers; `by`: the name of the feature network, or of what stands for one."""
    return {
        "features": by,
        "candidates": [
            {
                "name": one.candidate.name,
                "pictures": len(one.candidate.paths),
                "measures": {name: {"value": m.value, "margin_95": m.margin} for name, m in one.measures.items()},
                "nearest": [
                    {
                        "picture": pair.picture.name, "training": pair.training.name, "cosine": pair.cosine,
                        "ssim": pair.ssim, "hash_distance": pair.hash_distance,
                    }
                    for pair in one.pairs
                ],
                "notes": one.notes,
            }
            for one in judged
        ],
    }  # fmt: skip
