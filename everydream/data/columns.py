"""From records to the columns of an Index, by way of chunks: plain data that processes and files can pass on.

    records and rejections of a portion -> chunk (JSON) -> Gathering -> Index

A chunk has a list for each field. Settings that many images share stand in it once.
"""

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import astuple, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.data.checking import Record
from everydream.data.folders import Resolved
from everydream.data.pairing import unique_names
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.data.sources import has_grammar, source_root
from everydream.data.strings import Strings, TextBuffer
from everydream.types import Index, Rejection

Chunk = dict[str, Any]
"""paths, sizes, captions, digests: a value a record; settings: distinct ones, `setting`: which; masks, warnings, spans:
of those that have some, as (record, value); rejected: (path, reason)."""


def to_index(
    data: DataSettings,
    captions: CaptionSettings,
    found: Sequence[Record | Rejection],
    switched_off: Sequence[str] = (),
    unknown_off: Sequence[str] = (),
) -> Index:
    """Arrange what was found as columns."""
    gathering = Gathering(unique_names(data.sources))
    for source in sorted({item.source for item in found}):
        gathering.add(source, pack(item for item in found if item.source == source))
    return replace(gathering.index(data, captions), switched_off=switched_off, unknown_off=unknown_off)


def pack(found: Iterable[Record | Rejection]) -> Chunk:
    """Return what was found in a part of one source as plain data."""
    items = list(found)
    records = [item for item in items if isinstance(item, Record)]
    settings: dict[Resolved, int] = {}
    return {
        "paths": [record.path for record in records],
        "sizes": [(record.width, record.height) for record in records],
        "captions": [record.candidate.captions for record in records],
        "digests": [record.digest for record in records],
        "setting": [settings.setdefault(record.candidate.resolved, len(settings)) for record in records],
        "settings": [astuple(setting) for setting in settings],
        "masks": [(number, record.mask) for number, record in enumerate(records) if record.mask],
        "warnings": [(number, record.warnings) for number, record in enumerate(records) if record.warnings],
        "spans": [(number, *record.span) for number, record in enumerate(records) if record.span is not None],
        "rejected": [(item.path, item.reason) for item in items if isinstance(item, Rejection)],
    }


class Gathering:
    """An index in the making; `off`: names (`source/path`) that are left out."""

    def __init__(self, names: Sequence[str], off: Collection[str] = ()) -> None:
        self._names, self._wanted_off = names, frozenset(off)
        self.off: list[str] = []
        """Names that were left out."""
        self._paths, self._captions = TextBuffer(), TextBuffer()
        self._sources, self._counts, self._setting = array("h"), array("i"), array("i")
        self._widths, self._heights, self._digests = array("i"), array("i"), array("Q")
        self._settings: dict[Resolved, int] = {}
        self._spans = array("q")
        """Record, offset and size, of those that have some."""
        self._masks: dict[int, str] = {}
        self._warnings: dict[int, list[str]] = {}
        self._rejected: list[Rejection] = []

    def add(self, source: int, chunk: Chunk) -> None:
        """Take in a part of a source."""
        if self._wanted_off:
            chunk = self._without_off(source, chunk)
        first, num = len(self._sources), len(chunk["paths"])
        self._rejected += [Rejection(source, path, reason) for path, reason in chunk["rejected"]]
        self._sources.extend([source] * num)
        self._paths.extend(chunk["paths"])
        self._widths.extend([width for width, _ in chunk["sizes"]])
        self._heights.extend([height for _, height in chunk["sizes"]])
        self._counts.extend(map(len, chunk["captions"]))
        self._captions.extend([text for captions in chunk["captions"] for text in captions])
        self._digests.extend(chunk["digests"])
        known = [self._settings.setdefault(Resolved(*each), len(self._settings)) for each in chunk["settings"]]
        self._setting.extend([known[number] for number in chunk["setting"]])
        self._masks.update((first + number, mask) for number, mask in chunk["masks"])
        self._spans.extend([n for number, offset, size in chunk["spans"] for n in (first + number, offset, size)])
        self._warnings.update((first + number, list(lines)) for number, lines in chunk["warnings"])

    def _without_off(self, source: int, chunk: Chunk) -> Chunk:
        """Return a chunk without what is switched off, and note that."""

        def is_on(path: str) -> bool:
            name = f"{self._names[source]}/{path}"
            if name in self._wanted_off:
                self.off.append(name)
            return name not in self._wanted_off

        kept = [number for number, path in enumerate(chunk["paths"]) if is_on(path)]
        rejected = [item for item in chunk["rejected"] if is_on(item[0])]
        place = {number: nth for nth, number in enumerate(kept)}
        parts = {key: [chunk[key][n] for n in kept] for key in ("paths", "sizes", "captions", "digests", "setting")}
        for key in ("masks", "warnings", "spans"):
            parts[key] = [(place[number], *value) for number, *value in chunk[key] if number in place]
        return {**chunk, **parts, "rejected": rejected}

    def index(self, data: DataSettings, captions: CaptionSettings) -> Index:
        """Return what was gathered, sorted by source and path."""
        sources, paths, texts = np.frombuffer(self._sources, np.int16), self._paths.strings(), self._captions.strings()
        counts = np.frombuffer(self._counts, np.int32)
        if (order := _order(sources, paths)) is None:
            order, place_of = slice(None), None
        else:
            starts, places = np.cumsum(counts, dtype=np.int64) - counts, order.tolist()
            texts = texts.take(text for n in places for text in range(starts[n], starts[n] + counts[n]))
            paths = paths.take(places)
            place_of = dict(zip(places, range(len(places)), strict=True)) if self._masks or self._warnings else {}
        setting_N = np.frombuffer(self._setting, np.int32)[order]
        index = Index(
            roots=[str(source_root(source)) if source.path is not None else "" for source in data.sources],
            names=self._names,
            source_N=sources[order],
            paths=paths,
            width_N=np.frombuffer(self._widths, np.int32)[order],
            height_N=np.frombuffer(self._heights, np.int32)[order],
            captions=texts,
            caption_offsets=np.concatenate([[0], np.cumsum(counts[order], dtype=np.int64)]).astype(np.int64),
            **_resolved(list(self._settings), setting_N),
            digest_N=np.frombuffer(self._digests, np.uint64)[order],
            masks=_few(self._masks, place_of),
            groups=_groups(setting_N, list(self._settings)),
            wildcards=captions.wildcards,
            grammars=[has_grammar(source) for source in data.sources],
            warnings=_few(self._warnings, place_of),
            rejected=sorted(self._rejected, key=lambda item: (item.source, item.path)),
            switched_off=self.off,
            unknown_off=sorted(self._wanted_off - set(self.off)),
            span_N2=self._placed(order),
        )
        for number, lines in _group_warnings(index):
            index.warnings.setdefault(number, []).extend(lines)
        return index

    def _placed(self, order: Any) -> NDArray[np.int64] | None:
        if not len(self._spans):
            return None
        found = np.frombuffer(self._spans, np.int64).reshape(-1, 3)
        span_N2 = np.zeros((len(self._sources), 2), np.int64)
        span_N2[found[:, 0]] = found[:, 1:]
        placed: NDArray[np.int64] = span_N2[order]
        return placed


