"""What was seen of image files, kept from one command to the next.

    path + size + date -> Look (hash, tiny picture, digest) and a JPEG for pages

One SQLite file in the user's cache folder (`data.base`), never beside images. A file that changed is looked at again.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple, TypeVar

from everydream.data.base import Base, cache_folder
from everydream.data.looking import SIDE, Look, look_at_all
from everydream.data.remote import url_of
from everydream.data.shards import shard_of, stamp_of

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with (done, total)."""

FILE = f"looks-1-{SIDE}.sqlite"
"""Its name says the layout: another version keeps another file."""
_TABLES = """
CREATE TABLE IF NOT EXISTS looks (
  path BLOB PRIMARY KEY, stamp TEXT, width INT, height INT, digest BLOB, hash INT, mirrored INT, small BLOB
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pages (path BLOB PRIMARY KEY, stamp TEXT, jpeg BLOB);
CREATE TABLE IF NOT EXISTS found (key BLOB PRIMARY KEY, value TEXT);
"""
_FEW = 150
"""Up to this many images are looked at by this process: starting others takes longer."""
_PORTION = 24
_SIGN = 1 << 63


class Wanted(NamedTuple):
    """An image file as it is now."""

    path: str
    stamp: str
    """Size, date and what else the look depends on; "" if it is not there."""


class Looks:
    """The cache, open. Two processes may have it open at once."""

    def __init__(self, folder: Path | None = None, say: Callable[[str], None] | None = None) -> None:
        self._base = Base((folder or cache_folder()) / FILE, _TABLES, "what is seen of the images", say)

    def __enter__(self) -> "Looks":
        return self

    def __exit__(self, *_: object) -> None:
        self._base.close()

    def see(
        self, paths: Sequence[Path], background: str = "#ffffff", progress: Progress | None = None
    ) -> list[Look | None]:
        """Return what is seen of each file, None where it cannot be decoded; decodes those that are new or changed.

        `background` (#rrggbb) is the colour under transparent images.
        """
        wanted = [_as_it_is(path, background) for path in paths]
        found = self._base.run(lambda base: {item: _known(base, item) for item in wanted})
        missing = list(dict.fromkeys(item for item in wanted if item.stamp and found.get(item) is None))
        done = len(paths) - len(missing)
        for items, seen in _looked_at(missing, background):
            for item, look in zip(items, seen, strict=True):
                found[item] = look[0] if look is not None else None
            self._keep([(item, *look) for item, look in zip(items, seen, strict=True) if look is not None])
            done += len(items)
            if progress is not None:
                progress(done, len(paths))
        return [found.get(item) for item in wanted]

    def page(self, path: Path) -> bytes | None:
        """Return the JPEG of a file that was seen, None if there is none."""
        key = (os.fsencode(path.absolute()),)
        row = self._base.run(lambda base: base.execute("SELECT jpeg FROM pages WHERE path = ?", key).fetchone())
        return bytes(row[0]) if row else None

    def remembered(self, what: str, of: Iterable[bytes], make: Callable[[], T]) -> T:
        """Return what `make` returned, the last time too, for the same `of`; it must be JSON.

        `what` names what is made and its version: a change of how it is made changes the name.
        """
        digest = hashlib.blake2b(what.encode(), digest_size=16)
        for part in of:
            digest.update(len(part).to_bytes(8, "little") + part)
        key = digest.digest()
        row = self._base.run(lambda base: base.execute("SELECT value FROM found WHERE key = ?", (key,)).fetchone())
        if row is not None:
            kept: T = json.loads(row[0])
            return kept
        value = make()
        text = json.dumps(value)

        def write(base: sqlite3.Connection) -> None:
            with base:
                base.execute("INSERT OR REPLACE INTO found VALUES (?, ?)", (key, text))

        self._base.run(write)
        return value

    def _keep(self, rows: Sequence[tuple[Wanted, Look, bytes]]) -> None:
        # SQLite's integers are signed.
        looks = [
            (os.fsencode(item.path), item.stamp, look.width, look.height, look.digest, look.hash - _SIGN,
             look.mirrored - _SIGN, look.small) for item, look, _ in rows
        ]  # fmt: skip
        pages = [(os.fsencode(item.path), item.stamp, page) for item, _, page in rows]

        def write(base: sqlite3.Connection) -> None:
            with base:
                base.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?, ?, ?, ?)", looks)
                base.executemany("INSERT OR REPLACE INTO pages VALUES (?, ?, ?)", pages)

        self._base.run(write)


def _known(base: sqlite3.Connection, item: Wanted) -> Look | None:
    row = base.execute(
        "SELECT width, height, digest, hash, mirrored, small FROM looks WHERE path = ? AND stamp = ?",
        (os.fsencode(item.path), item.stamp),
    ).fetchone()
    if row is None:
        return None
    width, height, digest, hash_, mirrored, small = row
    return Look(width, height, digest, hash_ + _SIGN, mirrored + _SIGN, small)


def _as_it_is(path: Path, background: str) -> Wanted:
    absolute = path.as_posix() if url_of(path) is not None else str(path.absolute())
    try:
        if url_of(path) is not None:
            return Wanted(absolute, f"{stamp_of(shard_of(path) or path)} {background}")
        stat = (shard_of(path) or path).stat()
    except OSError:
        return Wanted(absolute, "")
    return Wanted(absolute, f"{stat.st_size} {stat.st_mtime_ns} {background}")


def _looked_at(
    wanted: Sequence[Wanted], background: str
) -> Iterator[tuple[Sequence[Wanted], Sequence[tuple[Look, bytes] | None]]]:
    """Yield portions of the files with what is seen of each; by several processes where there are many."""
    portions = [wanted[start : start + _PORTION] for start in range(0, len(wanted), _PORTION)]
    done, workers = 0, os.cpu_count() or 1
    if len(wanted) > _FEW and workers > 1:
        # Never forks of this process: it may hold threads and a model library.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _leave_interrupts)
        try:
            tasks = ([item.path for item in portion] for portion in portions)
            for seen in pool.map(look_at_all, tasks, [background] * len(portions)):
                yield portions[done], seen
                done += 1
        except BrokenProcessPool:
            pass  # what killed it kills this process or does not; the scan has decoded the same files
        finally:
            pool.shutdown(cancel_futures=True)
    for portion in portions[done:]:
        yield portion, look_at_all([item.path for item in portion], background)


def _leave_interrupts() -> None:
    """Leave Ctrl-C to the main process, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
