"""Which crops and captions a run visits: what there is to keep, as columns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everydream.caches.contents import UNKNOWN
from everydream.caches.keys import latent_key
from everydream.caches.store import Keys, as_keys
from everydream.data.buckets import Buckets
from everydream.data.drawing import TagRules, draw_caption
from everydream.data.fitting import Variants, choose_crop
from everydream.data.settings import DataSettings
from everydream.types import Crop, EpochPlan, Index

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Needed:
    """W different crops."""

    record_W: Ints
    bucket_W: Ints
    variant_W: Ints

    def __len__(self) -> int:
        return len(self.record_W)


def needed(plans: Iterable[EpochPlan], num_records: int, buckets: Buckets, variants: Variants | None) -> Needed:
    """Return what the plans visit, each crop once."""
    num, sizes = variants.num if variants is not None else 1, len(buckets.sizes)
    codes = np.zeros(0, np.int64)
    for plan in plans:
        bucket_K = np.repeat(plan.bucket_of_batch.astype(np.int64), np.diff(plan.batch_offsets))
        variant_K = (plan.epoch + plan.nth_K.astype(np.int64)) % num  # as `Variants.at`
        codes = np.union1d(codes, (plan.record_K * sizes + bucket_K) * num + variant_K)
        if len(codes) == num_records * len(buckets.shares) * num:
            break  # all that there is
    return Needed(codes // (sizes * num), codes // num % sizes, codes % num)


def crop_of(
    index: Index, needed: Needed, number: int, buckets: Buckets, variants: Variants | None, data: DataSettings
) -> Crop:
    """Return one of the crops, as the loader cuts it."""
    record, bucket = int(needed.record_W[number]), buckets.sizes[int(needed.bucket_W[number])]
    seed, flip_p = 0, float(index.flip_p_N[record])
    if variants is not None:
        seed, flip_p = variants.seed_and_flip(index.key(record), int(needed.variant_W[number]), flip_p)
    size = int(index.width_N[record]), int(index.height_N[record])
    return choose_crop(size, bucket, seed, data.crop, flip_p)


def latent_keys(
    index: Index,
    needed: Needed,
    buckets: Buckets,
    variants: Variants | None,
    data: DataSettings,
    contents_N: Keys,
    encoder: str,
    dtype: str,
) -> Keys:
    """Return the key of each crop; all zeros where the file cannot be read."""
    hashes = contents_N.tobytes()
    width = contents_N.itemsize
    keys = []
    for number, record in enumerate(needed.record_W.tolist()):
        content = hashes[record * width : (record + 1) * width]
        crop = crop_of(index, needed, number, buckets, variants, data)
        keys.append(bytes(width) if content == UNKNOWN else latent_key(content, crop, data.background, encoder, dtype))
    return as_keys(keys)


def needed_captions(index: Index, record_W: Ints) -> list[str]:
    """Return every caption that visits of these records may draw, each once, the empty one first."""
    found: dict[str, None] = {"": None}
    for record in np.unique(record_W).tolist():
        grammar = index.grammars[int(index.source_N[record])]
        for caption in captions_of(index, record):
            found[draw_caption([caption], 0, dropout=0.0, tags=TagRules(), grammar=grammar)] = None
    return list(found)


def captions_of(index: Index, record: int) -> Sequence[str]:
    """Return the captions of a record as they are written."""
    return index.captions[int(index.caption_offsets[record]) : int(index.caption_offsets[record + 1])]
