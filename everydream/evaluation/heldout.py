"""Which images the preservation monitor measures, and as what.

    ground truth of the run -> held out: never drawn in training      (the default)
    preservation.path       -> a folder of its own, nothing held out

The choice ranks images by a hash of their key, so another image more or less moves at most the last in the
ranking. An image is measured in the bucket nearest to its shape of all there are, not of those that the data
set filled: so its loss depends on itself, the seed and the settings alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everydream.data.buckets import Buckets, candidates
from everydream.data.mix import apportion
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.errors import ConfigError, DataError
from everydream.evaluation.settings import PreservationSettings
from everydream.seeding import derive
from everydream.types import Index

Ints = NDArray[np.int64]
OWN_SOURCE = "preservation.path"


@dataclass(frozen=True)
class Measured:
    """The images to measure."""

    index: Index
    """These alone; each with its first caption, and with nothing left to chance."""
    buckets: Buckets
    held_out: Ints
    """Which records of the run's index they are, in their order; empty for a folder of its own."""
    identities: Sequence[int]
    """What a loss can be compared by: it changes with the image, its caption, its bucket, its noise."""

    def sizes(self) -> list[tuple[int, int]]:
        """Return each image's bucket."""
        index = self.index
        return [self.buckets.sizes[int(bucket)] for bucket in self.buckets.assign(index.width_N, index.height_N)]


def measured_images(
    index: Index,
    settings: PreservationSettings,
    data: DataSettings,
    captions: CaptionSettings,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Measured | None:
    """Return what to measure, or None if nothing is asked for."""
    if not settings.images:
        return None
    if settings.path is None:
        held_out = hold_out(index, data.sources, settings.images, seed)
        return replace(measured_records(index, held_out, data, seed, settings.timesteps), held_out=held_out)
    own = _own_folder(settings.path, data, captions, progress)
    chosen = _first_by_rank(own, np.arange(len(own)), settings.images, seed)
    return measured_records(own, chosen, data, seed, settings.timesteps)


def measured_records(index: Index, records: Ints, data: DataSettings, seed: int, timesteps: int) -> Measured:
    """Return these records to measure, none of them held out of anything."""
    fixed = _with_nothing_left_to_chance(index, records)
    buckets = Buckets(tuple(candidates(data.resolution, data.step, data.max_aspect)))
    found = Measured(fixed, buckets, np.zeros(0, np.int64), [])
    identities = [
        derive(seed, "measured at quantiles", fixed.key(i), str(fixed.digest_N[i]), *size, data.background, timesteps)
        for i, size in enumerate(found.sizes())
    ]
    return replace(found, identities=identities)


def hold_out(index: Index, sources: Sequence[SourceSettings], wanted: int, seed: int) -> Ints:
    """Return the records to hold out: of ground truth, in proportion to the sources' sizes, at most half of each."""
    most = most_held_out(index, sources)
    # Never more than a source's half: divisor methods give each its whole weight at the sum of weights, and less below.
    shares = apportion(most, min(wanted, sum(most)))
    chosen = [_first_by_rank(index, _without_kin(index, number), share, seed) for number, share in enumerate(shares)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def most_held_out(index: Index, sources: Sequence[SourceSettings]) -> list[int]:
    """Return how many images of each source may be held out."""
    return [
        min(int((index.source_N == number).sum()) // 2, len(_without_kin(index, number)))
        if source.role == "ground_truth"
        else 0
        for number, source in enumerate(sources)
    ]


def _without_kin(index: Index, number: int) -> Ints:
    """Return a source's records that are in no group: of a crop that is held out, others of the photo would train."""
    records = np.flatnonzero(index.source_N == number)
    return np.array([record for record in records.tolist() if record not in index.groups], np.int64)


def require_enough(index: Index, sources: Sequence[SourceSettings], settings: PreservationSettings) -> None:
    """Raise ConfigError when more than half of the ground truth would be held out."""
    most = sum(most_held_out(index, sources))
    if settings.path is None and settings.images > most:
        raise ConfigError(
            f"preservation.images: {settings.images} images cannot be held out, for at most half of each ground-truth "
            f"source may be, here {most} in all; the rest is for training. Lower it, add ground truth, or name a "
            "folder of captioned images to measure under preservation.path."
        )


def shared_with_training(index: Index, sources: Sequence[SourceSettings]) -> list[tuple[int, int, int]]:
    """Return (training source, ground-truth source, how many files are in both) where the same files are in both."""
    found = []
    for a, training in enumerate(sources):
        for b, truth in enumerate(sources):
            roots = [Path(index.roots[a]), Path(index.roots[b])]
            nested = roots[0].is_relative_to(roots[1]) or roots[1].is_relative_to(roots[0])
            if (training.role, truth.role) == ("training", "ground_truth") and nested:
                num = len(_files(index, a) & _files(index, b))
                found += [(a, b, num)] if num else []
    return found


def _files(index: Index, source: int) -> set[Path]:
    root = Path(index.roots[source])
    return {root / index.paths[record] for record in np.flatnonzero(index.source_N == source).tolist()}


def _own_folder(
    path: str, data: DataSettings, captions: CaptionSettings, progress: Callable[[int, int], None] | None
) -> Index:
    own = data.model_copy(update={"sources": [SourceSettings(path=path, name=OWN_SOURCE)]})
    try:
        index = scan(own, captions, progress)
    except DataError as error:
        raise DataError(str(error).replace("data.sources.0", OWN_SOURCE)) from error
    if not len(index):
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in index.rejected[:3])
        raise DataError(f"{OWN_SOURCE}: no usable image in {path}. Put captioned images there or take it out.{reasons}")
    return index


def _first_by_rank(index: Index, records: Ints, wanted: int, seed: int) -> Ints:
    """Return the `wanted` records that come first by a hash of their keys, in the index's order."""
    ranked = sorted(records.tolist(), key=lambda record: derive(seed, "held_out", index.key(record)))
    return np.array(sorted(ranked[:wanted]), np.int64)


def _with_nothing_left_to_chance(index: Index, records: Ints) -> Index:
    """Return an index of these records: their first captions, no dropout, no shuffling, no flips."""
    num = len(records)
    return replace(
        index,
        source_N=index.source_N[records],
        paths=[index.paths[record] for record in records],
        width_N=index.width_N[records],
        height_N=index.height_N[records],
        captions=[index.captions[int(index.caption_offsets[record])] for record in records],
        caption_offsets=np.arange(num + 1, dtype=np.int64),
        repeats_N=np.ones(num),
        dropout_N=np.zeros(num),
        flip_p_N=np.zeros(num),
        loss_scale_N=np.ones(num),
        shuffle_tags_N=np.zeros(num, np.bool_),
        keep_tags_N=np.zeros(num, np.int32),
        batch_id_N=np.zeros(num, np.int32),
        digest_N=index.digest_N[records],
        masks={},  # what is kept is asked of whole pictures
        groups={},
        warnings={},
    )
