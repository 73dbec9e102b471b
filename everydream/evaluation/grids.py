"""A labelled grid of images: prompts down, guidance (or whatever varies) across."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP_PX, _FONT_PX = 6, 13


def labelled_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
) -> NDArray[np.uint8]:
    """Return one picture (H, W, 3) of all images, each row labelled on its left, each column above it."""
    font = ImageFont.load_default(_FONT_PX)
    cell_h = max(image.shape[0] for row in rows for image in row)
    cell_w = max(image.shape[1] for row in rows for image in row)
    label_w, line = 220, _FONT_PX + 4
    top = _GAP_PX + line * (2 if title else 1)
    row_h = max(cell_h, 3 * line) + _GAP_PX
    sheet = Image.new("RGB", (label_w + len(column_labels) * (cell_w + _GAP_PX), top + row_h * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, 3), title, "black", font)
    for column, label in enumerate(column_labels):
        draw.text((label_w + column * (cell_w + _GAP_PX), top - line), label, "black", font)
    for number, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + number * row_h
        max_lines = max(row_h // line, 1)
        draw.multiline_text((_GAP_PX, y), "\n".join(wrap(label, 32)[:max_lines]), "black", font, spacing=3)
        for column, image in enumerate(row):
            sheet.paste(Image.fromarray(image), (label_w + column * (cell_w + _GAP_PX), y))
    return np.asarray(sheet)
