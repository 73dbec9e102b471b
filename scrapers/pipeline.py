"""One scrape, from the source to the set: what is read here top to bottom is what happens.

recover -> (take up rows as there is room -> engine -> publish in order) until the source or the limit ends
"""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from scrapers import report
from scrapers.errors import ScrapeError, WriteError
from scrapers.filters import compile_screening, needs_of
from scrapers.ledger import FOLDER, Ledger
from scrapers.making import Shard, part_of, require_same_making
from scrapers.publish import Publisher
from scrapers.settings import ScrapeSettings
from scrapers.sinks import open_sink
from scrapers.sources import Source, open_source
from scrapers.types import Item, Outcome, Picture, Reason, Record, Row
from scrapers.workshop import Engine, Workshop, raw_path

STAGING = "staging"
_TICK_S = 0.02
"""Outcomes of so many seconds are published together."""

EngineMaker = Callable[[ScrapeSettings, Path, Ledger, Callable[[Outcome], None]], Engine]


class Scrape:
    """A scrape under way."""

    def __init__(
        self,
        settings: ScrapeSettings,
        out: Path,
        *,
        shard: Shard | None = None,
        retry_failed: bool = False,
        make_engine: EngineMaker = Workshop,
    ) -> None:
        """Open the set in `out`. Raises ScrapeError if it was made otherwise, or the source cannot be read."""
        self.settings, self.out, self._retry_failed = settings, out, retry_failed
        self._shard = shard or Shard(0, 1)
        self.limit = part_of(settings.limit, self._shard)
        self.source: Source = open_source(settings.source, needs_of(settings))
        self._screen = compile_screening(settings)
        self.ledger = Ledger(out)
        require_same_making(self.ledger, settings, self.source, self._shard, out)
        self._staging = out / FOLDER / STAGING
        self._staging.mkdir(exist_ok=True)
        self._sink = open_sink(out, self.ledger, settings.sink)
        self.publisher = Publisher(self.ledger, self._sink, settings.filters, self._staging)
        self.engine = make_engine(settings, self._staging, self.ledger, self._finished)
        self.position = int(self.ledger.get("cursor", "0"))
        """Rows of the source that have been read."""
        self._refused: list[tuple[Row, Reason]] = []
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self.started = time.monotonic()
        self.stored_before = self.ledger.num_stored

    async def run(self, stop: asyncio.Event) -> bool:
        """Scrape until the source or the limit ends, or `stop` is set; return whether it ended by itself.

        Raises ScrapeError if the list cannot be read on or the disk is full; the set is whole then, and the same
        command goes on with it.
        """
        failure: ScrapeError | None = None
        try:
            try:
                async with self.engine:
                    ended = await self._work(stop)
            except ScrapeError as error:
                failure, ended = error, False
            self.publisher.publish(last=ended)
            self._sink.close()
            report.write_files(self.ledger, self.out)
            self.ledger.close()
        except (WriteError, OSError) as error:
            self.ledger.abandon()
            self._discard_partial_files()
            raise ScrapeError(
                f"The scrape was stopped: {error}. What is in {self.out} is whole; make room and run the same command "
                "again to go on."
            ) from error
        if failure is not None:
            raise failure
        if ended:
            shutil.rmtree(self._staging, ignore_errors=True)
        return ended

    @property
    def took_no_row(self) -> bool:
        """Whether the list holds nothing for this part."""
        return self._shard.count > 1 and not self.ledger.last_number and not self.ledger.refused_early

    async def _work(self, stop: asyncio.Event) -> bool:
        tasks = [
            asyncio.create_task(work)
            for work in (self._take_up_all(), self.engine.run(), self._publish_as_it_comes(), stop.wait())
        ]
        feeding, stopping = tasks[0], tasks[-1]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not task.cancelled() and (error := task.exception()):
                    raise error
            return feeding.done() and not stopping.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Taking up

    async def _take_up_all(self) -> None:
        """Give the engine its work, in the order of the set, and wait until all of it has ended."""
        self._recover()
        if self._retry_failed:
            # What we refused by rules of ours may pass under new ones.
            fetch = self.settings.fetch
            also = {Reason.SSRF: bool(fetch.allow_private), Reason.ROBOTS: not fetch.robots}
            for number in self.ledger.retryable([reason for reason, is_open in also.items() if is_open]):
                if not await self._room():
                    break
                self.ledger.again(number)
                self._begin(self._item(number))
        async for row, caption in self._rows():
            if not await self._room():
                break
            self._take_up(row, caption)
        self._note_position()
        self.engine.flush()
        while self.publisher.num_under_way:
            await self._wait()

    async def _rows(self) -> AsyncIterator[tuple[Row, str]]:
        """Yield the rows that the filters accept, with their captions; note the others."""
        batches = self.source.rows(self.position)
        while (batch := await asyncio.to_thread(self._next, batches)) is not None:
            for row in batch:
                if self._shard.holds(row.url):
                    caption, verdict = self._screen(row)
                    if verdict is not None:
                        self._refused.append((row, verdict.reason))
                    else:
                        yield row, caption
                self.position = row.number + 1
            self._note_position()

    def _next(self, batches: Iterator[list[Row]]) -> list[Row] | None:
        try:
            return next(batches, None)
        except (OSError, ValueError) as error:
            raise ScrapeError(
                f"{self.source.description}: the list cannot be read beyond row {self.position}: {error}. What was "
                "found before is in the set; mend the list, and the same command goes on."
            ) from error

    def _take_up(self, row: Row, caption: str) -> None:
        try:
            content = row.file.read_bytes() if row.file is not None else row.data
        except OSError:
            self._refused.append((row, Reason.DECODE_ERROR))
            return
        local = self._bring(content, self.ledger.last_number + 1)
        number = self.ledger.take_up(row, caption)
        if number is None:
            if local is not None:
                local.unlink()
            # A run that was killed reads the last rows again; its own are no repetitions.
            if self.ledger.position_of(row.url) != row.number:
                self._refused.append((row, Reason.DUPLICATE_URL))
            return
        self._begin(Item(number, row.url, row.md5, row.sha256))

    def _bring(self, content: bytes | None, number: int) -> Path | None:
        """Put the file of a local mirror where a fetched one would be."""
        if content is None:
            return None
        target = raw_path(self._staging, number)
        partial = target.with_suffix(".part")
        partial.write_bytes(content)
        return partial.replace(target)

    def _begin(self, item: Item) -> None:
        self.publisher.expect(item.number)
        self.engine.submit(item)

    def _item(self, number: int) -> Item:
        record = self.ledger.record(number)
        return Item(number, record.url, record.md5, record.sha256_wanted)

    async def _room(self) -> bool:
        """Wait until another item may be taken up; False: the limit is reached.

        An item is taken up only if the set would stay short of the limit should all that is under way succeed. So the
        set is the shortest beginning of the source that holds so many good images, whatever the order they come in.
        """
        while True:
            if self.limit is not None and self.ledger.num_stored + self.publisher.num_unfinished >= self.limit:
                if not self.publisher.num_under_way:
                    return False
            elif self.publisher.num_under_way < self.engine.window:
                return True
            self._note_position()
            self.engine.flush()
            await self._wait()

    async def _wait(self) -> None:
        """Wait for something to be published or to fail."""
        self._has_room.clear()
        await self._has_room.wait()

    def _note_position(self) -> None:
        """Commit how far the source has been read, with what was refused on the way."""
        self.ledger.refuse_early(self._refused)
        self._refused.clear()
        self.ledger.put("cursor", str(self.position))
        self.ledger.commit()

    # Finishing

    def _finished(self, outcome: Outcome) -> None:
        self.publisher.receive(outcome)
        self._changed.set()

    async def _publish_as_it_comes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self.publisher.publish()
            self._has_room.set()
            await asyncio.sleep(_TICK_S)

    # Going on after a kill

    def _recover(self) -> None:
        """Tidy the staging folder and take up again what a former run began and did not end."""
        for path in sorted(self._staging.iterdir()):
            number = path.name.partition(".")[0]
            status = self.ledger.status_of(int(number)) if number.isdecimal() else None
            whole = path.suffix != ".part" and status in ("pending", "staged")
            # What was made from a file is made again; the file itself is not fetched again.
            if not whole or (status == "pending" and path.suffix != ".raw"):
                path.unlink()
        for record in list(self.ledger.records("pending", "staged")):
            if (picture := self._staged(record)) is None:
                self._begin(self._item(record.number))
            else:
                self.publisher.expect(record.number)
                self.publisher.restore(Outcome(record.number, picture, 0))
                self._changed.set()

    def _staged(self, record: Record) -> Picture | None:
        """Return an image that was ready before the run was killed, if it still is."""
        if record.status != "staged":
            return None
        assert record.extension and record.width and record.height and record.num_bytes and record.sha256
        made = self._staging / f"{record.number:09d}{record.extension}"
        file = made if made.exists() else raw_path(self._staging, record.number)
        return (
            Picture(
                file,
                record.extension,
                record.width,
                record.height,
                record.num_bytes,
                record.sha256,
                record.perceptual_hash,
            )
            if file.exists()
            else None
        )

    def _discard_partial_files(self) -> None:
        for path in self._staging.glob("*.part"):
            path.unlink(missing_ok=True)
