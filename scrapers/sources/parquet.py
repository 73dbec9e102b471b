"""Parquet, one batch at a time: only the columns that are wanted, and no row group before the first row wanted."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from scrapers.sources.columns import MAX_SIDE_PX, PARSERS, as_number, as_side, as_text, as_url, parse
from scrapers.sources.files import SourceFile
from scrapers.sources.tables import Batch

if TYPE_CHECKING:
    import pyarrow as pa

_SHORT = 6
"""A text that is longer stands for itself; only shorter ones can be "NULL"."""


class ParquetTable:
    """A Parquet file. A row is known by its position; an index column of pandas, gaps and all, is a column."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        with _open(file) as parquet:
            self.columns: list[str] = list(parquet.schema_arrow.names)
            self.num_rows: int | None = int(parquet.metadata.num_rows)

    def batches(self, chosen: Mapping[str, str], start: int, size: int) -> Iterator[Batch]:
        """Yield batches of the chosen columns from position `start` on."""
        with _open(self._file) as parquet:
            position = 0
            for group in range(parquet.metadata.num_row_groups):
                num_rows = int(parquet.metadata.row_group(group).num_rows)
                if position + num_rows > start:
                    yield from self._group(parquet, group, position, chosen, start, size)
                position += num_rows

    def _group(
        self, parquet: Any, group: int, position: int, chosen: Mapping[str, str], start: int, size: int
    ) -> Iterator[Batch]:
        names = list(dict.fromkeys(chosen.values()))
        for batch in parquet.iter_batches(batch_size=size, row_groups=[group], columns=names):
            num_rows = int(batch.num_rows)
            skipped = min(max(0, start - position), num_rows)
            if skipped < num_rows:
                part = batch.slice(skipped)
                values = {field: field_values(field, part.column(column)) for field, column in chosen.items()}
                places = range(position + skipped, position + num_rows)
                yield Batch(position + skipped, places, values)
            position += num_rows


@contextmanager
def _open(file: SourceFile) -> Iterator[Any]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - the command line must start fast

    with nullcontext(file.path) if file.is_local else file.open() as source, pq.ParquetFile(source) as parquet:
        yield parquet


def field_values(name: str, array: "pa.Array") -> list[Any]:
    """Return an Arrow column as values of a field of `Row`: `parse`, with short ways for the usual types."""
    import pyarrow as pa  # noqa: PLC0415 - the command line must start fast

    parser = PARSERS[name]
    if parser in (as_number, as_side) and (pa.types.is_integer(array.type) or pa.types.is_floating(array.type)):
        return _numbers(array, parser is as_side)
    values = _pylist(array)
    if parser is as_text:
        return [value if value.__class__ is str and len(value) > _SHORT else as_text(value) for value in values]
    if parser is as_url:
        return [value.strip() if value.__class__ is str and len(value) > _SHORT else as_url(value) for value in values]
    return parse(name, values)


def _numbers(array: "pa.Array", are_sides: bool) -> list[Any]:
    import pyarrow as pa  # noqa: PLC0415 - the command line must start fast
    import pyarrow.compute as pc  # noqa: PLC0415 - the command line must start fast

    numbers = array.cast(pa.float64(), safe=False)
    if not are_sides:
        return list(pc.if_else(pc.is_finite(numbers), numbers, None).to_pylist())
    is_side = pc.and_(pc.greater_equal(numbers, 1.0), pc.less_equal(numbers, float(MAX_SIDE_PX)))
    return list(pc.if_else(is_side, numbers, None).cast(pa.int64(), safe=False).to_pylist())


def _pylist(array: "pa.Array") -> list[Any]:
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        import pyarrow as pa  # noqa: PLC0415 - the command line must start fast

        # Parquet's writers are not checked: a "string" may hold any bytes.
        return list(array.cast(pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary()).to_pylist())
