"""Lists as text: txt, csv, tsv and jsonl, packed (.gz) or not. A line that makes no sense is a row without a URL."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TextIO

from scrapers.sources.columns import is_known, parse
from scrapers.sources.files import SourceFile
from scrapers.sources.tables import Batch

_NUM_SAMPLED = 100
"""Lines by which a layout is judged."""
_URL = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)

Record = tuple[int, Sequence[object]]
"""The line's number, and the values of the columns asked for."""


class TextTable:
    """A text file with columns."""

    def __init__(self, columns: list[str], read: Callable[[Sequence[str]], Iterator[Record]]) -> None:
        self.columns = columns
        self.num_rows: int | None = None
        self._read = read

    def batches(self, chosen: Mapping[str, str], start: int, size: int) -> Iterator[Batch]:
        """Yield batches of the chosen columns from position `start` on; what is before is read, and dropped."""
        records = self._read(list(chosen.values()))
        position = sum(1 for _ in islice(records, start))
        while batch := list(islice(records, size)):
            columns = zip(*(values for _, values in batch), strict=True)
            values = {name: parse(name, column) for name, column in zip(chosen, columns, strict=True)}
            yield Batch(position, [place for place, _ in batch], values)
            position += len(batch)
        self.num_rows = position


def open_txt(file: SourceFile, overrides: Mapping[str, str]) -> TextTable:
    """One URL a line, and its caption after a tab; blank lines and those that begin with # are no rows."""
    return _open_cells(file, overrides, _txt_cells, needs_header=False)


def open_tsv(file: SourceFile, overrides: Mapping[str, str]) -> TextTable:
    """Values between tabs; quotes are only what stands round a whole value."""
    return _open_cells(file, overrides, _tsv_cells, needs_header=True)


def open_csv(file: SourceFile, overrides: Mapping[str, str]) -> TextTable:
    """Values between commas, quoted where needed."""
    return _open_cells(file, overrides, _csv_cells, needs_header=True)


def open_jsonl(file: SourceFile, overrides: Mapping[str, str]) -> TextTable:
    """One JSON object a line; the columns are the keys of the first hundred."""

    def read(columns: Sequence[str]) -> Iterator[Record]:
        with open_text(file) as lines:
            for number, entry in _json_lines(lines):
                yield number, [entry.get(column) for column in columns]

    with open_text(file) as lines:
        return TextTable(list(dict.fromkeys(key for _, entry in islice(_json_lines(lines), _NUM_SAMPLED)
                                            for key in entry)), read)  # fmt: skip


@contextmanager
def open_text(file: SourceFile) -> Iterator[TextIO]:
    """Open as UTF-8, or by its byte order mark; bytes that are no text become U+FFFD."""
    with file.open("infer") as raw:
        buffered = io.BufferedReader(raw)  # type: ignore[type-var]
        is_utf16 = buffered.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if is_utf16 else "utf-8-sig"
        yield io.TextIOWrapper(buffered, encoding=encoding, errors="replace", newline="")


Cells = tuple[int, list[str]]
"""The line's number and its values; no values: a bad line."""


def _open_cells(
    file: SourceFile, overrides: Mapping[str, str], split: Callable[[TextIO], Iterator[Cells]], needs_header: bool
) -> TextTable:
    with open_text(file) as lines:
        sample = [cells for _, cells in islice(split(lines), _NUM_SAMPLED)]
    columns, has_header = layout(sample, overrides, needs_header)

    def read(wanted: Sequence[str]) -> Iterator[Record]:
        indices = [columns.index(name) for name in wanted]
        with open_text(file) as lines:
            for number, cells in islice(split(lines), 1 if has_header else 0, None):
                yield number, [cells[index] if index < len(cells) else None for index in indices]

    return TextTable(columns, read)


def layout(sample: Sequence[Sequence[str]], overrides: Mapping[str, str], needs_header: bool) -> tuple[list[str], bool]:
    """Return the columns, and whether the first line is their names.

    Without a header (CC3M is `caption<TAB>url`) the URL is where the URLs are, the caption is the longest other text,
    and the rest is numbered from 0; so are all where `source.columns` speaks of numbers.
    """
    first = sample[0] if sample else []
    has_url = any(map(_URL.match, first))
    if not has_url and (needs_header or any(is_known(cell, overrides) for cell in first)):
        return [cell.strip() for cell in first], True
    width = max(map(len, sample), default=0)
    names = [str(index) for index in range(width)]
    if width and not any(column in names for column in overrides.values()):
        urls, lengths = ([sum(measure(cells[i]) for cells in sample if i < len(cells)) for i in range(width)]
                         for measure in (lambda cell: bool(_URL.match(cell)), len))  # fmt: skip
        url = urls.index(max(urls))
        others = [index for index in range(width) if index != url]
        names[url] = "url"
        if others:
            names[max(others, key=lambda index: lengths[index])] = "caption"
    return names, False


def _txt_cells(lines: Iterable[str]) -> Iterator[Cells]:
    for number, line in enumerate(_physical(lines), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.split("\t", 1)


def _tsv_cells(lines: Iterable[str]) -> Iterator[Cells]:
    for number, line in enumerate(_physical(lines), 1):
        if line.strip():
            yield number, [_unquoted(cell) for cell in line.split("\t")]


def _unquoted(cell: str) -> str:
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell


def _csv_cells(lines: Iterable[str]) -> Iterator[Cells]:
    reader = csv.reader(line.replace("\0", "") for line in lines)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:  # a quote that is never closed has swallowed 128 kB
            yield reader.line_num, []
            continue
        if cells:
            yield reader.line_num, cells


def _json_lines(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_physical(lines), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = {}
        yield number, entry if isinstance(entry, dict) else {}


def _physical(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line.rstrip("\r\n")
