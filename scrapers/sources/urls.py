"""Lists of URLs in any of the usual formats."""

from collections.abc import Callable, Mapping

from scrapers.filters import Needs
from scrapers.settings import SourceSettings
from scrapers.sources.files import SourceFile, find_files
from scrapers.sources.parquet import ParquetTable
from scrapers.sources.protocol import Parts
from scrapers.sources.tables import Table, TablePart
from scrapers.sources.text import open_csv, open_jsonl, open_tsv, open_txt


def open_parquet(file: SourceFile, overrides: Mapping[str, str]) -> Table:
    """Open a Parquet file; one of a WebDataset's index is nothing else."""
    return ParquetTable(file)


FORMATS: dict[str, Callable[[SourceFile, Mapping[str, str]], Table]] = {
    ".parquet": open_parquet,
    ".csv": open_csv,
    ".tsv": open_tsv,
    ".txt": open_txt,
    ".jsonl": open_jsonl,
    ".ndjson": open_jsonl,
}


def open_urls(settings: SourceSettings, needs: Needs) -> Parts:
    """Open lists of URLs."""
    return open_tables(settings, needs, FORMATS)


def open_tables(
    settings: SourceSettings,
    needs: Needs,
    formats: Mapping[str, Callable[[SourceFile, Mapping[str, str]], Table]],
    notes: list[str] | None = None,
) -> Parts:
    """Open files with columns."""
    files = find_files(settings.files, formats)
    parts = [TablePart(file, formats[file.ending], settings, needs) for file in files]
    return Parts(settings.kind, f"columns {sorted(settings.columns.items())}", parts, notes or [])
