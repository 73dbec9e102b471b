"""The contact sheet: every photo with its crops drawn in, beside the crops; pages of thumbnails."""

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont

from everydream.tools.prep.frames import Frame

_COLUMNS, _ROWS = 8, 8
_THUMB_PX, _GAP_PX, _FONT_PX = 180, 6, 12
_CELL_H = _THUMB_PX + _FONT_PX + 2 * _GAP_PX
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")
_LETTERS = 30


class ContactSheet:
    """Pages that are written as they fill up, so that no more than one is held in memory."""

    def __init__(self, write: Callable[[str, bytes], None]) -> None:
        """Write pages by `write(name, content)`."""
        self._write = write
        self._num_pages = 0
        self._begin()

    def add(self, name: str, image: Image.Image, frames: Sequence[Frame], crops: Sequence[Image.Image]) -> None:
        """Put a photo and its crops on the sheet."""
        self._cell(_with_boxes(image, frames), name)
        for frame, crop in zip(frames, crops, strict=True):
            self._cell(_thumb(crop), frame.label or f"{crop.width} x {crop.height}")

    def close(self) -> list[str]:
        """Write the last page and return the names of all, in order."""
        if self._num_cells:
            self._save()
        return [_page_name(number) for number in range(1, self._num_pages + 1)]

    def _begin(self) -> None:
        size = (_COLUMNS * (_THUMB_PX + _GAP_PX) + _GAP_PX, _ROWS * _CELL_H + _GAP_PX)
        self._page = Image.new("RGB", size, "white")
        self._num_cells = 0

    def _cell(self, thumb: Image.Image, label: str) -> None:
        row, column = divmod(self._num_cells, _COLUMNS)
        left, top = _GAP_PX + column * (_THUMB_PX + _GAP_PX), _GAP_PX + row * _CELL_H
        self._page.paste(thumb, (left + (_THUMB_PX - thumb.width) // 2, top + _THUMB_PX - thumb.height))
        shown = label if len(label) <= _LETTERS else f"{label[: _LETTERS - 3]}..."
        ImageDraw.Draw(self._page).text((left, top + _THUMB_PX + 2), shown, "black", ImageFont.load_default(_FONT_PX))
        self._num_cells += 1
        if self._num_cells == _COLUMNS * _ROWS:
            self._save()
            self._begin()

    def _save(self) -> None:
        self._num_pages += 1
        rows = -(-self._num_cells // _COLUMNS)
        buffer = io.BytesIO()
        self._page.crop((0, 0, self._page.width, rows * _CELL_H + _GAP_PX)).save(buffer, "JPEG", quality=85)
        self._write(_page_name(self._num_pages), buffer.getvalue())


def _page_name(number: int) -> str:
    return ".prep/contact_sheet.jpg" if number == 1 else f".prep/contact_sheet_{number}.jpg"


def _thumb(image: Image.Image) -> Image.Image:
    scale = _THUMB_PX / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)


def _with_boxes(image: Image.Image, frames: Sequence[Frame]) -> Image.Image:
    thumb = _thumb(image)
    scale = thumb.width / image.width, thumb.height / image.height
    draw = ImageDraw.Draw(thumb)
    for number, frame in enumerate(frames):
        left, top, right, bottom = (round(v * scale[n % 2]) for n, v in enumerate(frame.box.corners))
        corners = (left, top, max(left, min(right, thumb.width) - 1), max(top, min(bottom, thumb.height) - 1))
        draw.rectangle(corners, outline=_COLOURS[number % len(_COLOURS)], width=2)
    return thumb
