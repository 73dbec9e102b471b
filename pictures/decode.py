"""From an image file to pixels: nothing is guessed, and whatever Pillow raises becomes `BadImage` with a reason.

Pixels are always 8-bit sRGB, upright, on an opaque background. `probe` reads headers only; `decode` decodes;
`opened` and `upright_rgb` are their parts. Plain JPEGs take a shorter way to the same pixels (`pictures.turbo`). Files
are told apart by content; only formats of `EXTENSIONS` are ever opened, so that a misnamed EPS cannot start
Ghostscript.
"""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from pictures.colour import flatten, opacity, to_8_bits
from pictures.sniff import HEAD_BYTES, describe
from pictures.turbo import REDUCTIONS, decode_plain, turned

Source = Path | IO[bytes]
"""A file, or its content as a seekable stream."""

EXTENSIONS: dict[str, tuple[str, ...]] = {
    ".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".jfif": ("JPEG", "MPO"), ".png": ("PNG",), ".webp": ("WEBP",),
    ".bmp": ("BMP", "DIB"), ".gif": ("GIF",), ".tif": ("TIFF",), ".tiff": ("TIFF",), ".avif": ("AVIF",),
}  # fmt: skip
"""Extension -> the contents it promises. HEIC is apart: without its plug-in it is rejected with a hint."""

_FORMATS = sorted({name for names in EXTENSIONS.values() for name in names} - {"MPO"})  # MPO is opened as JPEG

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what brings the image upright; 1 and invalid values (0, 9) need nothing."""


class BadImage(Exception):  # noqa: N818 - a finding about a file that the scan lists, not a failure of the run
    """An image that cannot be used; the message is the reason, in plain English and without the path."""


class TooLarge(BadImage):
    """An image of more pixels than are allowed; it was not decoded."""


class Probe(NamedTuple):
    """What the header says, after orientation."""

    width: int
    height: int
    format: str
    """Pillow's name of the content's format."""
    has_more_frames: bool
    """Animated, or of several pages; only the first is used."""


def image_extensions() -> frozenset[str]:
    """Return the lower-case extensions, dot included, of the files that are images here."""
    return frozenset({*EXTENSIONS, ".heic", ".heif"})


def promised_formats(extension: str) -> tuple[str, ...]:
    """Return the contents that a lower-case extension, dot included, stands for."""
    return ("HEIF",) if extension in (".heic", ".heif") else EXTENSIONS.get(extension, ())


def probe(source: Source, max_megapixels: float | None = None) -> Probe:
    """Read the header, refusing images of more than `max_megapixels`."""
    with opened(source, max_megapixels) as image:
        width, height = upright_size(image)
        return Probe(width, height, image.format or "", _has_more_frames(image))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) of an image from `opened` the right way up, without decoding it."""
    return image.size[::-1] if orientation(image) >= 5 else image.size


class Decoded(NamedTuple):
    """An image's pixels, and how large it is."""

    pixels_HWC: NDArray[np.uint8]
    """RGB; smaller than `size` by a whole number where that was allowed."""
    size: tuple[int, int]
    """(width, height) of the image itself, the right way up."""
    alpha_HW: NDArray[np.uint8] | None
    """Its opacity; None where it was not asked for, or the image knows no transparency."""


def decode(source: Source, background: str = "#ffffff", max_megapixels: float | None = None) -> NDArray[np.uint8]:
    """Return the pixels as HWC RGB; every way in which that can fail is `BadImage`."""
    return decode_for(source, background, max_megapixels).pixels_HWC


def decode_for(
    source: Source,
    background: str = "#ffffff",
    max_megapixels: float | None = None,
    enough: Callable[[tuple[int, int]], tuple[int, int]] | None = None,
    with_alpha: bool = False,
) -> Decoded:
    """Decode. `enough` of an image's (width, height) is the least that is wanted of it: what is larger may be reduced.

    That is done to plain JPEGs whose sides can be divided, so the pixels lie exactly where they would; see
    `pictures.turbo`. Raises BadImage.
    """
    with opened(source, max_megapixels) as image:
        size = upright_size(image)
        pixels_HWC = decode_plain(image, _reduction(size, enough(size)) if enough is not None else 1)
        if pixels_HWC is not None:
            return Decoded(turned(pixels_HWC, orientation(image)), size, None)
        turn = orientation(image)  # before load(), as `upright_rgb`
        pixels_HWC = np.array(upright_rgb(image, background), dtype=np.uint8)
        alpha = opacity(image) if with_alpha else None
        if alpha is not None and turn in _UPRIGHT:
            alpha = alpha.transpose(_UPRIGHT[turn])
        alpha_HW = np.array(alpha, dtype=np.uint8) if alpha is not None else None
        return Decoded(pixels_HWC, (pixels_HWC.shape[1], pixels_HWC.shape[0]), alpha_HW)


