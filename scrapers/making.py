"""What makes a set the one it is: its part of the source, and the settings that decide what is in it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrapers import report
from scrapers.domains import group_of
from scrapers.errors import ScrapeError
from scrapers.ledger import Ledger
from scrapers.settings import ScrapeSettings
from scrapers.sources import Source


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of a source; all rows of a host are in the same one, so that its limits hold."""

    index: int
    count: int

    def holds(self, url: str) -> bool:
        """Whether a row belongs to this part."""
        return self.count == 1 or group_of(url, self.count) == self.index


def part_of(limit: int | None, shard: Shard) -> int | None:
    """Return a shard's part of the limit; the parts add up to it."""
    if limit is None:
        return None
    return limit // shard.count + (shard.index < limit % shard.count)


def require_same_making(ledger: Ledger, settings: ScrapeSettings, source: Source, shard: Shard, out: Path) -> None:
    """Raise ScrapeError if a set was begun with other settings that decide what is in it."""
    making: dict[str, Any] = {
        "source": source.fingerprint,
        **{name: getattr(settings, name).model_dump() for name in ("filters", "captions", "images", "sink")},
        "shard": f"{shard.index}/{shard.count}",
    }
    begun = json.loads(ledger.get("making", "null"))
    if begun is None:
        if foreign := [name for name in report.FILES if (out / name).exists()]:
            raise ScrapeError(
                f"{out} holds {', '.join(foreign)}, which this set would overwrite, and no set of ours. Choose another "
                "--out, an empty folder best."
            )
        ledger.put("making", json.dumps(making))
        ledger.commit()
        return
    changed = list(_differences(begun, making))
    if changed:
        details = "".join(f"\n  {line}" for line in changed)
        raise ScrapeError(
            f"{out} holds a set that was begun with other settings, and one set is made in one way.{details}\n"
            "Use the same settings to go on with it, or another --out for a new set."
        )


def _differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a line for each key that differs: "filters.min_width: 512 -> 768"."""
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {old} -> {new}"
