"""Which images the monitors measure, and as what.

    preservation  ground truth of the run, held out: never drawn in training
    validation    training images, held out with everything that shows the same picture
    train         as many training images that are not held out: what is learned by heart is learned on these alone
    their path    -> a folder of its own, nothing held out

The choice ranks images by a hash of their key, so another image more or less moves at most the last in the
ranking. An image is measured in the bucket nearest to its shape of all there are, not of those that the data
set filled: so its loss depends on itself, the seed and the settings alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from everydream.data.buckets import Buckets, candidates
from everydream.data.likeness import components
from everydream.data.mix import apportion
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.errors import ConfigError, DataError
from everydream.evaluation.settings import PreservationSettings, ValidationSettings
from everydream.seeding import derive
from everydream.types import Index

Ints = NDArray[np.int64]
Monitored = Literal["preservation", "validation"]
Role = Literal["training", "ground_truth", "class"]
OWN_SOURCE: dict[Monitored, str] = {"preservation": "preservation.path", "validation": "validation.path"}
_ROLE: dict[Monitored, Role] = {"preservation": "ground_truth", "validation": "training"}
_CALLED = {"preservation": ("ground-truth", "ground truth"), "validation": ("training", "images")}


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


def watched_images(
    index: Index,
    wanted: Mapping[Monitored, PreservationSettings | ValidationSettings],
    data: DataSettings,
    captions: CaptionSettings,
    seed: int,
    kin: Sequence[Sequence[int]] = (),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Measured]:
    """Return what to measure, by monitor; `kin`: records that show the same picture and are held out together."""
    found: dict[str, Measured] = {}
    for name, settings in wanted.items():
        if not settings.images:
            continue
        if settings.path is not None:
            own = _own_folder(settings.path, OWN_SOURCE[name], data, captions, progress)
            chosen = _first_by_rank(own, np.arange(len(own)), settings.images, seed)
            found[name] = measured_records(own, chosen, data, seed, settings.timesteps)
        else:
            held_out = hold_out(index, data.sources, _ROLE[name], settings.images, seed, kin)
            measured = measured_records(index, held_out, data, seed, settings.timesteps)
            found[name] = replace(measured, held_out=held_out)
    if "validation" in found:
        aside = {record for measured in found.values() for record in measured.held_out.tolist()}
        trained = np.array([r for r in of_role(index, data.sources, "training").tolist() if r not in aside], np.int64)
        beside = _first_by_rank(index, trained, len(found["validation"].index), seed)
        found["train"] = measured_records(index, beside, data, seed, wanted["validation"].timesteps)
    return found


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


def hold_out(
    index: Index,
    sources: Sequence[SourceSettings],
    role: Role,
    wanted: int,
    seed: int,
    kin: Sequence[Sequence[int]] = (),
) -> Ints:
    """Return the records to hold out: of a role, in proportion to the sources' sizes, at most half of each."""
    units = _units(index, sources, role, kin)
    most = [_most(index, number, mine) for number, mine in enumerate(units)]
    # Never more than a source's half: divisor methods give each its whole weight at the sum of weights, and less below.
    shares = apportion(most, min(wanted, sum(most)))
    chosen: list[int] = []
    ranked = [sorted(mine, key=lambda unit: min(_rank(index, record, seed) for record in unit)) for mine in units]
    for mine, share in zip(ranked, shares, strict=True):
        chosen += _packed(mine, share)
    # What fitted no share because it goes in sets: from whichever source still may give some.
    for mine, most_of_source in zip(ranked, most, strict=True):
        taken = {*chosen}
        room = min(wanted - len(chosen), most_of_source - len(taken & {r for unit in mine for r in unit}))
        chosen += _packed([unit for unit in mine if unit[0] not in taken], room)
    return np.array(sorted(chosen), np.int64)


def _packed(units: Sequence[Sequence[int]], room: int) -> list[int]:
    """Return the records of the units that fit, the first ones first."""
    found: list[int] = []
    for unit in units:
        if len(unit) <= room - len(found):
            found += unit
    return found


