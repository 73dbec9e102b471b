"""Sources: rows (URL, caption, what is claimed of the image) in a fixed order.

A **source** is a chain of **parts**, one per file or folder of images. A part that is a list with columns is a
**table** (`parquet`, `text`), whose columns `columns` finds and turns into the fields of `Row`. Files are found and
opened by `files`, here or far away. Positions count every row, good or bad, so a row's number never depends on a
filter; `rows(start)` begins at any of them and leaves out what lies before as cheaply as the format allows.
"""

from collections.abc import Callable

from scrapers.errors import ScrapeError
from scrapers.filters import Needs
from scrapers.settings import SourceSettings
from scrapers.sources.ffhq import open_ffhq
from scrapers.sources.laion import open_laion
from scrapers.sources.protocol import Parts, Source
from scrapers.sources.urls import open_urls

__all__ = ["SOURCES", "Source", "open_source"]

SOURCES: dict[str, Callable[[SourceSettings, Needs], Parts]] = {
    "laion": open_laion,
    "ffhq": open_ffhq,
    "urls": open_urls,
}


def open_source(settings: SourceSettings, needs: Needs = Needs()) -> Source:  # noqa: B008 - it is frozen
    """Find the files of a source and check them, as far as that is cheap; all problems come as one `ScrapeError`."""
    if settings.kind not in SOURCES:
        raise ScrapeError(f"source.kind: {settings.kind!r} is none of {', '.join(SOURCES)}")
    source = SOURCES[settings.kind](settings, needs)
    source.check()
    return source
