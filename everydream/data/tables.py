"""An index as one Parquet file: made once by `everydream index`, read by every run and every process of it.

A row an image; what is not about single images (which settings it was made with, what was rejected) is in the file's
metadata. Reading makes no Python object an image. The file is taken at its word: no image is looked at, so it is to be
made anew when images change; of shards that were rewritten training finds that out by itself.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.data.excluding import read_excluded
from everydream.data.pairing import unique_names
from everydream.data.portions import NOT_LOOKED_AT
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.data.sources import has_grammar, source_root
from everydream.data.strings import Strings, TextBuffer
from everydream.errors import DataError
from everydream.types import Index, Rejection

_VERSION = 1
_ROWS = 1 << 16
_KEY = b"everydream"
_NUMBERS = (
    "source", "width", "height", "repeats", "dropout", "flip_p", "loss_scale", "shuffle_tags", "keep_tags", "digest",
)  # fmt: skip


def write_table(index: Index, file: Path, data: DataSettings, captions: CaptionSettings) -> None:
    """Write an index to `file`. Raises OSError."""
    import pyarrow as pa  # noqa: PLC0415 - takes a second, and few commands need it
    import pyarrow.parquet as pq  # noqa: PLC0415

    about = {
        "version": _VERSION,
        "made_with": _made_with(data, captions),
        "names": list(index.names),
        "rejected": [list(asdict(item).values()) for item in index.rejected],
        "switched_off": list(index.switched_off),
        "unknown_off": list(index.unknown_off),
    }
    schema = _schema(pa).with_metadata({_KEY: json.dumps(about).encode("utf-8", "surrogatepass")})
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for first in range(0, len(index), _ROWS):
            rows = _rows(pa, index, first, min(first + _ROWS, len(index)))
            writer.write_table(pa.Table.from_pydict(rows, schema=schema))


def read_table(file: Path, data: DataSettings, captions: CaptionSettings) -> Index:
    """Return the index of a file that was made with these settings; otherwise raise DataError."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(file) as parquet:
            about = json.loads((parquet.schema_arrow.metadata or {}).get(_KEY, b"{}"))
            _require_same(file, about, _made_with(data, captions))
            columns = _Columns()
            for batch in parquet.iter_batches(_ROWS):
                columns.add(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"data.index: {file} cannot be read ({error}); make it again: everydream index") from error
    return columns.index(about, data, captions)


def _made_with(data: DataSettings, captions: CaptionSettings) -> dict[str, Any]:
    """Return the settings that an index depends on, by their names."""
    found: dict[str, Any] = {f"captions.{name}": value for name, value in captions.model_dump().items()}
    for name in ("flip_p", "masks", "background", "max_megapixels", "check"):
        found[f"data.{name}"] = getattr(data, name)
    for number, source in enumerate(data.sources):
        kept = source.model_dump(exclude=NOT_LOOKED_AT)
        found |= {f"data.sources.{number}.{name}": value for name, value in kept.items()}
    found["data.sources (names)"] = unique_names(data.sources)
    found["data.exclude (its lines)"] = sorted(read_excluded(data.exclude))
    return found


def _require_same(file: Path, about: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if about.get("version") != _VERSION:
        raise DataError(f"data.index: {file} is no index of this version; make it again: everydream index")
    was = about["made_with"]
    changed = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key)]
    if changed:
        key = changed[0]
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise DataError(
            f"data.index: {file} was made with other settings: {key} was {was.get(key)!r}, is {now.get(key)!r}{more}. "
            "Make it again: everydream index"
        )


def _schema(pa: Any) -> Any:
    kinds = {
        "source": pa.int16(), "path": pa.string(), "width": pa.int32(), "height": pa.int32(),
        "captions": pa.list_(pa.string()), "repeats": pa.float64(), "dropout": pa.float64(), "flip_p": pa.float64(),
        "loss_scale": pa.float64(), "shuffle_tags": pa.bool_(), "keep_tags": pa.int32(), "batch_id": pa.string(),
        "digest": pa.uint64(), "offset": pa.int64(), "size": pa.int64(), "mask": pa.string(), "group": pa.string(),
        "warnings": pa.list_(pa.string()),
    }  # fmt: skip
    return pa.schema(list(kinds.items()))


