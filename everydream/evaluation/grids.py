"""A labelled grid of images: prompts down, guidance (or whatever varies) across."""

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP_PX, _FONT_PX, _LINE_PX = 6, 13, 17
_LETTER_PX = 7
"""About how wide a letter is."""
_MOST_LINES = 3
_FAILED = (120, 30, 30)


def labelled_grid(
    rows: Sequence[Sequence[NDArray[np.uint8]]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
) -> NDArray[np.uint8]:
    """Return one picture (H, W, 3) of all images, each row labelled on its left, each column above it.

    Labels of columns are broken to the width of their pictures.
    """
    font = ImageFont.load_default(_FONT_PX)
    cell_h = max(image.shape[0] for row in rows for image in row)
    cell_w = max(image.shape[1] for row in rows for image in row)
    label_w = 220 if any(row_labels) else _GAP_PX
    heads = [wrap(label, max(cell_w // _LETTER_PX, 6))[:_MOST_LINES] for label in column_labels]
    num_lines = max((len(head) for head in heads), default=0)
    top = _GAP_PX + _LINE_PX * (num_lines + bool(title))
    row_h = max(cell_h, 3 * _LINE_PX if any(row_labels) else 0) + _GAP_PX
    sheet = Image.new("RGB", (label_w + len(column_labels) * (cell_w + _GAP_PX), top + row_h * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, 3), title, "black", font)
    for column, head in enumerate(heads):
        place = (label_w + column * (cell_w + _GAP_PX), top - _LINE_PX * len(head))
        draw.multiline_text(place, "\n".join(head), "black", font, spacing=3)
    for number, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        y = top + number * row_h
        max_lines = max(row_h // _LINE_PX, 1)
        draw.multiline_text((_GAP_PX, y), "\n".join(wrap(label, 32)[:max_lines]), "black", font, spacing=3)
        for column, image in enumerate(row):
            sheet.paste(Image.fromarray(image), (label_w + column * (cell_w + _GAP_PX), y))
    return np.asarray(sheet)


def stacked(sheets: Sequence[NDArray[np.uint8]], lines: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Return pictures one below the other on white, under lines of text that are broken to their width."""
    width = max(sheet.shape[1] for sheet in sheets)
    told = [part for line in lines for part in wrap(line, max(width // _LETTER_PX, 20))]
    top = _GAP_PX + _LINE_PX * len(told)
    whole = Image.new("RGB", (width, top + sum(sheet.shape[0] for sheet in sheets)), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(_FONT_PX)
    pen.multiline_text((_GAP_PX, _GAP_PX // 2), "\n".join(told), "black", font, spacing=3)
    for sheet in sheets:
        whole.paste(Image.fromarray(sheet), (0, top))
        top += sheet.shape[0]
    return np.asarray(whole)


def failed_cell(width: int, height: int, reason: str) -> NDArray[np.uint8]:
    """Return a picture in the place of one that could not be drawn, with the reason as far as it has room."""
    image = Image.new("RGB", (width, height), _FAILED)
    lines = wrap(f"failed: {reason}", max(width // _LETTER_PX, 4))[: max(height // _LINE_PX, 1)]
    font = ImageFont.load_default(_FONT_PX)
    ImageDraw.Draw(image).multiline_text((3, 2), "\n".join(lines), "white", font, spacing=3)
    return np.asarray(image)
