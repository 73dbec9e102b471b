"""robots.txt by RFC 9309, asked once per site and day."""

import asyncio
import time
from collections import OrderedDict
from typing import Protocol

from protego import Protego
from yarl import URL

from scrapers.fetch.client import Client, Redirect
from scrapers.fetch.optout import TOKEN
from scrapers.types import Reason, Verdict

MAX_BYTES = 500 * 1024
TTL_S = 24 * 3600.0
_MAX_HOPS = 5
_MAX_CRAWL_DELAY_S = 30.0
_IN_MEMORY = 5_000
_RETRY_S = 3.0
"""How long an unreachable robots.txt stays so without being asked for again, if the site does not say."""

Answer = Protego | Verdict


class Store(Protocol):
    """Where rules outlive the run."""

    def load_robots(self, origin: str) -> tuple[float, str] | None:
        """Return (Unix time of the answer, text), if there is one."""

    def save_robots(self, origin: str, text: str) -> None:
        """Keep the text of an answer of now."""


class Robots:
    """The rules of every site, each asked for once, whoever needs them at the same time."""

    def __init__(self, client: Client, store: Store) -> None:
        self._client, self._store = client, store
        self._known: OrderedDict[str, asyncio.Future[Answer]] = OrderedDict()
        self._expiry: dict[str, float] = {}

    async def verdict(self, url: URL) -> tuple[Verdict | None, float]:
        """Return why a URL must not be fetched, if so, and the site's crawl delay in seconds."""
        answer = await self._rules(url.origin())
        if isinstance(answer, Verdict):
            return answer, 0.0
        delay_s = min(float(answer.crawl_delay(TOKEN) or 0.0), _MAX_CRAWL_DELAY_S)
        allowed = answer.can_fetch(str(url), TOKEN)
        return (None if allowed else Verdict(Reason.ROBOTS, f"{url.origin()}/robots.txt disallows it")), delay_s

    async def _rules(self, origin: URL) -> Answer:
        key = str(origin)
        known = self._known.get(key)
        if known is not None and self._expiry.get(key, float("inf")) > time.monotonic():
            self._known.move_to_end(key)
            return await asyncio.shield(known)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._known[key] = future
        self._expiry.pop(key, None)
        try:
            answer = self._stored(key) or await self._ask(origin)
        except BaseException:
            future.cancel()
            self._known.pop(key, None)
            raise
        future.set_result(answer)
        kept_s = max(_RETRY_S, answer.retry_after_s or 0.0) if isinstance(answer, Verdict) else TTL_S
        self._expiry[key] = time.monotonic() + kept_s
        while len(self._known) > _IN_MEMORY:
            self._expiry.pop(self._known.popitem(last=False)[0], None)
        return answer

    def _stored(self, origin: str) -> Answer | None:
        found = self._store.load_robots(origin)
        return Protego.parse(found[1]) if found is not None and time.time() - found[0] < TTL_S else None

    async def _ask(self, origin: URL) -> Answer:
        url = origin.join(URL("/robots.txt"))
        for _ in range(_MAX_HOPS + 1):
            got = await self._client.text(url, MAX_BYTES)
            if isinstance(got, Redirect):
                url = got.url
                continue
            if isinstance(got, Verdict):
                return got  # the site cannot be reached at all, and the image neither
            status, text, throttled = got
            if status == 429 or status >= 500:
                wait_s = throttled.retry_after_s if throttled else None
                return Verdict(Reason.ROBOTS_UNREACHABLE, f"robots.txt answers {status}, so nothing is allowed", wait_s)
            # RFC 9309: no rules, or none to be had (4xx), allow everything.
            text = text if status == 200 else ""
            self._store.save_robots(str(origin), text)
            return Protego.parse(text)
        self._store.save_robots(str(origin), "")
        return Protego.parse("")
