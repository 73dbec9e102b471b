"""Lists with columns as parts of a source, whatever format holds them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scrapers.errors import ScrapeError
from scrapers.filters import Needs
from scrapers.settings import SourceSettings
from scrapers.sources.columns import choose, make_rows
from scrapers.sources.files import SourceFile, explain
from scrapers.sources.protocol import raise_problems
from scrapers.types import Row

BATCH_ROWS = 1024
BATCH_PICTURES = 32
"""Where rows carry the bytes of images, a megabyte each."""


@dataclass(frozen=True)
class Batch:
    """Some rows of a table."""

    start: int
    """Position of the first."""
    places: Sequence[int]
    """Where each stands in the file, for people."""
    values: dict[str, list[Any]]
    """Field of `Row` -> its values."""


class Table(Protocol):
    """A file with columns; it is open only while batches are read."""

    columns: list[str]
    num_rows: int | None
    """None until `batches` has come to the end."""

    def batches(self, chosen: Mapping[str, str], start: int, size: int) -> Iterator[Batch]:
        """Yield the columns that `chosen` names for fields of `Row`, from position `start` on."""


class TablePart:
    """A file of a list: finds its columns and makes rows of them."""

    def __init__(
        self,
        file: SourceFile,
        open_table: Callable[[SourceFile, Mapping[str, str]], Table],
        settings: SourceSettings,
        needs: Needs,
        has_pictures: bool = False,
    ) -> None:
        self.name = file.name
        self.identity = file.identity
        self.is_near = file.is_local
        self.num_rows: int | None = None
        self.notes: list[str] = []
        self._file = file
        self._open_table = open_table
        self._overrides = settings.columns
        self._needs = needs
        self._has_pictures = has_pictures
        self._table: Table | None = None
        self._chosen: Mapping[str, str] = {}

    def check(self) -> list[str]:
        """Open it, find the columns, and return the problems for a user."""
        try:
            table = self._open_table(self._file, self._overrides)
        except Exception as error:  # every file system and format raises its own
            return [f"{self._file.path}: cannot be read ({explain(self._file.path, error)})"]
        key = ("data", "the pictures") if self._has_pictures else ("url", "the URL")
        choice = choose(table.columns, self._overrides, self._needs, self.name, key)
        self._table, self._chosen, self.notes = table, choice.columns, choice.notes
        self.num_rows = table.num_rows
        return choice.problems

    def rows(self, number: int, start: int) -> Iterator[list[Row]]:
        """Yield its rows from position `start` on; the row at position 0 has the number `number`."""
        if self._table is None:
            raise_problems(self.check())
        assert self._table is not None
        position = start
        try:
            for batch in self._table.batches(self._chosen, start, BATCH_PICTURES if self._has_pictures else BATCH_ROWS):
                position = batch.start
                places = [f"{self.name}:{place}" for place in batch.places]
                yield make_rows(number + batch.start, places, self._identified(batch))
        except Exception as error:
            raise ScrapeError(f"{self._file.path}: cannot be read on near row {position} "
                              f"({explain(self._file.path, error)}); the rows before it are "
                              "safe, and the same command goes on from there") from error  # fmt: skip
        self.num_rows = self._table.num_rows

    def _identified(self, batch: Batch) -> dict[str, list[Any]]:
        """Pictures without a URL get a name that stays: sets are known by their URLs."""
        if not self._has_pictures or "url" in self._chosen:
            return batch.values
        return batch.values | {"url": [f"ffhq/{self.name}/{batch.start + i}" for i in range(len(batch.places))]}
