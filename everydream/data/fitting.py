"""From decoded pixels to a bucket's: resize to cover it, mirror or not, and crop."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everydream.seeding import derive
from everydream.types import Crop


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
    crop = choose_crop((width, height), bucket, seed, crop_mode, flip_p)
    return np.ascontiguousarray(cut(pixels_HWC, crop).transpose(2, 0, 1)), crop


def choose_crop(
    size: tuple[int, int], bucket: tuple[int, int], seed: int, crop_mode: Literal["random", "center"], flip_p: float
) -> Crop:
    """Return where `fit` cuts an image of (width, height) `size`."""
    cover = cover_size(size, bucket)
    top = _offset(cover[1] - bucket[1], derive(seed, "crop", "top"), crop_mode)
    left = _offset(cover[0] - bucket[0], derive(seed, "crop", "left"), crop_mode)
    return Crop((size[1], size[0]), top, left, (bucket[1], bucket[0]), _uniform(seed, "flip") < flip_p)


@dataclass(frozen=True)
class Variants:
    """So many crops and mirrorings of each image, which its visits take in turn, in the place of endlessly many.

    They are the same whatever the run's seed, so that runs share what caches have of them.
    """

    num: int

    def at(self, epoch: int, nth: int) -> int:
        """Return which of them the nth visit of an epoch takes."""
        return (epoch + nth) % self.num

    def seed_and_flip(self, key: str, variant: int, flip_p: float) -> tuple[int, float]:
        """Return the seed and the flip_p (0 or 1) that `fit` takes for a variant of the image called `key`.

        A share flip_p of an image's variants is mirrored, to the nearest whole one.
        """
        place = (_uniform(derive(0, "variants", key), "flip") + variant / self.num) % 1.0
        return derive(0, "variant", key, variant), float(place < flip_p)


def _uniform(seed: int, purpose: str) -> float:
    return (derive(seed, purpose) >> 10) / 2**53


def cut(pixels: NDArray[np.uint8], crop: Crop) -> NDArray[np.uint8]:
    """Return what `crop` takes of an image (HWC), or of a mask (HW) of it in whatever size."""
    (height, width), target = crop.original_size, (crop.target_size[1], crop.target_size[0])
    cover = cover_size((width, height), target)
    left = cover[0] - target[0] - crop.left if crop.flipped else crop.left
    window = _resized_window(pixels, cover, (left, crop.top), target)
    return np.ascontiguousarray(window[:, ::-1] if crop.flipped else window)


def _resized_window(
    pixels: NDArray[np.uint8], cover: tuple[int, int], corner: tuple[int, int], window: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the window of the image resized to `cover`, without computing the rest.

    The filter still sees what lies around the window. Computing all of it would take 190 GB for an image of
    60000 x 1 pixels. From a shrinking factor of 6 on, a box filter does the first part: no visible difference.
    """
    height, width = pixels.shape[:2]
    (left, top), (right, bottom) = corner, (corner[0] + window[0], corner[1] + window[1])
    if cover == (width, height):
        return pixels[top:bottom, left:right]
    box = (left * width / cover[0], top * height / cover[1], right * width / cover[0], bottom * height / cover[1])
    image = Image.fromarray(pixels).resize(window, Image.Resampling.LANCZOS, box=box, reducing_gap=3)
    return np.asarray(image)


def cover_size(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (width, height) of the shape of `size` that covers `bucket`; integers, so exact."""
    (width, height), (bucket_width, bucket_height) = size, bucket
    if width * bucket_height >= height * bucket_width:
        return max(bucket_width, (2 * width * bucket_height + height) // (2 * height)), bucket_height
    return bucket_width, max(bucket_height, (2 * height * bucket_width + width) // (2 * width))


def _offset(room: int, draw: int, crop_mode: str) -> int:
    return room // 2 if crop_mode == "center" else draw % (room + 1)
