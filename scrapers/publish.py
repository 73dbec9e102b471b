"""Outcomes become a set, strictly in the order of the source.

Outcomes come in any order; they wait here until everything before them has ended. So which of two equal images is
kept, and what an image is called, does not depend on which site was faster. What waits is on disk; here are numbers.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scrapers.ledger import Ledger
from scrapers.settings import FilterSettings
from scrapers.sinks import Sink
from scrapers.types import Entry, Outcome, Picture, Reason
from scrapers.workshop import raw_path


class Publisher:
    """Brings what was fetched into the set."""

    def __init__(self, ledger: Ledger, sink: Sink, filters: FilterSettings, staging: Path) -> None:
        self._ledger, self._sink, self._filters, self._staging = ledger, sink, filters, staging
        self._order: deque[int] = deque()
        self._ready: dict[int, Outcome] = {}
        self._portion: list[Entry] = []
        self._waiting_content: set[str] = set()
        """SHA-256 of the images of the portion."""
        self._done_with: list[Path] = []
        """Files of the staging folder that may go once the ledger knows what became of them."""
        self._looks = _Looks(filters.perceptual_distance) if filters.duplicates == "perceptual" else None
        if self._looks is not None:
            self._looks.extend(ledger.perceptual_hashes())

    @property
    def num_unfinished(self) -> int:
        """Items that may yet become images of the set."""
        return len(self._order) + len(self._portion)

    @property
    def num_under_way(self) -> int:
        """Of these, the ones whose fate is open."""
        return len(self._order)

    def expect(self, number: int) -> None:
        """Say that an item was taken up; they are published in the order of these calls."""
        self._order.append(number)

    def receive(self, outcome: Outcome) -> None:
        """Take an outcome."""
        self._ledger.finish(outcome)
        self.restore(outcome)

    def restore(self, outcome: Outcome) -> None:
        """Take an outcome that the ledger knows from a former run."""
        self._ready[outcome.number] = outcome
        raw = raw_path(self._staging, outcome.number)
        if not isinstance(outcome.result, Picture) or outcome.result.file != raw:
            self._done_with.append(raw)

    def publish(self, *, last: bool = False) -> None:
        """Publish what is next in order, in whole portions; `last`: the rest too. Raises OSError on a full disk."""
        while self._order and self._order[0] in self._ready:
            self._consider(self._ready.pop(self._order.popleft()))
        size = self._sink.portion or max(1, len(self._portion))
        while len(self._portion) >= size or (last and self._portion):
            self._store(self._portion[:size])
            del self._portion[:size]
        self._ledger.commit()
        for path in self._done_with:
            path.unlink(missing_ok=True)
        self._done_with.clear()

    def _consider(self, outcome: Outcome) -> None:
        """Let an image into the next portion, unless the set has it already."""
        picture = outcome.result
        if not isinstance(picture, Picture):
            return
        if reason := self._twin(picture):
            self._ledger.refuse_staged(outcome.number, reason)
            self._done_with.append(picture.file)
            return
        record = self._ledger.record(outcome.number)
        self._portion.append(Entry(record.number, record.url, record.caption, record.about, picture))
        self._waiting_content.add(picture.sha256)
        if self._looks is not None and picture.perceptual_hash is not None:
            self._looks.extend([picture.perceptual_hash])

    def _twin(self, picture: Picture) -> Reason | None:
        if self._filters.duplicates == "none":
            return None
        if picture.sha256 in self._waiting_content or self._ledger.has_content(picture.sha256):
            return Reason.DUPLICATE
        if self._looks is not None and picture.perceptual_hash is not None and self._looks.has(picture.perceptual_hash):
            return Reason.NEAR_DUPLICATE
        return None

    def _store(self, entries: Sequence[Entry]) -> None:
        """Write a portion, then tell the ledger; a run killed in between writes the same files again."""
        for entry, path in zip(entries, self._sink.write(entries), strict=True):
            self._ledger.store(entry.number, path)
            self._waiting_content.discard(entry.picture.sha256)
            self._done_with.append(entry.picture.file)


class _Looks:
    """Perceptual hashes, compared by the number of bits that differ."""

    def __init__(self, distance: int) -> None:
        self._distance = distance
        self._hashes: NDArray[np.uint64] = np.zeros(1024, np.uint64)
        self._num = 0

    def extend(self, hashes: Iterable[int]) -> None:
        for value in hashes:
            if self._num == len(self._hashes):
                self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
            self._hashes[self._num] = value
            self._num += 1

    def has(self, value: int) -> bool:
        differing = np.bitwise_count(self._hashes[: self._num] ^ np.uint64(value))
        return bool((differing <= self._distance).any())
