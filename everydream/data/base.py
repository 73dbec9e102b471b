"""An SQLite file of the user's cache folder that nothing depends on.

It may be deleted at any time, and two processes may have it open at once. A file that is damaged is thrown away, and
one that cannot be written is done without: both are said, and neither ends a command.
"""

import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
_WAIT_S = 30.0


def cache_folder() -> Path:
    """Return where caches are: `$XDG_CACHE_HOME/everydream`, by default ~/.cache/everydream."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "everydream"


class Base:
    """The file, open; `tables` makes what it lacks, `what` says in messages what it keeps."""

    def __init__(self, file: Path, tables: str, what: str, say: Callable[[str], None] | None = None) -> None:
        self._file, self._tables, self._what = file, tables, what
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._connection = self._opened()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def run(self, act: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `act` returns, if need be with a new file, and if that fails too with a base in memory."""
        for _ in range(2):
            try:
                return act(self._connection)
            except sqlite3.Error as error:
                self._connection.close()
                self._connection = self._instead(error)
        return act(self._connection)

    def _opened(self) -> sqlite3.Connection:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            return self._connected(str(self._file))
        except (OSError, sqlite3.Error) as error:
            return self._instead(error)

    def _instead(self, error: Exception) -> sqlite3.Connection:
        """Return another base after an error: an empty file where the old one is no database, else memory."""
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError, sqlite3.Error):
                self._file.unlink()
                fresh = self._connected(str(self._file))
                self._say(f"{self._file} was damaged ({error}) and was thrown away: all images are looked at again.")
                return fresh
        self._say(f"{self._file} cannot be used ({error}): {self._what} is not kept for the next time.")
        return self._connected(":memory:")

    def _connected(self, file: str) -> sqlite3.Connection:
        connection = sqlite3.connect(file, timeout=_WAIT_S)
        try:
            connection.executescript(self._tables)
        except sqlite3.Error:
            connection.close()
            raise
        return connection
