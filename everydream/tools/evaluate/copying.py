"""Each picture's nearest training image, and how literally the picture repeats it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional

from everydream.evaluation.copying import hash_distance, nearest, ssim
from everydream.tools.evaluate.measures import Measure, mean
from pictures.decode import decode

_SIDE_PX = 32
NEAR_HASH = 8
"""Bits of 64; pictures that differ in so few are nearly always versions of one."""


@dataclass(frozen=True)
class Pair:
    """A picture with the training image that it is nearest to."""

    picture: Path
    training: Path
    cosine: float
    ssim: float
    hash_distance: int


def pixel_rows(images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    """Return rows (N, D) of length 1 of the pixels themselves at 32 x 32, without their mean: without a network."""
    size = (_SIDE_PX, _SIDE_PX)
    small = [ImageOps.fit(Image.fromarray(image), size, Image.Resampling.BOX) for image in images]
    rows = torch.from_numpy(np.stack([np.asarray(image, np.float32).reshape(-1) for image in small]))
    return functional.normalize(rows - rows.mean(-1, keepdim=True), dim=-1)


def pairs(
    paths: Sequence[Path], rows_ND: torch.Tensor, training: Sequence[Path], training_MD: torch.Tensor
) -> list[Pair]:
    """Return each picture's pair, the most literal one first."""
    index_N, cosine_N = nearest(rows_ND, training_MD)
    found = []
    for path, number, cosine in zip(paths, index_N.tolist(), cosine_N.tolist(), strict=True):
        picture, original = decode(path), decode(training[number])
        found.append(Pair(path, training[number], cosine, ssim(picture, original), hash_distance(picture, original)))
    return sorted(found, key=lambda pair: (pair.hash_distance, -pair.ssim, -pair.cosine))


def numbers(found: Sequence[Pair]) -> dict[str, Measure]:
    """Return the means over all pictures, and the share that is nearly the same as a training image."""
    columns: dict[str, list[float]] = {
        "nearest cosine": [pair.cosine for pair in found],
        "nearest SSIM": [pair.ssim for pair in found],
        "hash bits": [float(pair.hash_distance) for pair in found],
    }
    copies = sum(pair.hash_distance <= NEAR_HASH for pair in found)
    means = {name: mean(torch.tensor(values)) for name, values in columns.items()}
    return {**means, "near copies %": Measure(100.0 * copies / max(len(found), 1))}
