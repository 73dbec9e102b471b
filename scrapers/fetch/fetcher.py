"""Jobs in, files or verdicts out: the one loop that starts requests.

A redirect or a retry is the same job queued again, under the host that is asked next; so every hop waits its turn
there, is checked against that host's robots.txt, and no slot is held while waiting.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from scrapers.fetch.client import Body, Client, Redirect, parse_url
from scrapers.fetch.robots import Robots, Store
from scrapers.fetch.schedule import Schedule
from scrapers.types import Reason, Verdict

PER_HOST = 4
"""Requests in flight to one host, where nothing else is said: what a person's browser would do."""


@dataclass
class Job:
    """One image to fetch."""

    number: int
    url: URL
    target: Path
    hops: int = 0
    tries: int = 0


Result = Body | Verdict


class Fetcher:
    """Fetches what is submitted; `done` is called once for each job, with its result."""

    def __init__(
        self,
        client: Client,
        store: Store,
        done: Callable[[Job, Result], None],
        *,
        look: Callable[[bytes], Verdict | None] | None = None,
        may_start: Callable[[], bool] = lambda: True,
    ) -> None:
        """`may_start` holds back new requests while what was fetched is still being worked on."""
        settings = client.settings
        self._client, self._settings, self._done, self._look, self._may_start = client, settings, done, look, may_start
        self._robots = Robots(client, store) if settings.robots else None
        self._schedule: Schedule[Job] = Schedule(
            settings.concurrency, self._limit_of, settings.delay_s, settings.max_retry_after_s
        )
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def submit(self, number: int, url: str, target: Path) -> None:
        """Queue an image."""
        parsed = parse_url(url)
        job = Job(number, parsed or URL(), target)
        if parsed is None:
            self._done(job, Verdict(Reason.BAD_URL, url[:200]))
            return
        self._schedule.add(_host_of(parsed), job)
        self._wake.set()

    def poke(self) -> None:
        """Say that `may_start` may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Start requests as their turn comes, until cancelled. Raises WriteError if the disk is full."""
        try:
            while True:
                self._wake.clear()
                if self._failure is not None:
                    raise self._failure
                now = time.monotonic()
                while self._may_start() and (started := self._schedule.next(now)) is not None:
                    self._start(*started)
                # While decoding is behind nothing may start, and `poke` says when it may.
                at = self._schedule.next_time() if self._may_start() else None
                timeout_s = None if at is None else max(0.0, at - time.monotonic())
                try:
                    await asyncio.wait_for(self._wake.wait(), timeout_s)
                except asyncio.TimeoutError:
                    continue
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _limit_of(self, host: str) -> int:
        if self._settings.per_host is not None:
            return self._settings.per_host
        # An address that the user opened is the user's own.
        address = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        return self._settings.concurrency if self._client.is_opened(address) else PER_HOST

    def _start(self, host: str, job: Job) -> None:
        task = asyncio.get_running_loop().create_task(self._one(host, job))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
        self._wake.set()

    async def _one(self, host: str, job: Job) -> None:
        """Make one hop and decide what follows from it."""
        result = self._schedule.obstacle(host, time.monotonic()) or await self._ask(host, job)
        verdict = result if isinstance(result, Verdict) else None
        throttled = verdict is not None and verdict.is_throttling
        self._schedule.ended(host, verdict, time.monotonic(), throttled=throttled)
        if result is None:
            self._schedule.add(host, job)
        elif isinstance(result, Redirect):
            self._follow(job, result.url)
        elif verdict is not None and (wait_s := self._wait_before_retry(job, verdict)) is not None:
            job.tries += 1
            self._schedule.add(host, job, at=time.monotonic() + wait_s)
        else:
            self._done(job, result)

    async def _ask(self, host: str, job: Job) -> Body | Redirect | Verdict | None:
        """Ask for the image, if that is allowed; None: not in this turn, which came too soon for the site."""
        if self._robots is not None:
            pace_s = self._schedule.delay_of(host)
            verdict, delay_s = await self._robots.verdict(job.url)
            if verdict is not None:
                return verdict
            self._schedule.crawl_delay(host, delay_s)
            # Several may have waited for the robots.txt that says to come one by one.
            if self._schedule.delay_of(host) > pace_s:
                return None
        return await self._client.fetch(job.url, job.target, self._look)

    def _follow(self, job: Job, url: URL) -> None:
        if job.hops >= self._settings.max_redirects:
            self._done(job, Verdict(Reason.REDIRECT_LIMIT, f"more than {self._settings.max_redirects} redirects"))
            return
        job.hops += 1
        job.url = url
        self._schedule.add(_host_of(url), job, first=True)

    def _wait_before_retry(self, job: Job, verdict: Verdict) -> float | None:
        """Return the seconds to wait before another try, or None if there is none."""
        if not verdict.reason.can_still_pass or job.tries + 1 >= self._settings.tries:
            return None
        # Who has held us for all the time there is may not do so three times over.
        if verdict.reason in (Reason.HOST_DOWN, Reason.TOTAL_TIMEOUT):
            return None
        # Full jitter, so that what failed together does not come back together.
        wait_s = random.uniform(0, self._settings.backoff_s * 4**job.tries)
        if verdict.retry_after_s is not None:
            if verdict.retry_after_s > self._settings.max_retry_after_s:
                return None
            wait_s += verdict.retry_after_s
        return wait_s


def _host_of(url: URL) -> str:
    """Name whom a URL asks: host and port."""
    return url.host_port_subcomponent or ""
