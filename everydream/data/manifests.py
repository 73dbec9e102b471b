"""Manifests: files that list images and their captions (JSON, JSONL, CSV, TSV, Parquet).

`read_manifest` yields one `Row` per line of the file, good or bad; what is wrong with a single row is its `problem`,
so that the image is rejected and the rest is used. What is wrong with the whole file is `BadText`.
Columns are found by name without case, in the order of `PATH_COLUMNS` and `CAPTION_COLUMNS`, unless they are given.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from everydream.data.remote import url_of
from everydream.data.shards import open_binary
from everydream.data.texts import BadText, nearest, normalise, read_text

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
PATH_COLUMNS = ("path", "file_name", "file", "filename", "image", "image_path", "filepath", "img", "image_key")
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "texts", "prompts", "description", "tags", "label")
_URL_COLUMNS = ("url", "image_url", "image_link")
_PEEK_ROWS = 100


class Row(NamedTuple):
    """One row of a manifest: an image and its captions, or what is wrong with it."""

    where: str
    """"line 3" or "row 3" or a key, for messages."""
    path: str
    """As written in the manifest; "" where the problem is that there is none."""
    captions: tuple[str, ...]
    problem: str = ""


class _Raw(NamedTuple):
    where: str
    cells: Mapping[str, object]
    problem: str = ""


def read_manifest(
    path: Path, path_column: str | None = None, caption_column: str | None = None, *, caption_needed: bool = True
) -> Iterator[Row]:
    """Yield the rows of a manifest; `BadText` if it cannot be read or its columns are not found.

    With `caption_needed=False` a manifest without a caption column is accepted: every caption is missing.
    """
    rows = _raw_rows(path)
    peeked = list(islice(rows, _PEEK_ROWS))
    columns = list(dict.fromkeys(key for row in peeked for key in row.cells))
    if not any(row.cells for row in peeked):
        detail = f": {peeked[0].where}: {peeked[0].problem}" if peeked else ""
        raise BadText(f"{path}: no rows{detail}")
    path_key = _column(path, "path", columns, path_column, PATH_COLUMNS)
    if path_key is None:
        raise BadText(f"{path}: {_no_path(columns)}")
    caption_key = _column(path, "caption", columns, caption_column, CAPTION_COLUMNS)
    if caption_key is None and caption_needed:
        raise BadText(f"{path}: no caption column among {', '.join(columns)}; name it in caption_column, "
                      "or give the source a default_caption")  # fmt: skip
    for raw in chain(peeked, rows):
        yield _row(raw, path_key, caption_key)


def _column(path: Path, what: str, columns: Sequence[str], given: str | None, known: Iterable[str]) -> str | None:
    if given is not None:
        if given not in columns:
            raise BadText(f"{path}: no column `{given}` ({what}_column); {nearest(given, columns)}")
        return given
    folded = {column.strip().lower(): column for column in reversed(columns)}
    return next((folded[name] for name in known if name in folded), None)


def _no_path(columns: Sequence[str]) -> str:
    urls = [column for column in columns if column.strip().lower() in _URL_COLUMNS]
    if urls:
        return f"lists URLs (column `{urls[0]}`), not files; download the images first"
    return f"no column with the images' paths among {', '.join(columns)}; name it in path_column"


def _row(raw: _Raw, path_key: str, caption_key: str | None) -> Row:
    path = raw.cells.get(path_key)
    shown = path if isinstance(path, str) else ""
    if raw.problem:
        return Row(raw.where, shown, (), raw.problem)
    if not isinstance(path, str) or not path.strip():
        return Row(raw.where, "", (), f"no path in `{path_key}`" if path in (None, "") or isinstance(path, str)
                   else f"`{path_key}` holds {_kind(path)}, not a path")  # fmt: skip
    caption = raw.cells.get(caption_key) if caption_key is not None else None
    pieces = caption if isinstance(caption, list | tuple) else [] if caption is None else [caption]
    for piece in pieces:
        if not isinstance(piece, str):
            return Row(raw.where, path, (), f"`{caption_key}` holds {_kind(piece)}, not a text")
    return Row(raw.where, path, tuple(filter(None, map(normalise, pieces))))


def _kind(value: object) -> str:
    return "data" if isinstance(value, dict | list | bytes) else repr(value)


def _raw_rows(path: Path) -> Iterator[_Raw]:
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise BadText(f"{path}: not a manifest; known are {', '.join(SUFFIXES)}")
    return READERS[suffix](path)


def _read_json(path: Path) -> Iterator[_Raw]:
    try:
        data = json.loads(read_text(path, str(path)))
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, BadText) else BadText(f"{path}: not valid JSON ({error})") from error
    if isinstance(data, dict) and isinstance(data.get("images"), list):
        data = data["images"]
    if isinstance(data, list):
        yield from (_json_row(f"row {number}", item) for number, item in enumerate(data, 1))
    elif isinstance(data, dict):
        yield from (_keyed_row(key, value) for key, value in data.items())
    else:
        raise BadText(f"{path}: expected a list of rows or an object, found {_kind(data)}")


def _json_row(where: str, item: object) -> _Raw:
    return _Raw(where, item) if isinstance(item, dict) else _Raw(where, {}, f"is {_kind(item)}, not an object")


def _keyed_row(key: str, value: object) -> _Raw:
    """Read {file: caption}, {file: [captions]} and kohya's {file: {"caption": ...}}."""
    where = f"key {key!r}"
    if isinstance(value, dict):
        found = next((value[name] for name in CAPTION_COLUMNS if value.get(name) is not None), None)
        inner = next((value[name] for name in PATH_COLUMNS if isinstance(value.get(name), str)), key)
        return _Raw(where, {**value, "path": inner, "caption": found})
    return _Raw(where, {"path": key, "caption": value})


