"""Indexes made of numbers, for plans without a single image."""

from collections.abc import Sequence

import numpy as np

from everydream.data.settings import SourceSettings
from everydream.types import Index


def make_index(
    per_source: Sequence[int],
    sizes: np.ndarray | None = None,
    multipliers: np.ndarray | None = None,
    batch_ids: np.ndarray | None = None,
) -> Index:
    """Return an index with so many images per source."""
    total = sum(per_source)
    source = np.repeat(np.arange(len(per_source)), per_source).astype(np.int16)
    sizes = np.full((total, 2), 512) if sizes is None else sizes
    return Index(
        roots=[f"/nowhere/{s}" for s in range(len(per_source))],
        names=[f"s{s}" for s in range(len(per_source))],
        source_N=source,
        paths=[f"{i:06d}.png" for i in range(total)],
        width_N=sizes[:, 0].astype(np.int32),
        height_N=sizes[:, 1].astype(np.int32),
        captions=["x"] * total,
        caption_offsets=np.arange(total + 1, dtype=np.int64),
        repeats_N=np.ones(total) if multipliers is None else multipliers,
        dropout_N=np.zeros(total),
        flip_p_N=np.zeros(total),
        loss_scale_N=np.ones(total),
        shuffle_tags_N=np.zeros(total, bool),
        keep_tags_N=np.zeros(total, np.int32),
        batch_id_N=np.zeros(total, np.int32) if batch_ids is None else batch_ids.astype(np.int32),
        batch_ids=["", "a", "b"],
        digest_N=np.zeros(total, np.uint64),
        masks={},
        wildcards=False,
        groups={},
        grammars=[False] * len(per_source),
        warnings={},
        rejected=[],
    )


def sources(*amounts: dict[str, float]) -> list[SourceSettings]:
    """Return one source setting per amount, e.g. {"share": 0.25}."""
    return [SourceSettings(path=f"s{n}", **amount) for n, amount in enumerate(amounts)]
