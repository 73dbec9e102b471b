"""Several resolutions in one run: exact shares, fair to each image, buckets of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_images, metrics_of, train_here
from data.synthetic import make_index, sources

from everydream.config import load_config
from everydream.data.buckets import Buckets, candidates, choose_buckets, joined, resolution_of_draws
from everydream.data.mix import make_mix
from everydream.data.plan import count_steps, plan_epoch
from everydream.errors import ConfigError
from everydream.plan import plan_run
from everydream.report.inspection import inspect_report
from everydream.report.outline import describe_buckets

SHARES = (0.5, 0.3, 0.2)


def three_resolutions(index: Any) -> Buckets:
    return joined(
        [
            choose_buckets(
                index.width_N, index.height_N, np.ones(len(index)) * share, resolution=side, step=64, max_aspect=4.0,
                batch_size=4,
            )
            for side, share in zip((512, 768, 1024), SHARES, strict=True)
        ],
        SHARES,
    )  # fmt: skip


@pytest.mark.parametrize("repeats", [1.0, 3.0, 0.7])
def test_each_resolution_gets_its_share_of_every_epoch_and_of_every_image(repeats: float) -> None:
    rng = np.random.default_rng(0)
    num, epochs = 200, 40
    index = make_index([num], rng.integers(300, 3000, (num, 2)))
    mix, buckets = make_mix(index, sources({"repeats": repeats}), 3), three_resolutions(index)
    seen_NR = np.zeros((num, 3))
    for epoch in range(epochs):
        plan = plan_epoch(index, mix, buckets, seed=3, epoch=epoch, batch_size=4, accumulation=2)
        again = plan_epoch(index, mix, buckets, seed=3, epoch=epoch, batch_size=4, accumulation=2)
        assert (plan.record_K == again.record_K).all() and (plan.bucket_of_batch == again.bucket_of_batch).all()
        assert plan.num_steps == count_steps(index, mix, buckets, seed=3, epoch=epoch, batch_size=4, accumulation=2)
        bucket_K = np.repeat(plan.bucket_of_batch, np.diff(plan.batch_offsets))
        resolution_K = np.searchsorted(buckets.starts, bucket_K, side="right") - 1
        counts = np.bincount(resolution_K, minlength=3)
        assert np.abs(counts - np.array(SHARES) * len(plan.record_K)).max() <= 1
        np.add.at(seen_NR, (plan.record_K, resolution_K), 1)
        for record, bucket, nth in zip(plan.record_K, bucket_K, resolution_K, strict=True):
            assert bucket == buckets.assign(index.width_N, index.height_N, int(nth))[record]
    parts_NR = seen_NR / seen_NR.sum(1, keepdims=True)
    assert np.abs(parts_NR - SHARES).max() < 0.18, "no image is kept to one resolution"


def test_another_seed_gives_other_draws_their_resolution() -> None:
    buckets = joined([Buckets(((512, 512),)), Buckets(((768, 768),))], (0.5, 0.5))
    record_K, nth_K = np.arange(100), np.zeros(100, np.int32)
    first, second = (resolution_of_draws(buckets, record_K, nth_K, seed, 0) for seed in (1, 2))
    assert first.sum() == second.sum() == 50 and (first != second).any()


@pytest.mark.parametrize("resolution", [256, 512, 768, 1024, 1152, 1536])
def test_every_bucket_keeps_the_area(resolution: int) -> None:
    """Defects 13 and 23: elsewhere 69 % or 143 % of the area, and 576x640 where 128x576 was asked for."""
    step = max(8, min(64, resolution // 64 * 8))
    for width, height in candidates(resolution, step, 4.0):
        assert width % step == height % step == 0
        nearest = max(step, round(resolution**2 / min(width, height) / step) * step)
        assert max(width, height) in (nearest, min(width, height))
        assert 0.75 < width * height / resolution**2 < 1.25, (width, height)


def test_a_run_of_two_resolutions_trains_and_says_so(project: Any, tmp_path: Path) -> None:
    make_images(tmp_path / "mine", 6, ((160, 96), (96, 160), (128, 128)), seed=1)
    also = {"resolution": 96, "share": 0.25}
    config = project(data={"also_at": [also]}, train={"epochs": 1})
    planned = plan_run(load_config(config))
    lines = describe_buckets(planned)
    areas = [width * height for width, height in planned.buckets.sizes]
    assert len(lines) == len(areas) and min(areas) < 64**2 * 1.25 and max(areas) > 96**2 * 0.75
    draws = [int(line.partition(" images, ")[2].split()[0]) for line in lines]
    assert sum(draws) == len(planned.epoch(0).record_K)
    report = inspect_report(planned, lambda caption: 5)
    assert all(len(entry["also_in"]) == 1 for entry in report["images"])
    sizes = {tuple(entry["also_in"][0]) for entry in report["images"]}
    assert all(0.75 < width * height / 96**2 < 1.25 for width, height in sizes)
    assert len(metrics_of(train_here(config))) == planned.total_steps


@pytest.mark.parametrize(("also", "message"), [
    ([{"resolution": 96, "share": 0.6}, {"resolution": 128, "share": 0.5}], "nothing is left for `resolution`"),
    ([{"resolution": 64, "share": 0.5}], "64, 64 are not all different"),
    ([{"resolution": 96}], "data.also_at.0.share: missing"),
])  # fmt: skip
def test_shares_that_cannot_be(project: Any, also: list[dict[str, float]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(project(data={"also_at": also}))
