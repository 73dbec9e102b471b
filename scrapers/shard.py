"""A portion of a scrape as one call that any machine can make: `run_shard(spec) -> outcomes`.

It reads and writes the staging folder of the set and nothing else, so it may be run again at any time: what was fetched
before is not fetched again, and a portion that was done gives the answer it gave before.
"""

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scrapers.settings import ScrapeSettings
from scrapers.types import Item, Outcome, Picture, Reason, Verdict
from scrapers.workshop import Workshop


@dataclass(frozen=True)
class ShardSpec:
    """Everything that a portion needs."""

    settings: str
    """`ScrapeSettings` as JSON."""
    staging: str
    """Folder on a file system that all machines share."""
    group: int
    """Portions of one group hold the same hosts, and are run one after another."""
    items: tuple[Item, ...]

    @property
    def done_file(self) -> Path:
        """What is there once the portion is done."""
        return Path(self.staging) / f"shard-{self.items[0].number}-{self.items[-1].number}-{self.group}.done"


def run_shard(spec: ShardSpec) -> list[Outcome]:
    """Fetch and decode a portion. Raises WriteError or OSError if the disk does not take it."""
    if spec.done_file.exists():
        found = [_outcome(raw) for raw in json.loads(spec.done_file.read_text(encoding="utf-8"))]
        if [outcome.number for outcome in found] == [item.number for item in spec.items]:
            return found
    outcomes = asyncio.run(_run(spec))
    partial = spec.done_file.with_suffix(".part")
    partial.write_text(json.dumps([_plain(outcome) for outcome in outcomes]), encoding="utf-8")
    partial.replace(spec.done_file)
    return outcomes


async def _run(spec: ShardSpec) -> list[Outcome]:
    found: dict[int, Outcome] = {}
    ended = asyncio.Event()

    def done(outcome: Outcome) -> None:
        found[outcome.number] = outcome
        if len(found) == len(spec.items):
            ended.set()

    staging = Path(spec.staging)
    settings = ScrapeSettings.model_validate_json(spec.settings)
    async with Workshop(settings, staging, RobotsFile(staging / f"robots-{spec.group}.json"), done) as workshop:
        for item in spec.items:
            workshop.submit(item)
        work, end = asyncio.create_task(workshop.run()), asyncio.create_task(ended.wait())
        await asyncio.wait([work, end], return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if work.done():
            work.result()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    return [found[item.number] for item in spec.items]


class RobotsFile:
    """Rules of the sites of one group, for its next portions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[float, str]] = {}
        if path.exists():
            self._known = {name: (at, text) for name, (at, text) in json.loads(path.read_text("utf-8")).items()}

    def load_robots(self, origin: str) -> tuple[float, str] | None:
        """Return the rules of a site and when they were read."""
        return self._known.get(origin)

    def save_robots(self, origin: str, text: str) -> None:
        """Keep the rules of a site."""
        self._known[origin] = (time.time(), text)
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(self._known), encoding="utf-8")
        partial.replace(self._path)


def _plain(outcome: Outcome) -> dict[str, Any]:
    result: dict[str, Any] = asdict(outcome.result)
    if isinstance(outcome.result, Picture):
        result["file"] = str(outcome.result.file)
    else:
        result["reason"] = outcome.result.reason.value
    return {"number": outcome.number, "tries": outcome.tries, "result": result}


def _outcome(raw: dict[str, Any]) -> Outcome:
    result = raw["result"]
    if "reason" in result:
        return Outcome(raw["number"], Verdict(**{**result, "reason": Reason(result["reason"])}), raw["tries"])
    return Outcome(raw["number"], Picture(**{**result, "file": Path(result["file"])}), raw["tries"])
