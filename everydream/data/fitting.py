"""From a file to a bucket's pixels: resize to cover it, mirror or not, and crop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from everydream.seeding import derive
from everydream.types import Crop
from pictures.decode import Source, decode_for

_SPARE = 2
"""With so many decoded pixels for each that is kept, along each axis, reduced decoding is close to full (a test)."""
_MOST_UNUSED = 4
"""Times the window's area; a bucket seldom leaves more than a third of a picture out."""


def read_cut(
    picture: Source,
    crop_at: Callable[[tuple[int, int]], Crop],
    background: str,
    max_megapixels: float,
    with_alpha: bool = False,
) -> tuple[NDArray[np.uint8], Crop, NDArray[np.uint8] | None]:
    """Return what a crop takes of a file (CHW, a view), the crop, and all of its opacity (HW). Raises BadImage.

    All pixels that are trained on or kept come through here. `crop_at`: an image's (width, height) -> the crop. A JPEG
    is decoded at reduced size where that still leaves _SPARE times the pixels of the crop along each axis.
    """

    def enough(size: tuple[int, int]) -> tuple[int, int]:
        width, height = cover_size(size, _bucket(crop_at(size)))
        return _SPARE * width, _SPARE * height

    found = decode_for(picture, background, max_megapixels, enough, with_alpha)
    crop = crop_at(found.size)
    return cut(found.pixels_HWC, crop).transpose(2, 0, 1), crop, found.alpha_HW


def choose_crop(
    size: tuple[int, int], bucket: tuple[int, int], seed: int, crop_mode: Literal["random", "center"], flip_p: float
) -> Crop:
    """Return where an image of (width, height) `size` is cut: resized to cover `bucket`, mirrored or not, and cropped.

    Both axes are scaled alike, up to rounding, so that one side equals the bucket's and the other is at least as
    long. The mirroring comes before the crop: `top` and `left` are offsets inside the resized, already mirrored
    image, and hold for the image as the model sees it.
    """
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
        """Return the seed and the flip_p (0 or 1) of `choose_crop` for a variant of the image called `key`.

        A share flip_p of an image's variants is mirrored, to the nearest whole one.
        """
        place = (_uniform(derive(0, "variants", key), "flip") + variant / self.num) % 1.0
        return derive(0, "variant", key, variant), float(place < flip_p)


def _uniform(seed: int, purpose: str) -> float:
    return (derive(seed, purpose) >> 10) / 2**53


def cut(pixels: NDArray[np.uint8], crop: Crop) -> NDArray[np.uint8]:
    """Return what `crop` takes of an image (HWC), or of a mask (HW) of it, of whatever size; it may be a view."""
    target = _bucket(crop)
    cover = cover_size(crop.original_size[::-1], target)
    left = cover[0] - target[0] - crop.left if crop.flipped else crop.left
    window = _resized_window(pixels, cover, (left, crop.top), target)
    # By PyTorch, which is ten times as fast as numpy's copy of what runs backwards.
    return torch.from_numpy(window).flip(1).numpy() if crop.flipped else window


def _bucket(crop: Crop) -> tuple[int, int]:
    return crop.target_size[1], crop.target_size[0]


def _resized_window(
    pixels: NDArray[np.uint8], cover: tuple[int, int], corner: tuple[int, int], window: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the window of the image resized to `cover` by an antialiased cubic filter, at most one step in 255 off.

    PyTorch's is by far the fastest, but knows no window. Where hardly anything of the whole would be used (of an image
    of 60000 x 1 pixels the whole would take 190 GB), Pillow's computes the window alone; it sees what lies around.
    """
    height, width = pixels.shape[:2]
    (left, top), (right, bottom) = corner, (corner[0] + window[0], corner[1] + window[1])
    if cover == (width, height):
        return pixels[top:bottom, left:right]
    if cover[0] * cover[1] > _MOST_UNUSED * window[0] * window[1]:
        box = (left * width / cover[0], top * height / cover[1], right * width / cover[0], bottom * height / cover[1])
        return np.array(Image.fromarray(pixels).resize(window, Image.Resampling.BICUBIC, box=box))
    # Channels last, batch axis first: any other layout is copied before it is resized.
    whole_1CHW = torch.from_numpy(pixels.reshape(1, height, width, -1)).permute(0, 3, 1, 2)
    resized_1CHW = functional.interpolate(whole_1CHW, cover[::-1], mode="bicubic", antialias=True)
    resized = resized_1CHW[0].permute(1, 2, 0).numpy()
    return (resized if pixels.ndim == 3 else resized[:, :, 0])[top:bottom, left:right]


def cover_size(size: tuple[int, int], bucket: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest (width, height) of the shape of `size` that covers `bucket`; integers, so exact."""
    (width, height), (bucket_width, bucket_height) = size, bucket
    if width * bucket_height >= height * bucket_width:
        return max(bucket_width, (2 * width * bucket_height + height) // (2 * height)), bucket_height
    return bucket_width, max(bucket_height, (2 * height * bucket_width + width) // (2 * width))


def _offset(room: int, draw: int, crop_mode: str) -> int:
    return room // 2 if crop_mode == "center" else draw % (room + 1)
