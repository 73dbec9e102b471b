"""Plain JPEGs by libjpeg-turbo itself: Pillow's pixels to the bit in less than half the time, or none at all.

Pillow has read the header. What is not plain (other inks, another profile than sRGB), and whatever the decoder warns
about, is left to Pillow, which alone says whether and why a file is no use.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pictures.colour import is_srgb

REDUCTIONS = (4, 2)
"""By how much a JPEG is made smaller while it is decoded. Not 8, which differs most from a full decode and needs
pictures of 16 times the bucket's side; nor 8/7 and the like, which take longer than a full decode."""


def decode_plain(image: Image.Image, reduction: int = 1) -> NDArray[np.uint8] | None:
    """Return the pixels (HWC, as stored, not turned) of an image that Pillow has opened; None: ask Pillow.

    `reduction`: 1, or one of REDUCTIONS that divides both sides; then each pixel stands for so many along each axis.
    """
    if not _is_plain(image):
        return None
    width, height = image.width // reduction, image.height // reduction
    try:
        # Exact to Pillow only without fastdct and fastupsample, its faster and coarser arithmetic (off by default).
        pixels = simplejpeg.decode_jpeg(
            _content(image), "RGB", min_width=width, min_height=height, min_factor=reduction, strict=True
        )
    except (ValueError, RuntimeError, MemoryError):
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def _is_plain(image: Image.Image) -> bool:
    """Whether an image is an 8-bit JPEG, grey or in colours that need no conversion; of an MPO the first picture is."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return False
    profile = image.info.get("icc_profile")
    return not profile or is_srgb(profile)


def _content(image: Image.Image) -> bytes:
    """Return all bytes of the file behind an image, and leave its place in it as it was."""
    file = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    content: bytes = file.read()
    file.seek(place)
    return content


def turned(pixels_HWC: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Bring pixels upright, by EXIF orientation 1 to 8."""
    if orientation == 1:
        return pixels_HWC
    import cv2  # noqa: PLC0415 - three to five times as fast as numpy and Pillow, and hardly any file needs it

    if orientation >= 5:
        pixels_HWC = cv2.transpose(pixels_HWC)  # type: ignore[assignment]
    if orientation == 5:
        return pixels_HWC
    flips = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # 0: top for bottom, 1: left for right, -1: both
    return cv2.flip(pixels_HWC, flips[orientation])  # type: ignore[return-value]
