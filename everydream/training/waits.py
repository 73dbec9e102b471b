"""The time that training stands still, by what for. It depends on the machine, so metrics.jsonl does not have it."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Waits:
    """Seconds by name, since they were last taken and in all."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self._taken: dict[str, float] = {}

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the time in the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.total[what] = self.total.get(what, 0.0) + time.perf_counter() - began

    def over(self, what: str, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count the time that each one takes to come."""
        coming = iter(items)
        while True:
            with self.on(what):
                item = next(coming, None)
            if item is None:
                return
            yield item

    def taken(self) -> dict[str, float]:
        """Return the seconds since the last call, as the trackers name them."""
        found = {f"wait/{what}_s": seconds - self._taken.get(what, 0.0) for what, seconds in self.total.items()}
        self._taken = self.total.copy()
        return found

    def facts(self) -> dict[str, float]:
        """Return all seconds, as events.jsonl names them."""
        return {f"waited_for_{what}_s": round(seconds, 3) for what, seconds in self.total.items()}
