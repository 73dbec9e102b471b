"""Masks: which part of an image trains, white all of it, black nothing, grey so much.

`photo.mask.png` beside `photo.jpg`, of the same shape and any size; or, with `masks: alpha`, an image's own opacity.
A file of that name beside its image is never an image itself.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everydream.data.shards import picture_at
from pictures.decode import BadImage, Probe, decode, decode_for, image_extensions, probe

SUFFIX = ".mask.png"
_SHAPE_TOLERANCE = 0.02
"""Of log aspect: masks of other sizes are a pixel off at most."""


def masks_among(files: Sequence[str]) -> dict[str, str]:
    """Return {stem of an image: its mask} of a folder's files."""
    masks = {name[: -len(SUFFIX)]: name for name in files if name.lower().endswith(SUFFIX)}
    if not masks:
        return {}
    extensions = image_extensions()
    ends = [os.path.splitext(name) for name in files]  # noqa: PTH122 - pathlib is slow on 10**6 names
    stems = {stem for stem, extension in ends if extension.lower() in extensions}
    return {stem: mask for stem, mask in masks.items() if stem in stems}


def read_mask(path: Path, max_megapixels: float) -> NDArray[np.uint8]:
    """Return a mask file's pixels as HW. Raises BadImage, which names it."""
    try:
        rgb_HWC = decode(picture_at(path), "#000000", max_megapixels)
    except BadImage as error:
        raise BadImage(f"its mask {path.name} is no use: {error}") from error
    mean_HW: NDArray[np.uint8] = (rgb_HWC.mean(2) + 0.5).astype(np.uint8)
    return mean_HW


def require_sound_mask(path: Path, image: Probe, max_megapixels: float, full: bool) -> None:
    """Raise BadImage for a mask that cannot be read or belongs to another shape; `full`: or that masks everything."""
    try:
        mask = probe(picture_at(path), max_megapixels)
    except BadImage as error:
        raise BadImage(f"its mask {path.name} is no use: {error}") from error
    if abs(math.log(mask.width / mask.height) - math.log(image.width / image.height)) > _SHAPE_TOLERANCE:
        raise BadImage(
            f"its mask {path.name} has another shape: {mask.width} x {mask.height}, "
            f"the image {image.width} x {image.height}"
        )
    if full and not read_mask(path, max_megapixels).any():
        raise BadImage(f"its mask {path.name} is black all over, so nothing of it would train")


def require_opacity(path: Path, max_megapixels: float) -> None:
    """Raise BadImage for an image whose own opacity masks everything."""
    alpha_HW = decode_for(picture_at(path), max_megapixels=max_megapixels, with_alpha=True).alpha_HW
    if alpha_HW is not None and not alpha_HW.any():
        raise BadImage("transparent all over, so with data.masks: alpha nothing of it would train")
