"""Whose turn it is: hosts in rotation, each with a queue, a limit that adapts, and pauses. No I/O, no clock.

A host's limit halves when it answers 429 or 503 and grows back by one per as many successes (additive increase,
multiplicative decrease, as in TCP). `Retry-After` pauses the whole host, since that is what it means.
A host that cannot be connected to several times in a row is left alone for a while.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from scrapers.types import Reason, Verdict

DOWN_AFTER = 5
"""Consecutive failures to connect after which a host counts as down."""
DOWN_S = 600.0
"""Seconds that a host counts as down."""
_PAUSE_S = 1.0
"""Pause after a 429 or 503 that does not say how long to wait."""

_UNREACHABLE = frozenset({Reason.DNS_TEMP, Reason.CONNECT_REFUSED, Reason.CONNECT_TIMEOUT})
_SWEEP_HOSTS = 10_000
"""From this many known hosts on, those at rest are forgotten now and then: lists name millions of them."""

Job = TypeVar("Job")


@dataclass
class _Host(Generic[Job]):
    cap: float
    limit: float
    queue: deque[Job] = field(default_factory=deque)
    active: int = 0
    is_ready: bool = False
    not_before: float = 0.0
    delay_s: float = 0.0
    unreachable: int = 0
    """Failures to connect in a row."""
    down_until: float = 0.0
    long_waits: int = 0
    """Answers in a row that ask for a longer wait than a run can give."""
    closed_until: float = 0.0


class Schedule(Generic[Job]):
    """Jobs by host; `next` gives the one whose turn it is."""

    def __init__(self, concurrency: int, limit_of: Callable[[str], int], delay_s: float, max_wait_s: float) -> None:
        """`limit_of` is the most requests in flight to a host; waits beyond `max_wait_s` are not waited for."""
        self._concurrency, self._limit_of, self._delay_s, self._max_wait_s = concurrency, limit_of, delay_s, max_wait_s
        self._hosts: dict[str, _Host[Job]] = {}
        self._ready: deque[str] = deque()
        self._timed: list[tuple[float, int, str, Job | None]] = []
        self._ids = itertools.count()
        self._sweep_at = _SWEEP_HOSTS
        self.num_active = 0
        self.num_waiting = 0
        """Jobs that are queued or wait for their time."""

    def add(self, host: str, job: Job, *, at: float = 0.0, first: bool = False) -> None:
        """Queue a job: not before `at`, and in front of the host's other jobs if `first`."""
        self.num_waiting += 1
        if at > 0.0:
            heapq.heappush(self._timed, (at, next(self._ids), host, job))
        else:
            self._enqueue(host, job, first)

    def next(self, now: float) -> tuple[str, Job] | None:
        """Return the job whose turn it is, as begun, or None if none may begin now."""
        self._wake(now)
        if self.num_active >= self._concurrency:
            return None
        while self._ready:
            name = self._ready.popleft()
            host = self._hosts[name]
            host.is_ready = False
            if not host.queue or host.active >= max(1, int(host.limit)):
                continue
            if host.not_before > now:
                heapq.heappush(self._timed, (host.not_before, next(self._ids), name, None))
                continue
            job = host.queue.popleft()
            host.active += 1
            self.num_active += 1
            self.num_waiting -= 1
            if delay_s := max(self._delay_s, host.delay_s):
                host.not_before = now + delay_s
            self._mark_ready(name)
            return name, job
        return None

    def next_time(self) -> float | None:
        """Return when something that waits for its time may begin."""
        return self._timed[0][0] if self._timed else None

    def obstacle(self, name: str, now: float) -> Verdict | None:
        """Return why asking a host is no use now, if so."""
        host = self._hosts[name]
        if host.down_until > now:
            return Verdict(Reason.HOST_DOWN, f"{host.unreachable} connections in a row failed")
        if host.closed_until > now:
            wait_s = host.closed_until - now
            return Verdict(
                Reason.HTTP_429, f"the host asked us to wait {wait_s:.0f} s more", wait_s, is_throttling=True
            )
        return None

    def delay_of(self, name: str) -> float:
        """Return the crawl delay of a host, as far as it is known."""
        return self._hosts[name].delay_s

    def crawl_delay(self, name: str, delay_s: float) -> None:
        """Keep at least this long between the starts of two requests to a host, one at a time."""
        host = self._hosts[name]
        if delay_s > host.delay_s:
            host.delay_s, host.cap, host.limit = delay_s, 1, 1

    def ended(self, name: str, verdict: Verdict | None, now: float, *, throttled: bool = False) -> None:
        """Note how a job ended: without a verdict it was answered; `throttled`: by 429 or 503."""
        host = self._hosts[name]
        host.active -= 1
        self.num_active -= 1
        if verdict is not None and verdict.reason in _UNREACHABLE:
            host.unreachable += 1
            if host.unreachable >= DOWN_AFTER:
                host.down_until = now + DOWN_S
        elif verdict is None or verdict.reason is not Reason.HOST_DOWN:
            host.unreachable = 0
        if throttled:
            self._slow_down(host, verdict, now)
        elif verdict is None:
            host.long_waits = 0
            host.limit = min(host.cap, host.limit + 1 / host.limit)
        self._mark_ready(name)
        if len(self._hosts) > self._sweep_at:
            self._sweep(now)

    def _slow_down(self, host: _Host[Job], verdict: Verdict | None, now: float) -> None:
        host.limit = max(1.0, host.limit / 2)
        wait_s = verdict.retry_after_s if verdict is not None and verdict.retry_after_s is not None else _PAUSE_S
        if wait_s <= self._max_wait_s:
            host.not_before = max(host.not_before, now + wait_s)
            return
        # One such answer may be about one address; two in a row are about us.
        host.long_waits += 1
        if host.long_waits >= 2:
            host.closed_until = now + wait_s

    def _sweep(self, now: float) -> None:
        """Forget the hosts that nothing is known of but that they are well."""
        at_rest = [
            name for name, host in self._hosts.items()
            if not (host.queue or host.active or host.is_ready or host.unreachable or host.limit < host.cap)
            and max(host.not_before, host.closed_until) <= now
        ]  # fmt: skip
        for name in at_rest:
            del self._hosts[name]
        self._sweep_at = max(_SWEEP_HOSTS, 2 * len(self._hosts))

    def _wake(self, now: float) -> None:
        while self._timed and self._timed[0][0] <= now:
            _, _, name, job = heapq.heappop(self._timed)
            if job is None:
                if name in self._hosts:
                    self._mark_ready(name)
            else:
                self._enqueue(name, job, True)

    def _enqueue(self, name: str, job: Job, first: bool) -> None:
        if name not in self._hosts:
            cap = float(self._limit_of(name))
            self._hosts[name] = _Host(cap, cap)
        queue = self._hosts[name].queue
        queue.appendleft(job) if first else queue.append(job)
        self._mark_ready(name)

    def _mark_ready(self, name: str) -> None:
        host = self._hosts[name]
        if host.queue and not host.is_ready:
            host.is_ready = True
            self._ready.append(name)
