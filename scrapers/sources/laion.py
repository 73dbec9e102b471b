"""LAION and what is built like it (COYO, DataComp): huge lists, mostly Parquet, read one batch at a time."""

import re

from scrapers.filters import Needs
from scrapers.settings import SourceSettings
from scrapers.sources.protocol import Parts
from scrapers.sources.urls import FORMATS, open_tables

_FORMATS = {ending: FORMATS[ending] for ending in (".parquet", ".csv", ".tsv", ".jsonl")}
_WITHDRAWN = re.compile(r"(?<!re)laion-?(2b-(en|multi)|1b-nolang|5b|400m|high-resolution)(?!-aesthetic)", re.IGNORECASE)


def open_laion(settings: SourceSettings, needs: Needs) -> Parts:
    """Open metadata of LAION's kind."""
    return open_tables(settings, needs, _FORMATS, withdrawn(settings.files))


def withdrawn(files: list[str]) -> list[str]:
    """Return a warning for each list that LAION has taken back."""
    names = dict.fromkeys(found[0] for found in map(_WITHDRAWN.search, files) if found)
    return [
        f"{name}: LAION withdrew this list in December 2023, as it leads to illegal pictures; use Re-LAION "
        "(laion/relaion2B-en-research-safe, as in datasets/relaion_research_safe.yaml)"
        for name in names
    ]
