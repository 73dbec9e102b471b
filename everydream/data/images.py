"""From an image file to pixels: nothing is guessed, and whatever Pillow raises becomes `BadImage` with a reason.

Pixels are always 8-bit sRGB, upright, on an opaque background. `probe` reads headers only; `decode` decodes; `fit`
cuts decoded pixels to a bucket. Files are told apart by content; only formats of `EXTENSIONS` are ever opened, so
that a misnamed EPS cannot start Ghostscript.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from everydream.data.sniff import describe
from everydream.seeding import derive
from everydream.types import Crop

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


def read_header(path: Path) -> tuple[int, int]:
    """Return (width, height) after EXIF orientation without decoding; `BadImage` if there is no image."""
    found = probe(path)
    return found.width, found.height


def probe(path: Path, max_megapixels: float | None = None) -> Probe:
    """Read the header, refusing images of more than `max_megapixels`."""
    with _opened(path, max_megapixels) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        return Probe(width, height, image.format or "", _has_more_frames(image))


def decode(path: Path, background: str = "#ffffff", max_megapixels: float | None = None) -> NDArray[np.uint8]:
    """Return the pixels as HWC RGB; every way in which that can fail is `BadImage`.

    Depths beyond 8 bits are scaled (see `_to_8_bits`), CMYK, LAB and embedded profiles are brought to sRGB,
    transparency is composited on `background`, and of an animation the first frame is taken.
    """
    with _opened(path, max_megapixels) as image:
        orientation = _orientation(image)  # before load(), so that `probe` sees the same
        image.load()
        upright = _flatten(_to_8_bits(image), background)
        if orientation in _UPRIGHT:
            upright = upright.transpose(_UPRIGHT[orientation])
        return np.array(upright, dtype=np.uint8)


def fit(
    pixels_HWC: NDArray[np.uint8],
    bucket: tuple[int, int],
    seed: int,
    crop_mode: Literal["random", "center"],
    flip_p: float,
) -> tuple[NDArray[np.uint8], Crop]:
    """Resize to cover `bucket` (width, height), mirror or not, and crop; return CHW pixels and where they come from.

    Both axes are scaled alike, up to rounding, so that one side equals the bucket's and the other is at least as
    long. The mirroring comes before the crop: `top` and `left` are offsets inside the resized, already mirrored
    image, and hold for the image as the model sees it.
    """
    height, width = pixels_HWC.shape[:2]
    cover = cover_size((width, height), bucket)
    flipped = (derive(seed, "flip") >> 10) / 2**53 < flip_p
    top = _offset(cover[1] - bucket[1], derive(seed, "crop", "top"), crop_mode)
    left = _offset(cover[0] - bucket[0], derive(seed, "crop", "left"), crop_mode)
    left_unflipped = cover[0] - bucket[0] - left if flipped else left
    cropped_HWC = _resized_window(pixels_HWC, cover, (left_unflipped, top), bucket)
    if flipped:
        cropped_HWC = cropped_HWC[:, ::-1]
    crop = Crop((height, width), top, left, (bucket[1], bucket[0]), flipped)
    return np.ascontiguousarray(cropped_HWC.transpose(2, 0, 1)), crop


def _resized_window(
    pixels_HWC: NDArray[np.uint8], cover: tuple[int, int], corner: tuple[int, int], window: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the window of the image resized to `cover`, without computing the rest.

    The filter still sees what lies around the window. Computing all of it would take 190 GB for an image of
    60000 x 1 pixels. From a shrinking factor of 6 on, a box filter does the first part: no visible difference.
    """
    height, width = pixels_HWC.shape[:2]
    (left, top), (right, bottom) = corner, (corner[0] + window[0], corner[1] + window[1])
    if cover == (width, height):
        return pixels_HWC[top:bottom, left:right]
    box = (left * width / cover[0], top * height / cover[1], right * width / cover[0], bottom * height / cover[1])
    image = Image.fromarray(pixels_HWC).resize(window, Image.Resampling.LANCZOS, box=box, reducing_gap=3)
    return np.asarray(image)


