"""The ledger: one SQLite file per set that knows what became of every URL.

    items      one row per URL that was taken up, in the order of the source; `number` is its place in that order
    refusals   rows that the filters refused, a packed block per batch: of a large list nearly all are
    names      how often each file name has been used
    robots     rules of sites, for a day

The position in the source and the items taken up from before it are committed together, so a killed run goes on with
neither a gap nor a repetition. Writes gather in one transaction until `commit`.
"""

import json
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scrapers.errors import ScrapeError, WriteError
from scrapers.types import Outcome, Reason, Record, Row, Verdict

FOLDER = ".scrape"
FILE = "ledger.sqlite"
_VERSION = "1"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
  number INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE, position INTEGER NOT NULL, place TEXT, caption TEXT NOT NULL,
  about TEXT NOT NULL, md5 TEXT, sha256_wanted TEXT, status TEXT NOT NULL, reason TEXT, detail TEXT, tries INTEGER,
  retry_at REAL, extension TEXT, width INTEGER, height INTEGER, bytes INTEGER, sha256 TEXT, phash INTEGER,
  path TEXT, time REAL
);
CREATE INDEX IF NOT EXISTS stored_content ON items (sha256) WHERE status = 'stored';
CREATE INDEX IF NOT EXISTS unfinished ON items (number) WHERE status IN ('pending', 'staged');
CREATE TABLE IF NOT EXISTS refusals (first INTEGER PRIMARY KEY, lines BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS names (key TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS robots (origin TEXT PRIMARY KEY, time REAL NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
"""


_COLUMNS = (
    "number, url, position, place, caption, about, md5, sha256_wanted, status, reason, detail, tries, "
    "extension, width, height, bytes, sha256, phash, path, time"
)
_ABOUT = ("licence", "licence_url", "author", "title")


class Ledger:
    """The ledger of one set; used from one thread."""

    def __init__(self, folder: Path, *, create: bool = True) -> None:
        """Open the ledger of the set in `folder`; without `create` it has to be there."""
        path = folder / FOLDER / FILE
        if not create and not path.exists():
            raise ScrapeError(f"{folder} holds no scraped set: there is no {FOLDER}/{FILE} in it.")
        self._path, self._failure = path, ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScrapeError(f"{folder} cannot hold a set: {error}. Choose another --out.") from error
        self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
        try:
            # One writer: a second scrape into the same set would take up the same rows.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.execute("BEGIN IMMEDIATE")  # takes the lock, and writes nothing
            version = self.get("version", "")
            if not version:
                self.put("version", _VERSION)
            elif version != _VERSION:
                raise ScrapeError(f"{path} was written by another version of EveryDream; use another --out.")
            self.commit()
        except sqlite3.DatabaseError as error:
            hint = " Is another scrape writing to it?" if "locked" in str(error) else ""
            raise ScrapeError(f"{path} cannot be used: {error}.{hint}") from error
        self.counts: Counter[tuple[str, str]] = Counter(
            {(status, reason or ""): n for status, reason, n in self._db.execute(
                "SELECT status, reason, COUNT(*) FROM items GROUP BY status, reason")}
        )  # fmt: skip
        """(status, reason) -> items."""
        self.refused_early: Counter[str] = Counter(json.loads(self.get("refused_early", "{}")))
        """Reason -> rows that the filters refused, and repeated URLs."""
        self.last_number: int = self._db.execute("SELECT COALESCE(MAX(number), 0) FROM items").fetchone()[0]

    # Writing

    def _write(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        self._require_sound()
        try:
            if not self._db.in_transaction:
                self._db.execute("BEGIN")
            return self._db.execute(sql, values)
        except sqlite3.OperationalError as error:
            raise self._failed(error) from error

    def commit(self) -> None:
        """Make what was written last. Raises WriteError if the disk is full; the state before it then stays."""
        self._require_sound()
        if self._db.in_transaction:
            try:
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise self._failed(error) from error

    def _failed(self, error: sqlite3.OperationalError) -> WriteError:
        self._failure = f"{self._path} cannot be written: {error}"
        return WriteError(self._failure)

    def _require_sound(self) -> None:
        """On a full disk SQLite takes back the whole transaction: what comes next must not be written without it."""
        if self._failure:
            raise WriteError(self._failure)

    def abandon(self) -> None:
        """Go back to the last commit and close."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._db.close()

    def close(self) -> None:
        """Commit and close."""
        try:
            self.commit()
        finally:
            self._db.close()

    def put(self, key: str, value: str) -> None:
        """Keep a value."""
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def get(self, key: str, default: str) -> str:
        """Return a value that was kept."""
        found = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return str(found[0]) if found else default

    def take_up(self, row: Row, caption: str) -> int | None:
        """Begin an item for a row; None if its URL is known already."""
        about = {name: value for name in _ABOUT if (value := getattr(row, name))}
        done = self._write(
            "INSERT OR IGNORE INTO items (number, url, position, place, caption, about, md5, sha256_wanted, status, "
            "tries) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'pending', 0)",
            (self.last_number + 1, _storable(row.url), row.number, _storable(row.where), _storable(caption),
             _storable(json.dumps(about, ensure_ascii=False)), row.md5, row.sha256),
        )  # fmt: skip
        if done.rowcount == 0:
            return None
        self.last_number += 1
        self.counts["pending", ""] += 1
        return self.last_number

    def refuse_early(self, refused: Sequence[tuple[Row, Reason]]) -> None:
        """Keep the rows of a batch that ended before they were taken up."""
        self.refused_early.update(reason.value for _, reason in refused)
        lines = [(row.number, row.url, reason.value) for row, reason in refused if reason is not Reason.DUPLICATE_URL]
        if lines:
            packed = zlib.compress(json.dumps(lines).encode("ascii"))
            self._write("INSERT OR REPLACE INTO refusals VALUES (?, ?)", (lines[0][0], packed))
        self.put("refused_early", json.dumps(self.refused_early))

    def again(self, number: int) -> None:
        """Begin an item once more that ended without an image."""
        record = self.record(number)
        self._count((record.status, record.reason), ("pending", None))
        self._write("UPDATE items SET status = 'pending', reason = NULL WHERE number = ?", (number,))

    def finish(self, outcome: Outcome) -> None:
        """Note how a pending item ended: staged with its picture, or with its verdict."""
        result = outcome.result
        if isinstance(result, Verdict):
            self._end(outcome.number, "pending", result, outcome.tries)
            return
        self._count(("pending", None), ("staged", None))
        self._write(
            "UPDATE items SET status = 'staged', tries = tries + ?, extension = ?, width = ?, height = ?, bytes = ?, "
            "sha256 = ?, phash = ? WHERE number = ?",
            (outcome.tries, result.extension, result.width, result.height, result.num_bytes, result.sha256,
             _signed(result.perceptual_hash), outcome.number),
        )  # fmt: skip

    def refuse_staged(self, number: int, reason: Reason) -> None:
        """Note that an image that was ready does not come into the set."""
        self._end(number, "staged", Verdict(reason), 0)

    def store(self, number: int, path: str) -> None:
        """Note that a staged image is in the set."""
        self._count(("staged", None), ("stored", None))
        self._write(
            "UPDATE items SET status = 'stored', path = ?, time = ? WHERE number = ?", (path, time.time(), number)
        )

    def _end(self, number: int, before: str, verdict: Verdict, tries: int) -> None:
        reason = verdict.reason
        retry_at = time.time() + verdict.retry_after_s if verdict.retry_after_s else None
        self._count((before, None), (reason.status, reason.value))
        self._write(
            "UPDATE items SET status = ?, reason = ?, tries = tries + ?, detail = ?, retry_at = ? WHERE number = ?",
            (reason.status, reason.value, tries, _storable(verdict.detail), retry_at, number),
        )

    def _count(self, before: tuple[str, str | None], after: tuple[str, str | None]) -> None:
        self.counts[before[0], before[1] or ""] -= 1
        self.counts[after[0], after[1] or ""] += 1

    def use_name(self, key: str) -> int:
        """Return the how-manieth use of a name this is, from 1."""
        found = self._write(
            "INSERT INTO names VALUES (?, 1) ON CONFLICT (key) DO UPDATE SET used = used + 1 RETURNING used",
            (_storable(key),),
        ).fetchone()
        return int(found[0])

    # Reading

    @property
    def num_stored(self) -> int:
        """Images in the set."""
        return self.counts["stored", ""]

    def records(self, *statuses: str) -> Iterator[Record]:
        """Yield the items of these statuses (all, if none is given) in order."""
        where = f"WHERE status IN ({', '.join('?' * len(statuses))})" if statuses else ""
        yield from map(_record, self._db.execute(f"SELECT {_COLUMNS} FROM items {where} ORDER BY number", statuses))

    def record(self, number: int) -> Record:
        """Return one item."""
        return _record(self._db.execute(f"SELECT {_COLUMNS} FROM items WHERE number = ?", (number,)).fetchone())

    def status_of(self, number: int) -> str | None:
        """Return an item's status; None: there is no such item."""
        found = self._db.execute("SELECT status FROM items WHERE number = ?", (number,)).fetchone()
        return str(found[0]) if found else None

    def position_of(self, url: str) -> int | None:
        """Return the source's row that an item was taken up for; None: the URL is not known."""
        found = self._db.execute("SELECT position FROM items WHERE url = ?", (_storable(url),)).fetchone()
        return int(found[0]) if found else None

    def retryable(self, also: Collection[Reason] = ()) -> list[int]:
        """Return the failed items that may pass now, in order, and those refused for one of the reasons in `also`."""
        reasons = [reason.value for reason in Reason if reason.can_still_pass or reason in also]
        marks = ", ".join("?" * len(reasons))
        found = self._db.execute(
            f"SELECT number FROM items WHERE status IN ('failed', 'refused') AND reason IN ({marks}) "
            "AND COALESCE(retry_at, 0) <= ? ORDER BY number",
            (*reasons, time.time()),
        )
        return [int(number) for (number,) in found]

    def has_content(self, sha256: str) -> bool:
        """Whether the set has this very file."""
        sql = "SELECT 1 FROM items WHERE sha256 = ? AND status = 'stored' LIMIT 1"
        return self._db.execute(sql, (sha256,)).fetchone() is not None

    def perceptual_hashes(self) -> Iterable[int]:
        """Yield the perceptual hashes of the set."""
        sql = "SELECT phash FROM items WHERE status = 'stored' AND phash IS NOT NULL"
        return (value & (2**64 - 1) for (value,) in self._db.execute(sql))

    def early_refusals(self) -> Iterator[tuple[int, str, str]]:
        """Yield (position, url, reason) of every row that the filters refused, in order."""
        for (packed,) in self._db.execute("SELECT lines FROM refusals ORDER BY first"):
            for position, url, reason in json.loads(zlib.decompress(packed)):
                yield int(position), str(url), str(reason)

    # robots.Store

    def load_robots(self, origin: str) -> tuple[float, str] | None:
        """Return the rules of a site and when they were read."""
        found = self._db.execute("SELECT time, text FROM robots WHERE origin = ?", (origin,)).fetchone()
        return (float(found[0]), str(found[1])) if found else None

    def save_robots(self, origin: str, text: str) -> None:
        """Keep the rules of a site."""
        self._write("INSERT OR REPLACE INTO robots VALUES (?, ?, ?)", (origin, time.time(), _storable(text)))


def _record(row: Sequence[Any]) -> Record:
    number, url, position, where, caption, about, *rest = row
    record = Record(number, url, position, where, caption, json.loads(about), *rest)
    return record._replace(perceptual_hash=_unsigned(record.perceptual_hash))


def _storable(text: str) -> str:
    """Return a text that UTF-8 can hold, as SQLite needs it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _unsigned(value: int | None) -> int | None:
    """Return what `_signed` was given."""
    return None if value is None else value & (2**64 - 1)


def _signed(value: int | None) -> int | None:
    """Return 64 unsigned bits as SQLite's signed integer."""
    return None if value is None else value - 2**64 if value >= 2**63 else value
