"""Which part of a photo is kept: rectangles in pixels of the upright image, and nothing but arithmetic."""

from collections.abc import Sequence
from typing import NamedTuple

_SHARE_ABOVE = 1 / 3
"""Of the height that a square has beyond its face: as it grows, it takes in more body than sky."""
_SAME_FACE = 0.5
"""Of the smaller box, common with the larger."""


class Box(NamedTuple):
    """A rectangle in pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def area(self) -> int:
        """Pixels in it."""
        return self.width * self.height

    @property
    def corners(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom), as Pillow takes it."""
        return self.x, self.y, self.x + self.width, self.y + self.height


class Frame(NamedTuple):
    """One image to make of a photo."""

    label: str
    """What its name says behind the photo's: "1.6x", "face2_1.6x", or "" for a photo that is framed once."""
    box: Box


def around_face(face: Box, factor: float, size: tuple[int, int]) -> Box:
    """Return the square of `factor` times the face's longer side, inside an image of `size` (width, height).

    Centred on the face from left to right; a square that would not fit is the largest that does.
    """
    width, height = size
    side = min(round(factor * max(face.width, face.height)), width, height)
    left = face.x + (face.width - side) / 2
    top = face.y - (side - face.height) * _SHARE_ABOVE
    return Box(_clamp(left, width - side), _clamp(top, height - side), side, side)


def ladder(face: Box, factors: Sequence[float], size: tuple[int, int]) -> tuple[list[Frame], list[str]]:
    """Return the squares around one face, the closest first, and what is to be said about those left out."""
    frames: list[Frame] = []
    notes: list[str] = []
    for factor in sorted(factors):
        frame = Frame(f"{factor}x", around_face(face, factor, size))
        twin = next((known.label for known in frames if known.box == frame.box), None)
        if twin is None:
            frames.append(frame)
        else:
            notes.append(f"{frame.label} is the same crop as {twin}: the photo ends there")
    return frames, notes


def centre_square(size: tuple[int, int]) -> Box:
    """Return the largest square in the middle of an image of `size` (width, height)."""
    side = min(size)
    return Box((size[0] - side) // 2, (size[1] - side) // 2, side, side)


def distinct(boxes: Sequence[Box]) -> list[Box]:
    """Leave out the boxes that show a face which an earlier box shows."""
    kept: list[Box] = []
    for box in boxes:
        if not any(_overlap(box, other) > _SAME_FACE for other in kept):
            kept.append(box)
    return kept


def _overlap(one: Box, two: Box) -> float:
    """Return the common area over that of the smaller box, so that a box inside another is the same face."""
    left, top, right, bottom = one.corners
    width = min(right, two.x + two.width) - max(left, two.x)
    height = min(bottom, two.y + two.height) - max(top, two.y)
    return max(width, 0) * max(height, 0) / min(one.area, two.area)


def _clamp(start: float, room: int) -> int:
    return min(max(round(start), 0), room)
