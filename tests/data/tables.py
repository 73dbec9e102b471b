"""The tables of docs/captions.md, so that every case it shows is one that is tested."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "captions.md"


def table_after(text: str) -> list[list[str]]:
    """Return the cells of the first table that follows `text`, without its head; pipes in cells are unescaped."""
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(text) == 1, f"{text!r} is not there once"
    lines = iter(page[page.index(text) :].splitlines())
    rows = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif rows:
            break
    return rows[2:]
