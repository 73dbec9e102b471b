"""From a fetched file to a checked one: what is stored is an image that opens, upright and without metadata.

Runs in processes of its own (`scrapers.decoding`): a decoder that crashes or swallows memory takes no run with it.
Plain JPEGs go through libjpeg-turbo and OpenCV; everything else (other formats, 16 bits, CMYK, profiles,
transparency) through `pictures`, which is slower and right.
"""

import hashlib
import io
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pictures.colour import is_srgb
from pictures.decode import BadImage, TooLarge, opened, orientation, upright_rgb, upright_size
from scrapers.filters import refuse_size
from scrapers.jpeg import num_scans, without_metadata, without_zeros_at_end
from scrapers.settings import FilterSettings, ImageSettings
from scrapers.types import Item, Picture, Reason, Verdict

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "AVIF")
_EXTENSIONS = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "GIF": ".gif", "BMP": ".bmp", "DIB": ".bmp",
               "WEBP": ".webp", "AVIF": ".avif"}  # fmt: skip
_PADDING = re.compile(r"(\d+) extraneous bytes before marker 0x(\w+)")
MAX_SCANS = 100
"""A JPEG of more is a trap: a hundred bytes each make the decoder go through all pixels again."""
_HASH_SIDE = 64


def make_picture(
    raw: Path, target: Path, item: Item, images: ImageSettings, filters: FilterSettings
) -> Picture | Verdict:
    """Check the file at `raw` and write what is to be stored to `target` with its extension, whole or not at all.

    With keep_original nothing is written: the picture's file is `raw`.
    """
    content = raw.read_bytes()
    if verdict := _wrong_digest(content, item):
        return verdict
    if len(content) < filters.min_bytes:
        return Verdict(Reason.TOO_FEW_BYTES, f"{len(content):,} bytes")
    try:
        with opened(io.BytesIO(content), images.max_megapixels, FORMATS) as image:
            size = upright_size(image)
            if verdict := refuse_size(*size, filters):
                return verdict
            extension = _EXTENSIONS[image.format or ""]
            if extension == ".jpg" and num_scans(content) > MAX_SCANS:
                raise BadImage(f"a JPEG of more than {MAX_SCANS} scans")
            made = _make(image, content, size, images)
    except TooLarge as error:
        return Verdict(Reason.TOO_MANY_PIXELS, str(error))
    except BadImage as error:
        return Verdict(Reason.DECODE_ERROR, str(error))
    if made.content is None:
        file, stored = raw, content
    else:
        stored, extension = made.content, ".jpg"
        file = target.with_name(target.name + extension)
        _write(file, stored)
    return Picture(
        file=file,
        extension=extension,
        width=made.width,
        height=made.height,
        num_bytes=len(stored),
        sha256=hashlib.sha256(stored).hexdigest(),
        perceptual_hash=_perceptual_hash(made.sample) if filters.duplicates == "perceptual" else None,
    )


def _wrong_digest(content: bytes, item: Item) -> Verdict | None:
    for name in ("md5", "sha256"):
        wanted = getattr(item, name)
        if wanted and (found := hashlib.new(name, content, usedforsecurity=False).hexdigest()) != wanted.lower():
            return Verdict(Reason.HASH_MISMATCH, f"{name} is {found}, not {wanted}")
    return None


@dataclass(frozen=True)
class _Made:
    content: bytes | None
    """What to store; None: the file as it came."""
    width: int
    height: int
    sample: NDArray[np.uint8]
    """Pixels to hash, at any size."""


def _make(image: Image.Image, content: bytes, size: tuple[int, int], settings: ImageSettings) -> _Made:
    """Decode, which is the only proof that an image is whole, and encode what has to change."""
    resized = _target_size(size, settings.resize)
    plain = _is_plain_jpeg(image)
    if settings.keep_original:
        # An eighth of the size needs every bit of the stream decoded, and half the work.
        return _Made(None, *size, _decode_jpeg(content, "GRAY", 8) if plain else np.asarray(upright_rgb(image)))
    if plain and resized == size and orientation(image) == 1:
        return _Made(without_metadata(content), *size, _decode_jpeg(content, "GRAY", 8))
    if plain:
        stored_size = resized[::-1] if orientation(image) >= 5 else resized
        pixels = _turned(_scaled(_decode_jpeg(content, "RGB", 1, stored_size), stored_size), orientation(image))
    else:
        rgb = upright_rgb(image)
        pixels = np.asarray(rgb.resize(resized, Image.Resampling.LANCZOS, reducing_gap=3) if resized != size else rgb)
    encoded = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=settings.quality, colorspace="RGB", colorsubsampling="420"
    )
    return _Made(encoded, *resized, pixels)


def _target_size(size: tuple[int, int], shorter_side: int | None) -> tuple[int, int]:
    """Return the size with the shorter side brought down to `shorter_side`; never up."""
    width, height = size
    shorter = min(size)
    if shorter_side is None or shorter <= shorter_side:
        return size
    longer = max(1, (2 * max(size) * shorter_side + shorter) // (2 * shorter))
    return (shorter_side, longer) if width <= height else (longer, shorter_side)


def _is_plain_jpeg(image: Image.Image) -> bool:
    """Whether an image is an 8-bit JPEG in grey or RGB whose colours need no conversion."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return False
    profile = image.info.get("icc_profile")
    return not profile or is_srgb(profile)


def _decode_jpeg(
    content: bytes, colours: Literal["RGB", "GRAY"], factor: float, at_least: tuple[int, int] = (1, 1)
) -> NDArray[np.uint8]:
    """Decode strictly: a stream with errors raises BadImage. Scaled down as (width, height) `at_least` allows."""
    options = {"colorspace": colours, "min_factor": factor, "min_width": at_least[0], "min_height": at_least[1]}
    problem = ""
    for _ in range(3):
        try:
            return np.asarray(simplejpeg.decode_jpeg(content, strict=True, **options), np.uint8)
        except ValueError as error:
            problem = str(error).splitlines()[0][:200]
        # Padding between segments, zeros at the end and odd profiles are no damage to the pixels: if that was all, it
        # decodes without them.
        padding = _PADDING.search(problem)
        if padding is not None and padding[2] == "d9":
            content = without_zeros_at_end(content, int(padding[1]))
        elif padding is not None or "ICC" in problem:
            content = without_metadata(content, profile=False)
        else:
            break
    raise BadImage(f"damaged JPEG: {problem}")


def _scaled(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bring pixels down to (width, height). The decoder has done most of it, in whole eighths."""
    if pixels.shape[:2] == size[::-1]:
        return pixels
    # For the rest a cubic filter comes nearest to Lanczos; where more is left, the area is averaged.
    near = pixels.shape[1] * 3 <= size[0] * 4 and pixels.shape[0] * 3 <= size[1] * 4
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC if near else cv2.INTER_AREA), np.uint8)


def _turned(pixels: NDArray[np.uint8], how: int) -> NDArray[np.uint8]:
    """Bring pixels upright, by EXIF orientation 1 to 8."""
    if how >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if how in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if how in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _perceptual_hash(sample: NDArray[np.uint8]) -> int | None:
    """Return the 64 bits of the image's pHash; None for a picture without any structure, which looks like any other."""
    import imagehash  # noqa: PLC0415 - brings scipy, which most runs do not need

    small = cv2.resize(sample, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    if int(small.max()) - int(small.min()) < 8:
        return None
    return int(str(imagehash.phash(Image.fromarray(small).convert("L"))), 16)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
