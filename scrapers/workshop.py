"""Rows in, checked images in the staging folder out: fetching and decoding, on this machine.

The result of a row depends on the row and the site alone, not on what else is under way. A file that was fetched whole
before a run was killed is not fetched again: it lies in the staging folder under its row's number.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from typing_extensions import Self

from scrapers.decoding import Decoders
from scrapers.errors import WriteError
from scrapers.fetch.client import Body, Client
from scrapers.fetch.fetcher import Fetcher, Job, Result
from scrapers.fetch.robots import Store
from scrapers.settings import ScrapeSettings
from scrapers.types import Item, Outcome, Verdict

_AT_A_TIME = 8


def raw_path(staging: Path, number: int) -> Path:
    """Return where an item's file is put as it came; it stays there until the ledger knows the outcome."""
    return staging / f"{number:09d}.raw"


class Engine(Protocol):
    """What turns items into outcomes: this machine, or many."""

    window: int
    """Items under way at most, which bounds the staging folder; enough to keep everyone busy."""

    @property
    def num_bytes(self) -> int:
        """Bytes received so far."""

    def submit(self, item: Item) -> None:
        """Take an item; its outcome goes to `done`."""

    def flush(self) -> None:
        """Begin with what was submitted, even if more would make a better portion."""

    async def run(self) -> None:
        """Work until cancelled. Raises WriteError if the disk does not take a file."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exception: object) -> None: ...


class Workshop:
    """The engine on this machine: one event loop that fetches, and processes that decode."""

    def __init__(self, settings: ScrapeSettings, staging: Path, store: Store, done: Callable[[Outcome], None]) -> None:
        self._settings, self._staging, self._store, self._done = settings, staging, store, done
        self.window = max(1000, 10 * settings.fetch.concurrency)
        self._client = Client(settings.fetch)
        self._stack = AsyncExitStack()
        self._items: dict[int, Item] = {}
        self._backlog: asyncio.Queue[tuple[Item, int]] = asyncio.Queue()

    @property
    def num_bytes(self) -> int:
        """Bytes received so far."""
        return self._client.num_bytes

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._decoders = Decoders(settings.workers, settings.images, settings.filters)
        self._stack.callback(self._decoders.close)
        await self._decoders.check()
        await self._stack.enter_async_context(self._client)
        self._fetcher = Fetcher(
            self._client,
            self._store,
            self._fetched,
            look=_look_of(settings),
            may_start=lambda: self._backlog.qsize() < settings.fetch.concurrency,
        )
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    def submit(self, item: Item) -> None:
        """Fetch an item's image, unless it is here already, and decode it."""
        raw = raw_path(self._staging, item.number)
        if raw.exists():
            self._backlog.put_nowait((item, 0))
            return
        self._items[item.number] = item
        self._fetcher.submit(item.number, item.url, raw)

    def flush(self) -> None:
        """Nothing waits for a portion here."""

    async def run(self) -> None:
        """Fetch and decode until cancelled."""
        tasks = [asyncio.create_task(self._fetcher.run())]
        tasks += [asyncio.create_task(self._decode()) for _ in range(self._decoders.num_workers)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _fetched(self, job: Job, result: Result) -> None:
        item = self._items.pop(job.number)
        if isinstance(result, Body):
            self._backlog.put_nowait((item, job.tries + 1))
        else:
            self._done(Outcome(job.number, result, job.tries + 1))

    async def _decode(self) -> None:
        """Decode what has come, several files at a time if there are: handing over costs as much as a small image."""
        while True:
            waiting = [await self._backlog.get()]
            while len(waiting) < _AT_A_TIME and not self._backlog.empty():
                waiting.append(self._backlog.get_nowait())
            self._fetcher.poke()
            tasks = [(raw_path(self._staging, item.number), self._staging / f"{item.number:09d}", item)
                     for item, _ in waiting]  # fmt: skip
            try:
                results = await self._decoders.make(tasks)
            except OSError as error:
                raise WriteError(f"{self._staging} cannot be written: {error.strerror or error}") from error
            for (item, tries), result in zip(waiting, results, strict=True):
                self._done(Outcome(item.number, result, tries))


def _look_of(settings: ScrapeSettings) -> Callable[[bytes], Verdict | None] | None:
    """Return what looks at the beginning of large files, if there is something to look for."""
    filters = settings.filters
    if filters.min_width == filters.min_height == 1 and filters.max_aspect is None:
        return None
    from scrapers.look import early_look  # noqa: PLC0415 - loads the image library only where it is needed

    return partial(early_look, filters=filters, max_megapixels=settings.images.max_megapixels)