def _resolved(settings: Sequence[Resolved], setting_N: NDArray[np.int32]) -> dict[str, Any]:
    """Return the columns of folder settings by their names in Index."""
    batch_ids = ["", *sorted({setting.batch_id for setting in settings} - {""})]
    number_of = {batch_id: number for number, batch_id in enumerate(batch_ids)}

    def column(name: str, kind: type[np.generic]) -> NDArray[Any]:
        return np.array([getattr(setting, name) for setting in settings], kind)[setting_N]

    batch_id_N = np.array([number_of[setting.batch_id] for setting in settings], np.int32)[setting_N]
    return {
        "repeats_N": column("repeats", np.float64), "dropout_N": column("dropout", np.float64),
        "flip_p_N": column("flip_p", np.float64), "loss_scale_N": column("loss_scale", np.float64),
        "shuffle_tags_N": column("shuffle_tags", np.bool_), "keep_tags_N": column("keep_tags", np.int32),
        "batch_id_N": batch_id_N, "batch_ids": batch_ids,
    }  # fmt: skip


def _few(few: dict[int, Any], place_of: dict[int, int] | None) -> dict[int, Any]:
    return few if place_of is None else {place_of[n]: few[n] for n in sorted(few, key=place_of.__getitem__)}


def _order(sources: NDArray[np.int16], paths: Strings) -> Any:
    """Return the places of the records in their order; None where that is the order they are in."""
    parts = [np.flatnonzero(sources == number).tolist() for number in np.unique(sources).tolist()]
    in_order = bool((np.diff(sources) >= 0).all())
    if in_order and all(a <= b for part in parts for a, b in pairwise(map(paths.raw, part))):
        return None
    return np.array([place for part in parts for place in sorted(part, key=paths.raw)], np.int64)


def _groups(setting_N: NDArray[np.int32], settings: Sequence[Resolved]) -> dict[int, str]:
    has_group = np.array([bool(setting.group) for setting in settings], np.bool_)
    if not has_group.any():
        return {}
    return {number: settings[setting_N[number]].group for number in np.flatnonzero(has_group[setting_N]).tolist()}


def _group_warnings(index: Index) -> Iterator[tuple[int, list[str]]]:
    """Yield the records whose repeats are not those of their group, which the group's first image decides."""
    first_of: dict[tuple[int, str], int] = {}
    for number, group in index.groups.items():
        first = first_of.setdefault((int(index.source_N[number]), group), number)
        repeats, used = float(index.repeats_N[number]), float(index.repeats_N[first])
        if repeats != used:
            line = f'repeats {repeats:g} is not used: its group "{group}" is drawn as often as its first image, '
            yield number, [f"{line}{index.paths[first]}, which has {used:g}"]
