"""What is seen of one image file: enough to tell twins, show it small and name its colours, in a few kilobytes.

This runs in processes of its own, so it knows nothing of the trainer and does not load torch.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import imagehash
from PIL import Image, ImageOps

from everydream.data.shards import read_bytes
from pictures.decode import BadImage, opened, upright_rgb, upright_size

SIDE = 24
"""Side in pixels of the square colour thumbnail that twins are confirmed by."""
PAGE_SIDE = 256
"""Longest side in pixels of the thumbnail that a page shows."""
_HASH_SIDE = 32
_QUALITY = 62


class Look(NamedTuple):
    """What was seen of a file."""

    width: int
    height: int
    """Pixels, after EXIF orientation."""
    digest: bytes
    """Of the whole content."""
    hash: int
    """Perceptual hash (pHash, 64 bits) of the picture."""
    mirrored: int
    """The same of its mirror image."""
    small: bytes
    """SIDE x SIDE RGB pixels of the whole picture, whatever its shape."""


def look_at(path: Path, background: str = "#ffffff") -> tuple[Look, bytes] | None:
    """Return what is seen of an image file, and a JPEG of it for pages, PAGE_SIDE on the longest side at most.

    Members of shards are files as well. None if it cannot be read or decoded.
    """
    try:
        content = read_bytes(path)
        with opened(io.BytesIO(content)) as image:
            width, height = upright_size(image)
            # JPEGs are decoded at a half, a quarter or an eighth where that leaves enough; others take no notice.
            image.draft(None, _within(image.size))
            picture = upright_rgb(image, background)
    except (BadImage, OSError, MemoryError):
        return None
    picture.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = picture.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    page = io.BytesIO()
    picture.save(page, "JPEG", quality=_QUALITY)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    look = Look(width, height, digest, _bits(grey), _bits(ImageOps.mirror(grey)), small.tobytes())
    return look, page.getvalue()


def look_at_all(paths: Sequence[str], background: str) -> list[tuple[Look, bytes] | None]:
    """Return `look_at` of each: the work of one process at a time."""
    return [look_at(Path(path), background) for path in paths]


def _within(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of the same shape whose longest side is PAGE_SIDE, or the size itself."""
    scale = min(1.0, PAGE_SIDE / max(size))
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


def _bits(grey: Image.Image) -> int:
    return int(str(imagehash.phash(grey)), 16)
