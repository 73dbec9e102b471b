"""What became of every URL: as a summary, as one JSON line per URL, as manifest and credits beside the set."""

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scrapers.errors import ScrapeError, printable
from scrapers.ledger import FILE, FOLDER, Ledger
from scrapers.types import Reason, Record
from scrapers.whole import whole_file

MANIFEST, CREDITS, SUMMARY = "manifest.jsonl", "credits.txt", "summary.json"
INDEX = "index.parquet"
"""Of a set of tar shards."""
FILES = (MANIFEST, CREDITS, SUMMARY, INDEX)
"""What a set as a whole is told by."""
Lines = Iterator[dict[str, Any]]


def counts(ledger: Ledger) -> dict[str, Any]:
    """Return how many rows ended how: {"stored": n, "refused": {reason: n}, "failed": {reason: n}, "unfinished": n}."""
    by_status: dict[str, Counter[str]] = {"refused": Counter(), "failed": Counter()}
    for reason, number in ledger.refused_early.items():
        by_status[Reason(reason).status][reason] += number
    for (status, reason), number in ledger.counts.items():
        if status in by_status and number:
            by_status[status][reason] += number
    return {
        "stored": ledger.num_stored,
        **{status: dict(counter.most_common()) for status, counter in by_status.items()},
        "unfinished": ledger.counts["pending", ""] + ledger.counts["staged", ""],
    }


_HINTS = {
    "ssrf": "ssrf: these addresses are not public. If they are yours: --allow-private ADDRESS --retry-failed",
    "robots": "robots: the sites' robots.txt does not want it. If they are yours: --robots off --retry-failed",
    "words": "words: the captions lack the words that are wanted",
}


def describe(numbers: Mapping[str, Any]) -> str:
    """Return the counts in words."""
    lines = [f"{numbers['stored']:,} images stored" if numbers["stored"] else "Nothing was stored"]
    for status in ("refused", "failed"):
        reasons = numbers[status]
        lines.append(f"{sum(reasons.values()):,} {status}")
        lines += [f"  {number:>9,} {reason}" for reason, number in reasons.items()]
    lines += [
        hint for reason, hint in _HINTS.items() if any(reason in numbers[status] for status in ("refused", "failed"))
    ]
    if numbers["unfinished"]:
        lines.append(f"{numbers['unfinished']:,} unfinished; the same command goes on with them")
    return "\n".join(lines)


def lines(ledger: Ledger) -> Lines:
    """Yield one object per URL, in the order of the source: url, status, reason, path (None unless stored)."""
    early = (
        (position, {"url": url, "status": Reason(reason).status, "reason": reason, "path": None})
        for position, url, reason in ledger.early_refusals()
    )
    taken = ((record.position, _line(record)) for record in ledger.records())
    yield from (line for _, line in heapq.merge(early, taken, key=lambda pair: pair[0]))


def _line(record: Record) -> dict[str, Any]:
    return {"url": record.url, "status": record.status, "reason": record.reason, "path": record.path}


def write_lines(target: Path, objects: Iterable[dict[str, Any]]) -> int:
    """Write objects as JSON lines, whole or not at all; return how many."""
    number = 0
    if not target.parent.is_dir():
        raise ScrapeError(f"{target}: there is no folder {target.parent}; make it, or name another file.")
    with whole_file(target) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for item in objects:
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
            number += 1
    return number


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write the last run in numbers. Raises ScrapeError if the disk does not take it."""
    try:
        with whole_file(folder / SUMMARY) as partial:
            partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ScrapeError(f"The set in {folder} is whole, but {SUMMARY} could not be written: {error}.") from error


def write_files(ledger: Ledger, folder: Path) -> None:
    """Write the manifest and the credits of a set."""
    write_lines(folder / MANIFEST, map(_manifest_line, ledger.records("stored")))
    with whole_file(folder / CREDITS) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in _credits(ledger))


def _manifest_line(record: Record) -> dict[str, Any]:
    return {
        "path": record.path,
        "caption": record.caption,
        "url": record.url,
        "sha256": record.sha256,
        "bytes": record.num_bytes,
        "width": record.width,
        "height": record.height,
        "licence": record.about.get("licence", ""),
        "licence_url": record.about.get("licence_url", ""),
        "author": record.about.get("author", ""),
        "title": record.about.get("title", ""),
        "source": record.where,
        "row": record.position,
        "time": datetime.fromtimestamp(record.time or 0, timezone.utc).isoformat(timespec="seconds"),
    }


def _credits(ledger: Ledger) -> Iterator[str]:
    """Yield a line for each image whose author or licence is known, then the hosts of the others."""
    yield "Where the images of this set come from. They belong to their authors; see the licence of each."
    unknown: Counter[str] = Counter()
    for record in ledger.records("stored"):
        about = {name: " ".join(printable(value).split()) for name, value in record.about.items()}
        if not (about.get("author") or about.get("licence", "").strip("?")):
            unknown[urlsplit(record.url).hostname or "?"] += 1
            continue
        by = f"by {about['author']}" if about.get("author") else ""
        licence = " ".join(filter(None, (about.get("licence", "").strip("?"), about.get("licence_url"))))
        yield f"{record.path}: " + ", ".join(filter(None, (about.get("title"), by, licence, record.url)))
    if unknown:
        yield "Licence and author not told by the source:"
        yield from (f"  {number:>8,} from {host}" for host, number in sorted(unknown.items()))


@contextmanager
def opened(folder: Path) -> Iterator[dict[str, Ledger]]:
    """Open the ledger of a set, or those of its shards: path from `folder` -> ledger."""
    shards = sorted(path.parent.parent for path in folder.glob(f"shard-*/{FOLDER}/{FILE}"))
    folders = shards if shards and not (folder / FOLDER / FILE).exists() else [folder]
    with ExitStack() as stack:
        ledgers = {}
        for path in folders:
            prefix = "" if path == folder else f"{path.name}/"
            ledgers[prefix] = Ledger(path, create=False)
            stack.callback(ledgers[prefix].close)
        yield ledgers


def total(ledgers: Mapping[str, Ledger]) -> dict[str, Any]:
    """Return the counts of several ledgers together."""
    parts = [counts(ledger) for ledger in ledgers.values()]
    summed: dict[str, Any] = {name: sum(part[name] for part in parts) for name in ("stored", "unfinished")}
    for status in ("refused", "failed"):
        together: Counter[str] = sum((Counter(part[status]) for part in parts), Counter())
        summed[status] = dict(together.most_common())
    return summed


def all_lines(ledgers: Mapping[str, Ledger]) -> Lines:
    """Yield the lines of several ledgers, with paths from their common folder."""
    for prefix, ledger in ledgers.items():
        for line in lines(ledger):
            yield {**line, "path": prefix + line["path"]} if line["path"] else line
