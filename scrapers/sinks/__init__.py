"""Where images end up: a folder named by captions, or WebDataset shards. Both keep the contract of datasets/README.md.

A sink writes a portion of entries, in order, and returns their paths. Writing the same portion again gives the same
files, so that a run killed between writing and noting it in the ledger repeats itself and leaves nothing twice.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from scrapers.ledger import Ledger
from scrapers.settings import SinkSettings
from scrapers.sinks.folder import FolderSink
from scrapers.sinks.webdataset import WebDatasetSink
from scrapers.types import Entry


class Sink(Protocol):
    """Takes checked images in order."""

    portion: int | None
    """How many entries are written at a time, at the end fewer; None: any number."""

    def write(self, entries: Sequence[Entry]) -> list[str]:
        """Write the entries and return their paths relative to the set. Raises OSError; what is written is whole."""

    def close(self) -> None:
        """Write what belongs to the set as a whole."""


_SINKS: dict[str, Callable[[Path, Ledger, SinkSettings], Sink]] = {"folder": FolderSink, "webdataset": WebDatasetSink}


def open_sink(folder: Path, ledger: Ledger, settings: SinkSettings) -> Sink:
    """Return the sink of a set."""
    return _SINKS[settings.kind](folder, ledger, settings)