def _rows(pa: Any, index: Index, first: int, last: int) -> dict[str, Any]:
    some = slice(first, last)
    starts = index.caption_offsets[first : last + 1]
    variants = _texts(pa, index.captions, int(starts[0]), int(starts[-1]))
    batch_ids = pa.DictionaryArray.from_arrays(pa.array(index.batch_id_N[some]), pa.array(list(index.batch_ids)))
    span_N2 = index.span_N2[some] if index.span_N2 is not None else np.zeros((last - first, 2), np.int64)
    return {
        **{name: getattr(index, f"{name}_N")[some] for name in _NUMBERS},
        "path": _texts(pa, index.paths, first, last),
        "captions": pa.ListArray.from_arrays(pa.array((starts - starts[0]).astype(np.int32)), variants),
        "batch_id": batch_ids.cast(pa.string()),
        "offset": span_N2[:, 0],
        "size": span_N2[:, 1],
        "mask": _few(index.masks, first, last),
        "group": _few(index.groups, first, last),
        "warnings": _few(index.warnings, first, last),
    }


def _texts(pa: Any, texts: Sequence[str], first: int, last: int) -> Any:
    """Return texts as Arrow has them, without a Python object each."""
    strings = texts if isinstance(texts, Strings) else Strings.of(texts[first:last])
    bounds = strings.offsets[first : last + 1] if isinstance(texts, Strings) else strings.offsets
    data = bytes(strings.data[bounds[0] : bounds[-1]])
    offsets = pa.py_buffer((bounds - bounds[0]).astype(np.int32))
    return pa.StringArray.from_buffers(last - first, offsets, pa.py_buffer(data))


def _few(few: Mapping[int, Any], first: int, last: int) -> list[Any]:
    return [few.get(record) for record in range(first, last)] if few else [None] * (last - first)


class _Columns:
    """Row groups, put together."""

    def __init__(self) -> None:
        self._numbers: dict[str, list[NDArray[Any]]] = {name: [] for name in (*_NUMBERS, "offset", "size", "counts")}
        self._texts = {name: TextBuffer() for name in ("path", "captions", "batch_id")}
        self._few: dict[str, dict[int, Any]] = {name: {} for name in ("mask", "group", "warnings")}
        self._length = 0

    def add(self, batch: Any) -> None:
        for name in (*_NUMBERS, "offset", "size"):
            self._numbers[name].append(batch.column(name).to_numpy(zero_copy_only=False))
        captions = batch.column("captions")
        self._numbers["counts"].append(captions.value_lengths().to_numpy(zero_copy_only=False))
        for name, texts in (("path", batch.column("path")), ("captions", captions.flatten()),
                            ("batch_id", batch.column("batch_id"))):  # fmt: skip
            offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
            data = texts.buffers()[2]
            self._texts[name].extend_raw(data[offsets[0] : offsets[-1]] if data is not None else b"", np.diff(offsets))
        for name, few in self._few.items():
            column = batch.column(name)
            for place in np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)).tolist():
                few[self._length + place] = column[place].as_py()
        self._length += len(batch)

    def index(self, about: Mapping[str, Any], data: DataSettings, captions: CaptionSettings) -> Index:
        joined = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in self._numbers.items()}
        batch_ids, batch_id_N = _numbered(self._texts["batch_id"].strings())
        span_N2 = np.stack([joined["offset"], joined["size"]], 1).astype(np.int64)
        sources = data.sources
        return Index(
            roots=[str(source_root(source)) if source.path is not None else "" for source in sources],
            names=about["names"],
            source_N=joined["source"].astype(np.int16),
            paths=self._texts["path"].strings(),
            width_N=joined["width"].astype(np.int32),
            height_N=joined["height"].astype(np.int32),
            captions=self._texts["captions"].strings(),
            caption_offsets=np.concatenate([[0], np.cumsum(joined["counts"])]).astype(np.int64),
            repeats_N=joined["repeats"],
            dropout_N=joined["dropout"],
            flip_p_N=joined["flip_p"],
            loss_scale_N=joined["loss_scale"],
            shuffle_tags_N=joined["shuffle_tags"].astype(np.bool_),
            keep_tags_N=joined["keep_tags"].astype(np.int32),
            batch_id_N=batch_id_N,
            batch_ids=batch_ids,
            digest_N=joined["digest"].astype(np.uint64),
            masks=self._few["mask"],
            groups=self._few["group"],
            grammars=[has_grammar(source) for source in sources],
            wildcards=captions.wildcards,
            warnings=self._few["warnings"],
            rejected=[Rejection(*item) for item in about["rejected"]],
            switched_off=about["switched_off"],
            unknown_off=about["unknown_off"],
            span_N2=span_N2 if span_N2.any() else None,
        )


def _numbered(texts: Strings) -> tuple[Sequence[str], NDArray[np.int32]]:
    """Return the different batch ids, "" first, and which one each record has."""
    ids = ["", *sorted(set(texts) - {""})]
    if len(ids) == 1:
        return ids, np.zeros(len(texts), np.int32)
    number_of = {text: number for number, text in enumerate(ids)}
    return ids, np.fromiter((number_of[text] for text in texts), np.int32, len(texts))
