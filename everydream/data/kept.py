"""What scans found, kept for the next one: chunks by their signatures, in a file of the user's cache (`data.base`)."""

import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from everydream.data.base import Base, cache_folder
from everydream.data.columns import Chunk

FILE = "scans-1.sqlite"
"""Its name says the layout: another version keeps another file."""
_TABLE = "CREATE TABLE IF NOT EXISTS chunks (signature BLOB PRIMARY KEY, day INT, chunk BLOB)"
_DAY_S = 86_400
_DAYS = 60
"""What no scan has asked for in so long is deleted."""
_MAY_PASS = "cannot be read"
"""Begins reasons that are no property of a file: a disk or a network that did not answer."""


class Kept:
    """The file, open."""

    def __init__(self, folder: Path | None = None, say: Callable[[str], None] | None = None) -> None:
        self._base = Base((folder or cache_folder()) / FILE, _TABLE, "what this scan finds", say)
        self._today = int(time.time() // _DAY_S)

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def get(self, signature: bytes) -> Chunk | None:
        """Return what was found under a signature; None if nothing is known."""
        query = "SELECT chunk FROM chunks WHERE signature = ?"
        row = self._base.run(lambda base: base.execute(query, (signature,)).fetchone()) if signature else None
        try:
            return json.loads(zlib.decompress(row[0])) if row is not None else None
        except (zlib.error, ValueError):
            return None  # a flipped bit: it is found again

    def put(self, found: Iterable[tuple[bytes, Chunk]]) -> None:
        """Keep chunks, but for those without a signature and those that may turn out otherwise next time."""
        rows = [
            (signature, self._today, zlib.compress(json.dumps(chunk, separators=(",", ":")).encode(), 1))
            for signature, chunk in found
            if signature and not any(_MAY_PASS in reason for _, reason in chunk["rejected"])
        ]

        def write(base: sqlite3.Connection) -> None:
            with base:
                base.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", rows)

        if rows:
            self._base.run(write)

    def renew(self, signatures: Sequence[bytes]) -> None:
        """Note that these were asked for, and delete what was not in a long time; at most once a day."""

        def write(base: sqlite3.Connection) -> None:
            query = "SELECT day FROM chunks WHERE signature = ?"
            row = base.execute(query, signatures[:1]).fetchone() if signatures else None
            if row is None or row[0] >= self._today:
                return
            with base:
                late = [(self._today, signature) for signature in signatures]
                base.executemany("UPDATE chunks SET day = ? WHERE signature = ?", late)
                base.execute("DELETE FROM chunks WHERE day < ?", (self._today - _DAYS,))

        self._base.run(write)
