"""A folder of shards, shared by any number of runs: what is in it, reading, and how much room it takes.

There is no index on disk that could be wrong: it is made from the shards' headers. Shards are only ever added and
removed as a whole, so processes that fill one folder at once at most do the same work twice. A shard in which damage
was found while training is marked by an empty file beside it, and goes when the folder is next filled.
"""

import errno
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from everydream.caches.keys import KEY_BYTES
from everydream.caches.shards import SUFFIX, Damaged, Place, list_shards, read_entry, read_header, write_shard
from everydream.formats.atomic import PARTIAL

Keys = NDArray[np.bytes_]
"""Keys as one array of KEY_BYTES each."""
MARK = ".damaged"
_LEFT_ALONE_S = 3600.0
"""An unfinished file may be one that is being written."""
_ROW = np.dtype([
    ("key", f"S{KEY_BYTES}"), ("shard", np.int32), ("kind", np.int32), ("offset", np.int64), ("crc32", np.uint32),
])  # fmt: skip


class Shard(NamedTuple):
    """A sound shard."""

    path: Path
    bytes: int
    about: dict[str, Any]
    rows: NDArray[np.void]
    """`_ROW`s in the order of the file, `shard` not yet said."""


@dataclass(frozen=True)
class Sum:
    """What a folder holds of one kind."""

    about: str
    shards: int
    entries: int
    bytes: int
    used: float
    """Time of the latest use, seconds since 1970."""


def as_keys(keys: list[bytes]) -> Keys:
    """Return keys as one array."""
    return np.frombuffer(b"".join(keys), f"S{KEY_BYTES}")