def most_held_out(
    index: Index, sources: Sequence[SourceSettings], role: Role, kin: Sequence[Sequence[int]] = ()
) -> list[int]:
    """Return how many images of each source may be held out."""
    return [_most(index, number, mine) for number, mine in enumerate(_units(index, sources, role, kin))]


def _most(index: Index, source: int, units: Sequence[Sequence[int]]) -> int:
    return min(int((index.source_N == source).sum()) // 2, sum(map(len, units)))


def _units(
    index: Index, sources: Sequence[SourceSettings], role: Role, kin: Sequence[Sequence[int]]
) -> list[list[list[int]]]:
    """Return for each source the sets of its records that can be held out, each with all that shows the same picture.

    Of a photo that is held out, no crop and no copy trains: not of a source of another role either.
    """
    mine = set(of_role(index, sources, role).tolist())
    half = np.bincount(index.source_N, minlength=len(sources)) // 2
    by_source: list[list[list[int]]] = [[] for _ in sources]
    for unit in components(len(index), [*kin, *_groups(index)]):
        source = int(index.source_N[unit[0]])
        if len(unit) <= half[source] and all(record in mine for record in unit):
            by_source[source].append(unit)
    return by_source


def _groups(index: Index) -> list[list[int]]:
    """Return the records of each group, crops of one photo, say."""
    members: dict[tuple[int, str], list[int]] = {}
    for record, group in index.groups.items():
        members.setdefault((int(index.source_N[record]), group), []).append(record)
    return list(members.values())


def of_role(index: Index, sources: Sequence[SourceSettings], role: Role) -> Ints:
    """Return the records of the sources of a role."""
    numbers = [number for number, source in enumerate(sources) if source.role == role]
    return np.flatnonzero(np.isin(index.source_N, numbers))


def evenly(records: Ints, most: int) -> Ints:
    """Return up to so many records, evenly spread."""
    return records[np.linspace(0, len(records) - 1, min(len(records), most)).round().astype(np.int64)]


def require_enough(
    index: Index,
    sources: Sequence[SourceSettings],
    wanted: Mapping[Monitored, PreservationSettings | ValidationSettings],
    watched: Mapping[str, Measured],
    kin: Sequence[Sequence[int]] = (),
) -> None:
    """Raise ConfigError when more than half of the images would have to be held out, or none could be.

    `watched`: what `watched_images` found for `wanted`.
    """
    for name, settings in wanted.items():
        if settings.path is not None or name not in watched or len(watched[name].held_out) >= settings.images:
            continue
        most = sum(most_held_out(index, sources, _ROLE[name], kin))
        if settings.images > most:
            what, more = _CALLED[name]
            raise ConfigError(
                f"{name}.images: {settings.images} images cannot be held out, for at most half of each {what} source "
                f"may be, here {most} in all; the rest is for training. Lower it, add {more}, or name a folder of "
                f"captioned images to measure under {name}.path."
            )
        if not len(watched[name].held_out):
            raise ConfigError(
                f"{name}.images: {settings.images} are fewer than the smallest set of images that show the same "
                "picture and are held out together. Raise it, or set data.twins: ignore."
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
    path: str, name: str, data: DataSettings, captions: CaptionSettings, progress: Callable[[int, int], None] | None
) -> Index:
    sources = [SourceSettings(path=path, name=name)]
    own = data.model_copy(update={"sources": sources, "exclude": None, "index": None})
    try:
        index = scan(own, captions, progress)
    except DataError as error:
        raise DataError(str(error).replace("data.sources.0", name)) from error
    if not len(index):
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in index.rejected[:3])
        raise DataError(f"{name}: no usable image in {path}. Put captioned images there or take it out.{reasons}")
    return index


def _first_by_rank(index: Index, records: Ints, wanted: int, seed: int) -> Ints:
    """Return the `wanted` records that come first by a hash of their keys, in the index's order."""
    ranked = sorted(records.tolist(), key=lambda record: _rank(index, record, seed))
    return np.array(sorted(ranked[:wanted]), np.int64)


def _rank(index: Index, record: int, seed: int) -> int:
    return derive(seed, "held_out", index.key(record))


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
        span_N2=index.span_N2[records] if index.span_N2 is not None else None,
    )
