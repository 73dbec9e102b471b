"""Pictures of a grid to one page that needs nothing else: a slider over the costliest axis, light and dark."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from everydream.tools.grid.axes import Axis, Cell, drawing_order
from everydream.tools.grid.drawing import Drawn, size_of_pictures

_SHOWN_PX = (120, 384)
_QUALITY = 90


def page(
    title: str, axes: Sequence[Axis], cells: Mapping[tuple[int, ...], Cell], drawn: Drawn, legend: Sequence[str]
) -> str:
    """Return the page: one table a value of the outermost axis, its pictures inside as WebP."""
    order = drawing_order(axes)
    outer = order[0] if order else None
    inner = [n for n in range(len(axes)) if n != outer]
    column, row = [*inner, None, None][:2]
    frames: list[dict[str, Any]] = [
        {
            "label": label,
            "rows": [
                {
                    "label": row_label,
                    "cells": [
                        _cell(cells[_place(len(axes), {outer: f, row: r, column: c})], drawn)
                        for c in range(_count(axes, column))
                    ],
                }
                for r, row_label in enumerate(_labels(axes, row))
            ],
        }
        for f, label in enumerate(_labels(axes, outer))
    ]
    width, height = size_of_pictures(drawn)
    shown = min(max(width, _SHOWN_PX[0]), _SHOWN_PX[1])
    text: str = _template().render(
        title=title,
        legend=[line for line in legend if line],
        axis=axes[outer].name if outer is not None else "",
        columns=_labels(axes, column) if column is not None else [],
        frames=frames,
        width=shown,
        height=round(height * shown / width),
    )
    return text


def _template() -> Any:
    here = Path(__file__).parent
    found = Environment(loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined)
    return found.get_template("page.html.j2")


def _labels(axes: Sequence[Axis], number: int | None) -> list[str]:
    return [""] if number is None else list(axes[number].labels)


def _count(axes: Sequence[Axis], number: int | None) -> int:
    return len(_labels(axes, number))


def _place(num: int, numbers: Mapping[int | None, int]) -> tuple[int, ...]:
    return tuple(numbers[n] for n in range(num))


def _cell(cell: Cell, drawn: Drawn) -> dict[str, str]:
    if cell not in drawn.pictures:
        return {"data": "", "alt": "", "reason": drawn.failed[cell]}
    with Image.open(drawn.pictures[cell]) as image, io.BytesIO() as held:
        image.convert("RGB").save(held, format="WEBP", quality=_QUALITY)
        encoded = base64.b64encode(held.getvalue()).decode("ascii")
    alt = f"{cell.checkpoint}: {cell.prompt}, seed {cell.seed}, guidance {cell.guidance:g}"
    return {"data": f"data:image/webp;base64,{encoded}", "alt": alt, "reason": ""}