def _reduction(size: tuple[int, int], least: tuple[int, int]) -> int:
    (width, height), (least_width, least_height) = size, least
    for factor in REDUCTIONS:
        if (
            not (width % factor or height % factor)
            and width >= factor * least_width
            and height >= factor * least_height
        ):
            return factor
    return 1


def upright_rgb(image: Image.Image, background: str = "#ffffff") -> Image.Image:
    """Decode an image from `opened` to 8-bit sRGB, the right way up.

    Depths beyond 8 bits are scaled (see `to_8_bits`), CMYK, LAB and embedded profiles are brought to sRGB,
    transparency is composited on `background`, and of an animation the first frame is taken.
    """
    turn = orientation(image)  # before load(), so that `probe` sees the same
    image.load()
    flat = flatten(to_8_bits(image), background)
    return flat.transpose(_UPRIGHT[turn]) if turn in _UPRIGHT else flat


# Opening


@contextlib.contextmanager
def opened(
    source: Source, max_megapixels: float | None = None, formats: tuple[str, ...] | None = None
) -> Iterator[Image.Image]:
    """Open an image of acceptable size; whatever Pillow raises, now or inside the block, is `BadImage`."""
    try:
        with pillow_left_to_us(), Image.open(source, formats=formats or _formats()) as image:
            _check_size(image.size, max_megapixels)
            yield image
    except BadImage:
        raise
    except Exception as error:
        # Pillow's plug-ins raise eight and more kinds of exception on damaged files, and none may end a run.
        raise BadImage(_why(source, error)) from error


def _why(source: Source, error: Exception) -> str:
    """Say why a source could not be opened or decoded, from its first bytes and what was raised."""
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return describe(file.read(HEAD_BYTES), error, source)
        source.seek(0)
        return describe(source.read(HEAD_BYTES), error)
    except OSError as unreadable:
        return f"cannot be read: {unreadable.strerror or unreadable}"


def _check_size(size: tuple[int, int], max_megapixels: float | None) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"damaged: its size is {width} x {height}")
    if max_megapixels is not None and width * height > max_megapixels * 1e6:
        raise TooLarge(f"too large: {width} x {height} = {width * height / 1e6:,.0f} megapixels, "
                       f"the limit is {max_megapixels:g} (max_megapixels)")  # fmt: skip


class _Shared:
    """How many threads are inside `pillow_left_to_us`, and what it has to put back."""

    lock = threading.Lock()
    depth = 0
    restore = contextlib.ExitStack()


@contextlib.contextmanager
def pillow_left_to_us() -> Iterator[None]:
    """Silence Pillow's warnings about odd files and switch off its pixel limit, which `max_megapixels` replaces.

    Who opens many images enters it once around them all, which is quicker. Both are process-wide, and the scan decodes
    in threads: the first to enter changes them, the last restores them.
    """
    with _Shared.lock:
        if _Shared.depth == 0:
            _Shared.restore.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
            _Shared.restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        _Shared.depth += 1
    try:
        yield
    finally:
        with _Shared.lock:
            _Shared.depth -= 1
            if _Shared.depth == 0:
                _Shared.restore.close()


def _formats() -> list[str]:
    return [*_FORMATS, "HEIF"] if _has_heif() else list(_FORMATS)


@cache  # a failed import is looked for anew each time, in every folder of the path
def _has_heif() -> bool:
    try:
        import pillow_heif  # noqa: PLC0415 - an optional plug-in, looked for only here
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def orientation(image: Image.Image) -> int:
    """Return the orientation to apply: 1 where there is none, where it is corrupt, and for TIFF, which Pillow turns.

    The base class's getexif, because PNG's own would decode the image to find a chunk behind the pixels.
    """
    if image.format == "TIFF":
        return 1
    try:
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1  # a looping or cut EXIF block says nothing about the pixels
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _has_more_frames(image: Image.Image) -> bool:
    if image.format == "MPO":
        return False  # the other frames of a phone's picture are previews and depth maps
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:
        return False  # the second frame is damaged; the first may be whole
