"""Pictures of one coloured shape on a plain background: drawn, captioned, and judged by pixels.

    Subject("ring", "red", "blue") -> draw(subject, seed) -> 64 px picture -> classify -> the subject

A subject is everything a caption says. A picture adds a little chance (place and size), all of it
from its seed. The judge learns nothing: two palette colours split the picture, and the mask's own
box is compared with each shape's template. It says "unclear" rather than guess.
"""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everydream.seeding import derive, numpy_generator

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 75, 215),
    "yellow": (245, 215, 50),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
"""Far apart in RGB, so that a blurred edge or a weak sample still has one nearest colour."""

COLOURS = tuple(PALETTE)
KNOWN_SHAPES = ("circle", "square", "triangle")
"""What the shipped model was trained on."""
NEW_SHAPE = "ring"
"""What the demo teaches it. Its thick band survives the tiny latents; a star's tips do not."""
SHAPES = (*KNOWN_SHAPES, NEW_SHAPE)
UNCLEAR = "unclear"
SIZE_PX = 64

_SUPERSAMPLING = 4
_RADIUS = (0.30, 0.36)
"""Share of the picture's side. The tiny latent space has 8 cells a side: much more variety in place
and size would cost it shapes, not colours."""
_SHIFT = 0.05
_TEMPLATE_PX = 32
_MIN_IOU = 0.72
_MIN_PLAIN_SHARE = 0.85
_CAPTION = re.compile(r"^a (\w+) (\w+) on a (\w+) background$")


@dataclass(frozen=True, order=True)
class Subject:
    """What a caption says, or what the judge saw."""

    shape: str
    colour: str
    background: str

    @property
    def caption(self) -> str:
        """The sentence that asks for it."""
        return f"a {self.colour} {self.shape} on a {self.background} background"


def parse(caption: str) -> Subject:
    """Return the subject a caption speaks of; the inverse of `Subject.caption`."""
    match = _CAPTION.match(caption)
    if match is None:
        raise ValueError(f"not a caption of the demo: {caption!r}; expected 'a red ring on a blue background'")
    colour, shape, background = match.groups()
    if shape not in SHAPES or colour not in PALETTE or background not in PALETTE or colour == background:
        raise ValueError(f"unknown or equal words in {caption!r}; shapes {SHAPES}, colours {COLOURS}")
    return Subject(shape, colour, background)


def subjects(shapes: tuple[str, ...]) -> list[Subject]:
    """Return every visible subject of these shapes: 30 each, in a fixed order."""
    return [Subject(s, c, b) for s in shapes for c in COLOURS for b in COLOURS if c != b]


def held_out() -> list[Subject]:
    """Return new subjects kept out of the concept set: every colour once in front, once behind.

    Getting them right means that the word was learned, not the pictures.
    """
    return [Subject(NEW_SHAPE, colour, COLOURS[(i + 2) % len(COLOURS)]) for i, colour in enumerate(COLOURS)]


