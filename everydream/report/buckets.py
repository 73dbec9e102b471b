"""The bucket map: what falls into each bucket, what it crops away, what is enlarged, what is left over."""

from typing import Any

import numpy as np

from everydream.data.fitting import cover_size
from everydream.plan import Planned


def bucket_map(planned: Planned) -> list[dict[str, Any]]:
    """Return for each bucket in use: size, images, draws of the first epoch, left-over draws, shares cropped, enlarged.

    `left_over` draws form one smaller batch. Shares are of an image's area, 0 .. 1.
    """
    index, plan, buckets = planned.index, planned.epoch(0), planned.buckets
    sizes = np.diff(plan.batch_offsets)
    draws = np.bincount(plan.bucket_of_batch, sizes, len(buckets.sizes)).astype(int)
    short = np.where(sizes < planned.config.train.batch_size, sizes, 0)
    left_over = np.bincount(plan.bucket_of_batch, short, len(buckets.sizes)).astype(int)
    trained_N = ~planned.held_out()
    bucket_RN = [buckets.assign(index.width_N, index.height_N, nth) for nth in range(len(buckets.shares))]
    log_aspect_N = np.log(index.width_N / index.height_N)
    found = []
    for number, (width, height) in enumerate(buckets.sizes):
        mine_N = np.any([bucket_N == number for bucket_N in bucket_RN], axis=0) & trained_N
        if not mine_N.any():
            continue
        lost = 1 - np.exp(-np.abs(log_aspect_N[mine_N] - np.log(width / height)))
        enlarged = np.maximum(width / index.width_N[mine_N], height / index.height_N[mine_N]) > 1
        found.append({
            "size": [width, height],
            "images": int(mine_N.sum()),
            "draws": int(draws[number]),
            "left_over": int(left_over[number]),
            "cropped_mean": round(float(lost.mean()), 4),
            "cropped_most": round(float(lost.max()), 4),
            "enlarged": int(enlarged.sum()),
        })  # fmt: skip
    return found


def crop_window(size: tuple[int, int], bucket: tuple[int, int]) -> list[float]:
    """Return [left, top, width, height] of the middle crop as shares of the image's sides, for drawing it."""
    cover = cover_size(size, bucket)
    width, height = bucket[0] / cover[0], bucket[1] / cover[1]
    return [round(value, 4) for value in ((1 - width) / 2, (1 - height) / 2, width, height)]
