"""Numbers of candidates as a table for people and as plain data."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from everydream.tools.evaluate.judge import Judged
from everydream.tools.evaluate.measures import Measure

_SHOWN_PAIRS = 3
_BETTER = {"FID": " (lower is better)", "KID x1000": " (lower is better)", "CLIP score": " (higher is better)"}


def show(judged: Sequence[Judged], console: Console) -> None:
    """Print a table, what is to be said of its numbers, and the most literal pairs."""
    console.print(_table(judged))
    console.print("± is half the 95 % interval, where one can be had.", style="dim")
    for note in dict.fromkeys(note for one in judged for note in one.notes):
        console.print(Text(note), style="yellow")
    for one in judged:
        asked = dict(zip(one.candidate.paths, one.candidate.prompts, strict=True))
        for pair in one.pairs[:_SHOWN_PAIRS]:
            said = (
                f"{one.candidate.name}: {pair.picture.name} (“{asked[pair.picture]}”), nearest {pair.training.name}: "
                f"{pair.hash_distance} of 64 hash bits, SSIM {pair.ssim:.2f}, cosine {pair.cosine:.3f}"
            )
            console.print(Text(said), style="dim")


def _table(judged: Sequence[Judged]) -> Table:
    """Return a row a candidate and a column a measure, or the other way round if that is narrower."""
    names = list(dict.fromkeys(name for one in judged for name in one.measures))
    heads = [f"{name}{_BETTER.get(name, '')}" for name in names]
    cells = [[_words(one.measures[name]) if name in one.measures else "-" for name in names] for one in judged]
    rows = [[one.candidate.name, str(len(one.candidate.paths)), *row] for one, row in zip(judged, cells, strict=True)]
    grid = [["", "pictures", *heads], *rows]
    if len(names) > len(judged):
        grid = [list(column) for column in zip(*grid, strict=True)]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, head in enumerate(grid[0]):
        table.add_column(Text(head), justify="right" if number else "left")
    for row in grid[1:]:
        table.add_row(*map(Text, row))
    return table


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