def inside_polygon(vertices: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where points lie inside, by the even-odd rule; `vertices` are rows of (x, y)."""
    odd = np.zeros(np.broadcast_shapes(x.shape, y.shape), np.bool_)
    for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return odd


def inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where points lie inside a shape of radius 1 about the origin, y pointing down."""
    if shape == "circle":
        return x * x + y * y <= 0.92
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.85
    if shape == "triangle":
        return inside_polygon(np.array([[0.0, -1.0], [1.0, 0.8], [-1.0, 0.8]]), x, y)
    if shape == "ring":
        return (x * x + y * y <= 1.0) & (x * x + y * y > 0.3)
    raise ValueError(f"unknown shape {shape!r}; the shapes are {SHAPES}")


def grid(num: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pixel centres of a unit square as a row of x and a column of y, ready to broadcast."""
    centre_N = (np.arange(num) + 0.5) / num
    return centre_N[None, :], centre_N[:, None]


def blend(mask: NDArray[np.bool_], colour: str, background: str, size_px: int = SIZE_PX) -> Image.Image:
    """Return a picture from an oversampled mask; averaging over its blocks gives smooth edges."""
    factor = mask.shape[0] // size_px
    cover = mask.reshape(size_px, factor, size_px, factor).mean(axis=(1, 3))[..., None]
    pixels = cover * np.array(PALETTE[colour]) + (1 - cover) * np.array(PALETTE[background])
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def draw(subject: Subject, seed: int, size_px: int = SIZE_PX) -> Image.Image:
    """Return the picture of a subject; the same seed and subject give the same pixels everywhere."""
    random = numpy_generator(derive(seed, "picture", subject.caption))
    centre_x, centre_y = 0.5 + random.uniform(-_SHIFT, _SHIFT, 2)
    radius = random.uniform(*_RADIUS)
    x, y = grid(size_px * _SUPERSAMPLING)
    return blend(
        inside(subject.shape, (x - centre_x) / radius, (y - centre_y) / radius),
        subject.colour,
        subject.background,
        size_px,
    )


def classify(image: Image.Image) -> Subject:
    """Return what a picture shows; words that cannot be told are `UNCLEAR`."""
    pixels_HWC = np.asarray(image.convert("RGB"), np.float64)
    distance_HWP = np.linalg.norm(pixels_HWC[:, :, None] - np.array(list(PALETTE.values())), axis=3)
    nearest_HW = distance_HWP.argmin(axis=2)
    border = np.concatenate(
        [nearest_HW[:3].ravel(), nearest_HW[-3:].ravel(), nearest_HW[:, [0, 1, 2, -3, -2, -1]].ravel()]
    )
    background = int(np.bincount(border, minlength=len(COLOURS)).argmax())
    count_P = np.bincount(nearest_HW.ravel(), minlength=len(COLOURS))
    plain = count_P[background]
    count_P[background] = 0
    colour = int(count_P.argmax())
    # Noise and washed-out samples spread over the palette; a subject has two colours and thin edges.
    if plain + count_P[colour] < _MIN_PLAIN_SHARE * nearest_HW.size or count_P[colour] < 0.02 * nearest_HW.size:
        is_plain = plain >= _MIN_PLAIN_SHARE * nearest_HW.size
        return Subject(UNCLEAR, UNCLEAR, COLOURS[background] if is_plain else UNCLEAR)
    mask_HW = distance_HWP[:, :, colour] < distance_HWP[:, :, background]
    return Subject(classify_mask(mask_HW), COLOURS[colour], COLOURS[background])


def classify_mask(mask_HW: NDArray[np.bool_]) -> str:
    """Return the shape whose template overlaps best with the mask in the mask's own box."""
    box = _box(mask_HW)
    if box is None:
        return UNCLEAR
    cropped = Image.fromarray(mask_HW[box].astype(np.uint8) * 255)
    own = np.asarray(cropped.resize((_TEMPLATE_PX, _TEMPLATE_PX), Image.Resampling.BOX)) >= 128
    overlap = {shape: _iou(own, _template(shape)) for shape in SHAPES}
    best = max(overlap, key=overlap.__getitem__)
    return best if overlap[best] >= _MIN_IOU else UNCLEAR


def _box(mask_HW: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    """Return the box around the mask, or None; a lone stray pixel must not stretch it."""
    height, width = mask_HW.shape
    rows = np.flatnonzero(mask_HW.sum(axis=1) > width // 64)
    columns = np.flatnonzero(mask_HW.sum(axis=0) > height // 64)
    if len(rows) < height // 8 or len(columns) < width // 8:
        return None
    box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
    is_shape_like = 0.5 < len(rows) / len(columns) < 2.0
    return box if is_shape_like else None


@cache
def _template(shape: str) -> NDArray[np.bool_]:
    """Return the shape as it fills its own box."""
    x, y = grid(256)
    mask = inside(shape, x * 2.2 - 1.1, y * 2.2 - 1.1)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cropped = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    resized = Image.fromarray(cropped.astype(np.uint8) * 255).resize((_TEMPLATE_PX, _TEMPLATE_PX), Image.Resampling.BOX)
    return np.asarray(resized) >= 128


def _iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))