def cover_size(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (width, height) of the shape of `size` that covers `bucket`; integers, so exact."""
    (width, height), (bucket_width, bucket_height) = size, bucket
    if width * bucket_height >= height * bucket_width:
        return max(bucket_width, (2 * width * bucket_height + height) // (2 * height)), bucket_height
    return bucket_width, max(bucket_height, (2 * height * bucket_width + width) // (2 * width))


def _offset(room: int, draw: int, crop_mode: str) -> int:
    return room // 2 if crop_mode == "center" else draw % (room + 1)


# Opening


@contextlib.contextmanager
def _opened(path: Path, max_megapixels: float | None) -> Iterator[Image.Image]:
    """Open an image of acceptable size; whatever Pillow raises, now or inside the block, is `BadImage`."""
    try:
        with _pillow_left_to_us(), Image.open(path, formats=_formats()) as image:
            _check_size(image.size, max_megapixels)
            yield image
    except BadImage:
        raise
    except Exception as error:
        # Pillow's plug-ins raise eight and more kinds of exception on damaged files, and none may end a run.
        raise BadImage(describe(path, error)) from error


def _check_size(size: tuple[int, int], max_megapixels: float | None) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise BadImage(f"damaged: its size is {width} x {height}")
    if max_megapixels is not None and width * height > max_megapixels * 1e6:
        raise BadImage(f"too large: {width} x {height} = {width * height / 1e6:,.0f} megapixels, "
                       f"the limit is {max_megapixels:g} (data.max_megapixels)")  # fmt: skip


class _Shared:
    """How many threads are inside `_pillow_left_to_us`, and what it has to put back."""

    lock = threading.Lock()
    depth = 0
    restore = contextlib.ExitStack()


@contextlib.contextmanager
def _pillow_left_to_us() -> Iterator[None]:
    """Silence Pillow's warnings about odd files and switch off its pixel limit, which `max_megapixels` replaces.

    Both are process-wide, and the scan decodes in threads: the first to enter changes them, the last restores them.
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


def _has_heif() -> bool:
    try:
        import pillow_heif  # noqa: PLC0415 - an optional plug-in, looked for only here
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _orientation(image: Image.Image) -> int:
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


# Colour


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale depths beyond 8 bits instead of clipping them.

    `I;16*`: 65535 is white. `I` and `F` say no range, so the largest value tells: up to 255 (for `F` up to 1) the
    range is 255 (1), up to 65535 it is 65535, beyond that the largest value is white. Negative and NaN are black.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values_HW = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:
        largest = float(values_HW.max())
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((step for step in steps if largest <= step), largest)
    scaled = Image.fromarray((np.clip(values_HW / white, 0, 1) * 255 + 0.5).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(values_HW == transparent, 0, 255).astype(np.uint8)))
    return scaled


def _flatten(image: Image.Image, background: str) -> Image.Image:
    """Bring the colours to sRGB and composite what is transparent on the background."""
    if not image.has_transparency_data:
        return _to_srgb(image, image.info.get("icc_profile"))
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    profile = image.info.get("icc_profile") if _profile_space(image) == "RGB" else None
    canvas.paste(_to_srgb(rgba.convert("RGB"), profile), mask=rgba.getchannel("A"))
    return canvas


def _profile_space(image: Image.Image) -> str:
    return "GRAY" if image.mode in ("L", "LA", "La", "1") else "CMYK" if image.mode == "CMYK" else "RGB"


_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to RGB by the embedded profile, if there is a sound one for this mode, else as Pillow does."""
    if image.mode == "P":
        image = image.convert("RGB")
    try:
        if image.mode == "LAB":
            return _through_profile(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
        if profile:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = embedded.profile.xcolor_space.strip()
            is_srgb = (embedded.profile.profile_description or "").strip().startswith("sRGB")
            if space == _SPACES.get(image.mode) and not is_srgb:
                return _through_profile(image, embedded)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        pass  # a broken profile is no reason to lose the image
    return image.convert("RGB")


def _through_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert converted is not None, "only in-place conversion returns None"
    return converted