class Store:
    """The entries of a folder, as they were when it was last looked at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[Shard] = []
        self.damaged: dict[Path, str] = {}
        """Shards that are not as they were written, and why."""
        self._kinds: list[tuple[str, tuple[int, ...]]] = []
        self._rows = np.zeros(0, _ROW)
        self._notes: list[str] = []
        self.look()

    @property
    def taken_bytes(self) -> int:
        """What its shards take on disk."""
        return sum(shard.bytes for shard in self.shards)

    def look(self) -> None:
        """See what other processes have added or removed; only the headers of new shards are read."""
        known, self.shards = {shard.path: shard for shard in self.shards}, []
        for path in list_shards(self.folder):
            if path.with_suffix(MARK).exists():
                self.damaged[path] = "entries with other bytes than were written"
            elif path not in self.damaged:
                try:
                    self.shards.append(known.get(path) or self._read(path))
                except Damaged as error:
                    self.damaged[path] = str(error)
                except FileNotFoundError:
                    continue  # removed by another process just now
                except OSError as error:
                    self._take_in(path, error)
        for number, shard in enumerate(self.shards):
            shard.rows["shard"] = number
        rows = np.concatenate([np.zeros(0, _ROW), *(shard.rows for shard in self.shards)])
        self._rows = rows[np.argsort(rows["key"], kind="stable")]

    def _read(self, path: Path) -> Shard:
        header = read_header(path)
        places, rows = header.places, np.zeros(len(header.places), _ROW)
        kinds = [(place.dtype, place.shape) for place in places]
        self._kinds += [kind for kind in dict.fromkeys(kinds) if kind not in self._kinds]
        rows["key"] = as_keys([place.key for place in places])
        rows["kind"] = [self._kinds.index(kind) for kind in kinds]
        rows["offset"], rows["crc32"] = [place.offset for place in places], [place.crc32 for place in places]
        return Shard(path, path.stat().st_size, header.about, rows)

    def _take_in(self, path: Path, error: OSError) -> None:
        """Note that a shard could not be read: a bad place on a disk stays one, what else there is may pass."""
        why = error.strerror or str(error)
        if error.errno == errno.EIO:
            self.damaged[path] = why
        else:
            self._notes.append(f"{path} cannot be read at the moment: {why}")

    def has(self, keys: Keys) -> NDArray[np.bool_]:
        """Tell for each key whether it is there, by the headers."""
        found = np.minimum(np.searchsorted(self._rows["key"], keys), max(len(self._rows) - 1, 0))
        return self._rows["key"][found] == keys if len(self._rows) else np.zeros(len(keys), np.bool_)

    def read(self, key: bytes) -> torch.Tensor | None:
        """Return an entry as it was written; None where it is not there, or no longer as it was."""
        wanted = as_keys([key])
        if not self.has(wanted)[0]:
            return None
        row = self._rows[np.searchsorted(self._rows["key"], wanted)[0]]
        shard, (dtype, shape) = self.shards[int(row["shard"])], self._kinds[int(row["kind"])]
        size = torch.Size(shape).numel() * {"F32": 4}.get(dtype, 2)
        try:
            return read_entry(shard.path, Place(key, int(row["offset"]), size, int(row["crc32"]), dtype, shape))
        except FileNotFoundError:
            return None  # removed by another process, for room
        except (Damaged, OSError) as error:
            is_damage = isinstance(error, Damaged) or error.errno == errno.EIO
            what = "is damaged" if is_damage else "cannot be read at the moment"
            self._notes.append(f"{shard.path} {what}, entry {key.hex()}: {error}")
            if is_damage:
                with suppress(OSError):
                    shard.path.with_suffix(MARK).touch()
            return None

    def take_notes(self) -> list[str]:
        """Return what was found damaged by `read` since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def write(self, entries: Mapping[bytes, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Add entries as a shard of their own. Raises OSError; then the folder is as it was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_shard(self.folder, entries, about)

    def remove_damaged(self) -> list[str]:
        """Remove what is damaged, and return a line for each."""
        lines = []
        for path, why in list(self.damaged.items()):
            try:
                _remove(path)
                del self.damaged[path]
            except OSError as error:  # somebody else's folder
                lines.append(f"{path.name}: {why}; it cannot be removed ({error.strerror or error})")
            else:
                lines.append(f"{path.name}: {why}")
        return lines

    def touch(self, keys: Keys) -> None:
        """Note that these entries are in use: the shards that hold none of what is used go first for room."""
        with suppress(OSError):  # a cache may be somebody else's, to be read alone
            for shard in self._holding(keys):
                os.utime(shard.path)

    def make_room(self, needed_bytes: int, max_bytes: float, keep: Keys) -> bool:
        """Remove what was longest unused and holds none of `keep` until `needed_bytes` fit; tell whether they do."""
        held = {shard.path for shard in self._holding(keep)}
        free = [shard for shard in self.shards if shard.path not in held]
        return self.trim(needed_bytes, max_bytes, free)

    def trim(self, needed_bytes: int, max_bytes: float, free: list[Shard]) -> bool:
        """Remove shards of `free`, those longest unused first, until `needed_bytes` more fit below `max_bytes`."""
        waiting = sorted(free, key=lambda shard: last_used(shard.path))
        while (excess := self.taken_bytes + needed_bytes - max_bytes) > 0:
            if excess > sum(shard.bytes for shard in waiting):
                return False  # nothing is given up for nothing
            num = next(n for n in range(1, len(waiting) + 1) if excess <= sum(shard.bytes for shard in waiting[:n]))
            # Others may write meanwhile, so that more has to go than was seen at first.
            self.remove(waiting[:num])
            waiting = waiting[num:]
        return True

    def remove(self, shards: list[Shard]) -> None:
        """Remove shards; a process that reads them at the moment goes on without, as if they had never been.

        Those of somebody else's folder stay.
        """
        for shard in shards:
            with suppress(PermissionError):
                _remove(shard.path)
        self.look()

    def redundant(self) -> list[Shard]:
        """Return the shards that hold nothing which no other holds: two processes made the same at once."""
        held, found = self._rows["key"][:0], []
        for shard in self.shards:
            if np.isin(shard.rows["key"], held).all():
                found.append(shard)
            held = np.union1d(held, shard.rows["key"])
        return found

    def _holding(self, keys: Keys) -> list[Shard]:
        rows = self._rows[np.isin(self._rows["key"], keys)]
        return [self.shards[number] for number in np.unique(rows["shard"]).tolist()]

    def verify(self, progress: Callable[[int], None] = lambda done: None) -> dict[Path, str]:
        """Read every entry of every shard, and return what is damaged, named by its first bad entry.

        `progress` is called with the number of shards that are done.
        """
        found = dict(self.damaged)
        for done, shard in enumerate(self.shards):
            progress(done)
            try:
                for place in read_header(shard.path).places:
                    key = place.key.hex()
                    read_entry(shard.path, place)
            except FileNotFoundError:
                continue
            except Damaged as error:
                found[shard.path] = f"entry {key}: {error}"
            except OSError as error:
                self._take_in(shard.path, error)
        self.damaged |= found
        return self.damaged

    def sums(self) -> list[Sum]:
        """Return what the folder holds, by what its shards say of themselves."""
        by_about: dict[str, list[Shard]] = {}
        for shard in self.shards:
            by_about.setdefault(" ".join(map(str, shard.about.values())), []).append(shard)
        return [
            Sum(
                about, len(shards), sum(len(shard.rows) for shard in shards), sum(shard.bytes for shard in shards),
                max(last_used(shard.path) for shard in shards),
            )
            for about, shards in sorted(by_about.items())
        ]  # fmt: skip

    def remove_unfinished(self) -> int:
        """Remove what killed processes left half-written an hour ago or earlier; return how many files these were."""
        old = [
            path for path in self.folder.glob(f"*{PARTIAL}") if time.time() - last_used(path) > _LEFT_ALONE_S
        ]  # fmt: skip
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)


def last_used(path: Path) -> float:
    """Return when a file was last written or touched, seconds since 1970; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    assert path.suffix == SUFFIX
    path.unlink(missing_ok=True)
    path.with_suffix(MARK).unlink(missing_ok=True)
