"""What a source is, and how one is put together of parts: files, or folders of images."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

from scrapers.errors import ScrapeError
from scrapers.types import Row

_MAX_PROBLEMS = 10


class Source(Protocol):
    """Rows in a fixed order."""

    @property
    def num_rows(self) -> int | None:
        """None: unknown without reading it all."""

    @property
    def description(self) -> str:
        """One line for people: how many files, and which."""

    @property
    def fingerprint(self) -> str:
        """Stable text that differs where rows may differ: which files of which size, and how they are read."""

    @property
    def notes(self) -> list[str]:
        """Warnings for the user."""

    def rows(self, start: int = 0) -> Iterator[list[Row]]:
        """Yield batches, never empty, from the row with the number `start` on."""


class Part(Protocol):
    """One file of a source."""

    name: str
    identity: str
    """For the fingerprint."""
    num_rows: int | None
    """None until `check` or `rows` has learnt it; known once `rows` has ended."""
    is_near: bool
    """Whether looking inside is cheap."""
    notes: list[str]

    def check(self) -> list[str]:
        """Look at what it holds, as far as that is cheap, and return the problems for a user."""

    def rows(self, number: int, start: int) -> Iterator[list[Row]]:
        """Yield its rows from position `start` on; the row at position 0 has the number `number`."""


class Parts:
    """A source of parts, read one after another."""

    def __init__(self, kind: str, how: str, parts: Sequence[Part], notes: Sequence[str] = ()) -> None:
        self._parts = parts
        self._how = f"{kind}; {how}"
        self._notes = list(notes)
        self.description = f"{kind}: {_files(parts)}"

    def check(self) -> None:
        """Look at every part that is near, and at the first in any case."""
        problems: list[str] = []
        for index, part in enumerate(self._parts):
            if index == 0 or part.is_near:
                problems += part.check()
        raise_problems(problems)

    @property
    def notes(self) -> list[str]:
        """Warnings for the user, each once."""
        return list(dict.fromkeys([*self._notes, *(note for part in self._parts for note in part.notes)]))

    @property
    def num_rows(self) -> int | None:
        """None: unknown without reading it all."""
        counts = [part.num_rows for part in self._parts]
        return None if None in counts else sum(filter(None, counts))

    @property
    def fingerprint(self) -> str:
        """Stable text that differs where rows may differ."""
        text = "\n".join([self._how, *(part.identity for part in self._parts)])
        digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
        return f"{self.description}; {digest[:16]}"

    def rows(self, start: int = 0) -> Iterator[list[Row]]:
        """Yield batches from the row with the number `start` on."""
        number = 0
        for part in self._parts:
            if part.num_rows is None or number + part.num_rows > start:
                yield from part.rows(number, max(0, start - number))
            assert part.num_rows is not None, part.name
            number += part.num_rows


def raise_problems(problems: Sequence[str]) -> None:
    """Raise all problems at once, as far as a screen holds them."""
    unique = list(dict.fromkeys(problems))
    if unique:
        rest = len(unique) - _MAX_PROBLEMS
        raise ScrapeError("\n".join(unique[:_MAX_PROBLEMS] + ([f"and {rest} more problems"] if rest > 0 else [])))


def _files(parts: Sequence[Part]) -> str:
    if len(parts) <= 2:
        return ", ".join(part.name for part in parts)
    return f"{len(parts)} files, {parts[0].name} to {parts[-1].name}"