def _read_jsonl(path: Path) -> Iterator[_Raw]:
    for number, line in enumerate(read_text(path, str(path)).split("\n"), 1):
        if line.strip():
            yield _json_line(f"line {number}", line)


def _json_line(where: str, line: str) -> _Raw:
    try:
        return _json_row(where, json.loads(line))
    except (ValueError, RecursionError) as error:
        return _Raw(where, {}, f"not valid JSON ({error})")


def _read_csv(path: Path) -> Iterator[_Raw]:
    text = read_text(path, str(path))
    header_line = text.partition("\n")[0]
    # Spreadsheets of half of Europe write semicolons into a .csv.
    candidates = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(candidates, key=header_line.count))
    try:
        header = [cell.strip() for cell in next(reader, [])]
        for cells in reader:
            if not cells:
                continue
            problem = "" if len(cells) == len(header) else f"has {len(cells)} cells, the header {len(header)}"
            yield _Raw(f"line {reader.line_num}", dict(zip(header, cells, strict=False)), problem)
    except csv.Error as error:
        raise BadText(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[_Raw]:
    import pyarrow as pa  # noqa: PLC0415 - takes a second to import, and few runs need it
    import pyarrow.parquet as pq  # noqa: PLC0415

    number = 0
    try:
        with pq.ParquetFile(path if url_of(path) is None else open_binary(path)) as file:
            # Embedded images and embeddings would fill the memory, and none is a path or a caption.
            names = [field.name for field in file.schema_arrow if _may_be_text(str(field.type))]
            for batch in file.iter_batches(columns=names):
                for cells in batch.to_pylist():
                    number += 1
                    yield _Raw(f"row {number}", cells)
    except (pa.ArrowException, OSError) as error:
        raise BadText(f"{path}: not a readable Parquet file ({error})") from error


def _may_be_text(kind: str) -> bool:
    return "string" in kind and not kind.startswith(("struct", "map"))


READERS = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
"""Suffix -> what reads it."""
