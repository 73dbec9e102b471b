"""The measures of copying: a copy is found and told from a stranger."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from everydream.evaluation.copying import hash_distance, nearest, ssim

Picture = NDArray[np.uint8]


def smooth(seed: int, size: tuple[int, int] = (64, 96)) -> Picture:
    """Return a picture of soft colours, as photos have."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def test_nearest_is_the_most_nearly_parallel_row_whatever_its_length() -> None:
    torch.manual_seed(0)
    of_MD = torch.randn(7, 16)
    index_N, cosine_N = nearest(torch.cat([3.0 * of_MD[[4, 2]], -of_MD[[1]], torch.zeros(1, 16)]), of_MD)
    assert index_N[:2].tolist() == [4, 2]
    torch.testing.assert_close(cosine_N[:2], torch.ones(2))
    assert cosine_N[2] < 0.9 and cosine_N[3] == 0.0
    many = torch.randn(1500, 16)
    expected = torch.nn.functional.cosine_similarity(many[:, None], of_MD[None], dim=-1).max(dim=1)
    torch.testing.assert_close(nearest(many, of_MD)[1], expected.values)


def _by_the_paper(a: NDArray[Any], b: NDArray[Any]) -> float:
    """SSIM as the paper's equation 13 has it, around every pixel, mirrored at the borders."""

    def mean(x: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(gaussian_filter(x, 1.5, truncate=5 / 1.5, mode="mirror"))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return float((above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def test_ssim_is_the_papers() -> None:
    a, b = smooth(1), smooth(2)
    grey = [np.asarray(Image.fromarray(picture).convert("L"), np.float64) for picture in (a, b)]
    assert ssim(a, b) == pytest.approx(_by_the_paper(*grey), abs=2e-3)
    assert ssim(a, a) == pytest.approx(1.0)


def test_a_copy_of_another_size_is_told_from_a_stranger() -> None:
    picture = smooth(3, (64, 64))
    copy = np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC))
    noisy = np.clip(picture.astype(int) + np.random.default_rng(0).integers(-6, 7, picture.shape), 0, 255)
    assert ssim(picture, copy) > 0.98
    assert ssim(picture, smooth(4, (96, 96))) < 0.6
    assert hash_distance(picture, picture) == 0
    assert max(hash_distance(picture, copy), hash_distance(picture, noisy.astype(np.uint8))) <= 6
    assert hash_distance(picture, smooth(4)) >= 16
