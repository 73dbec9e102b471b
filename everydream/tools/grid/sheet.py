"""Pictures of a grid to one labelled picture: x across, y down, a sheet for each value of z."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everydream.evaluation.grids import failed_cell, labelled_grid, stacked
from everydream.tools.grid.axes import Axis, Cell
from everydream.tools.grid.drawing import Drawn, size_of_pictures

Place = tuple[int, ...]
_ONE = Axis("", [None], [""])


def sheet(axes: Sequence[Axis], cells: Mapping[Place, Cell], drawn: Drawn, legend: Sequence[str]) -> NDArray[np.uint8]:
    """Return the picture of all cells (H, W, 3); failed ones are drawn as that, with their reason."""
    x, y, z = [*axes, _ONE, _ONE, _ONE][:3]
    pictures = {place: picture_of(cell, drawn) for place, cell in cells.items()}
    sheets = []
    for third, title in enumerate(z.labels):
        rows = [
            [pictures[(column, row, third)[: len(axes)]] for column in range(len(x.labels))]
            for row in range(len(y.labels))
        ]
        sheets.append(labelled_grid(rows, y.labels, x.labels, title))
    return stacked(sheets, legend)


def picture_of(cell: Cell, drawn: Drawn) -> NDArray[np.uint8]:
    """Return a cell's picture, or one that says why there is none."""
    if cell in drawn.pictures:
        with Image.open(drawn.pictures[cell]) as image:
            return np.asarray(image.convert("RGB"))
    size = size_of_pictures(drawn)
    return failed_cell(cell.width or size[0], cell.height or size[1], drawn.failed[cell])


def legend(cell: Cell, axes: Sequence[Axis]) -> list[str]:
    """Return what holds for all pictures, in lines: the settings that no axis varies."""
    varied = {axis.name.replace(" ", "_") for axis in axes}
    facts = {
        "checkpoint": cell.checkpoint, "seed": cell.seed, "guidance": f"{cell.guidance:g}", "steps": cell.steps,
        "sampler": cell.sampler, "lora": ", ".join(Path(file).name for file in cell.lora) or None,
        "lora_strength": f"{cell.lora_strength:g}" if cell.lora_strength != 1.0 else None,
        "size": f"{cell.width}x{cell.height}" if cell.width and cell.height else None,
    }  # fmt: skip
    said = [f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if value is not None]
    fixed = [text for text in said if not any(text.startswith(name.replace("_", " ") + " ") for name in varied)]
    negative = [f"negative prompt: {cell.negative}"] if cell.negative else []
    return [f"prompt: {cell.prompt}", *negative, ", ".join(fixed)]
