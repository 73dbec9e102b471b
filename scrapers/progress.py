"""The progress of a scrape as one line: what is done, how it ended, how fast, and how long it may take."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scrapers import report

if TYPE_CHECKING:
    from scrapers.pipeline import Scrape

_REFRESH_S = 0.5
_PLAIN_S = 10.0
"""Seconds between lines where the output is no terminal."""
_SHOWN = 3


@dataclass(frozen=True)
class Snapshot:
    """Where a scrape stands."""

    counts: Mapping[str, Any]
    elapsed_s: float
    stored_now: int
    """Images stored in this run."""
    num_bytes: int
    """Bytes received in this run."""
    ready: int
    """Images that wait for their turn to be published, or for a shard to be full."""
    done: int
    total: int | None
    """Of `done`: images if there is a limit, else rows of the source; None: nobody knows."""

    @property
    def images_per_s(self) -> float:
        """Images stored per second of this run."""
        return self.stored_now / max(self.elapsed_s, 1e-9)


def snapshot(scrape: "Scrape", done_before: int) -> Snapshot:
    """Return where a scrape stands; `done_before` is what `done` was when this run began."""
    total = scrape.limit if scrape.limit is not None else scrape.source.num_rows
    return Snapshot(
        counts=report.counts(scrape.ledger),
        elapsed_s=time.monotonic() - scrape.started,
        stored_now=scrape.ledger.num_stored - scrape.stored_before,
        num_bytes=scrape.engine.num_bytes,
        ready=scrape.ledger.counts["staged", ""],
        done=done_of(scrape) - done_before,
        total=None if total is None else max(0, total - done_before),
    )


def done_of(scrape: "Scrape") -> int:
    """Return what progress is counted in: images if there is a limit, else rows."""
    if scrape.limit is not None:
        return scrape.ledger.num_stored + scrape.ledger.counts["staged", ""]
    return max(0, scrape.position - scrape.publisher.num_under_way)


def describe(now: Snapshot) -> str:
    """Return the line."""
    ready = f" and {now.ready:,} ready" if now.ready else ""
    parts = [f"{now.counts['stored']:,} ok{ready}"]
    for status in ("refused", "failed"):
        reasons = now.counts[status]
        shown = ", ".join(f"{reason} {number:,}" for reason, number in list(reasons.items())[:_SHOWN])
        more = ", ..." if len(reasons) > _SHOWN else ""
        parts.append(f"{sum(reasons.values()):,} {status}" + (f" ({shown}{more})" if shown else ""))
    ended = sum(sum(now.counts[status].values()) for status in ("refused", "failed"))
    done = ended + now.counts["stored"] + now.ready
    parts.insert(0, f"{done:,} done")
    parts.append(f"{now.images_per_s:.1f} images/s")
    if now.num_bytes:
        parts.append(f"{now.num_bytes / max(now.elapsed_s, 1e-9) / 1e6:.1f} MB/s")
    if now.total and now.done:
        parts.append(f"{_clock(now.elapsed_s * (now.total - now.done) / now.done)} left")
    return " | ".join(parts)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


async def show(take: Callable[[], Snapshot]) -> None:
    """Show the line on stderr until cancelled: in place on a terminal, else now and then."""
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(file=sys.stderr)
    live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
    with live or nullcontext():
        while True:
            await asyncio.sleep(_REFRESH_S if live else _PLAIN_S)
            if live is not None:
                live.update(Text(describe(take())), refresh=True)
            else:
                print(describe(take()), file=sys.stderr, flush=True)
