"""What a recipe would take: the list filtered, nothing fetched, nothing written."""

from collections import Counter

from scrapers.filters import compile_screening, needs_of
from scrapers.settings import ScrapeSettings
from scrapers.sources import open_source

MAX_ROWS = 100_000
"""How much of the list is looked at; some seconds."""
_SHOWN = 10


def preview(settings: ScrapeSettings) -> str:
    """Return in words how many rows of the beginning of the list pass, why others do not, and some captions."""
    source = open_source(settings.source, needs_of(settings))
    screen = compile_screening(settings)
    refused: Counter[str] = Counter()
    passed = num_rows = 0
    shown: list[str] = []
    for batch in source.rows():
        for row in batch:
            num_rows += 1
            caption, verdict = screen(row)
            if verdict is not None:
                refused[verdict.reason.value] += 1
            else:
                passed += 1
                shown += [f"  {caption[:100]}  <{row.url[:100]}>"] if len(shown) < _SHOWN else []
        if num_rows >= MAX_ROWS:
            break
    share = f" ({passed / num_rows:.1%})" if num_rows else ""
    lines = [source.description, *(f"Note: {note}" for note in source.notes)]
    lines.append(f"Of the first {num_rows:,} rows {passed:,} would be taken up{share}. The others, by reason:")
    lines += [f"  {number:>9,} {reason}" for reason, number in refused.most_common()] or ["  none"]
    return "\n".join([*lines, *(["For example:", *shown] if shown else [])])
