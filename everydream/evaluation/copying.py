"""How near a picture is to one that was trained on: by what it shows, by its structure, by a perceptual hash.

Rows of features find the nearest training image; the other two say how literally it is repeated. None of them is proof
of copying: look at the pair.
"""

from typing import Any

import imagehash
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch.nn import functional

Picture = NDArray[np.uint8]
HASH_BITS = 64
_ROWS = 1024


def nearest(features_ND: torch.Tensor, of_MD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (index_N into `of_MD`, cosine_N) of the row that points most nearly the same way; M is at least 1.

    Rows may have any length; one of zeros has cosine 0 with all. Of equally near ones the first is taken.
    """
    of = functional.normalize(of_MD.float(), dim=-1)
    found = [
        (functional.normalize(part.float(), dim=-1) @ of.T).max(dim=-1)
        for part in torch.split(features_ND, _ROWS)  # all against all would be N * M numbers at a time
    ]
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found]).clamp(-1.0, 1.0)


def ssim(a_HWC: Picture, b_HWC: Picture) -> float:
    """Return the structural similarity of two pictures, 1 for the same (Wang et al. 2004, IEEE TIP 13(4)).

    Of their brightness, over Gaussian windows of 11 pixels. If they differ in size, the second is scaled to cover the
    first and cut around its centre, as training does. Sides are at least 11 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415 - seconds

    first = Image.fromarray(a_HWC)
    second = Image.fromarray(b_HWC)
    if second.size != first.size:
        second = ImageOps.fit(second, first.size, Image.Resampling.BICUBIC)
    values = [torch.from_numpy(np.asarray(image.convert("L"), np.float32))[None, None] for image in (first, second)]
    found: Any = structural_similarity_index_measure(values[0], values[1], data_range=255.0)
    return float(found)


def hash_distance(a_HWC: Picture, b_HWC: Picture) -> int:
    """Return in how many of 64 bits the perceptual hashes differ: 0 for the same, about 32 for unrelated pictures.

    imagehash's phash: signs of the lowest frequencies of the brightness at 32 x 32 pixels.
    """
    first, second = (imagehash.phash(Image.fromarray(picture)) for picture in (a_HWC, b_HWC))
    return int(first - second)
