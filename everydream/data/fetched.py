"""What was fetched from other machines, kept in the user's cache folder up to a limit; the longest unused goes first.

The limit is the machine's, not the run's: EVERYDREAM_CACHE_GB, 20 if it is not set, 0 to keep nothing. Several
processes write at once, so it is passed by up to a fiftieth of itself for each.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from everydream.data.base import cache_folder
from everydream.errors import ConfigError

LIMIT = "EVERYDREAM_CACHE_GB"
_DEFAULT_GB = 20.0
_ROOM = 0.9
"""How full it is left when something was deleted."""
_LARGEST = 0.25
"""The largest file that is kept, as a part of the limit."""
_USED_S = 3600.0
"""How exactly it is known when a file was used last."""


class _Written:
    """What this process has written since it looked how full the cache is."""

    num_bytes = 0


def limit_bytes() -> int:
    """Return how much is kept. Raises ConfigError for a limit that is no number."""
    text = os.environ.get(LIMIT, "")
    try:
        return int(float(text or _DEFAULT_GB) * 1e9)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{LIMIT} is {text!r}, expected a number of gigabytes, such as 20 or 0.5") from error


def is_kept(num_bytes: int) -> bool:
    """Tell whether something of this size is kept."""
    return 0 < num_bytes <= limit_bytes() * _LARGEST


def place_of(*key: object) -> Path:
    """Return where something is kept that is known by `key`."""
    name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
    return cache_folder() / "fetched" / name[:2] / name


def find(place: Path, size: int) -> Path | None:
    """Return the place if something of this size is there, and note that it was used."""
    try:
        found = place.stat()
        if found.st_size != size:
            return None  # a disk that failed, or a crash before it was all there
        if found.st_mtime < (now := time.time()) - _USED_S:
            os.utime(place, (now, now))
    except OSError:
        return None
    return place


def keep(place: Path, blocks: Iterable[bytes]) -> bool:
    """Write a file there, whole or not at all; False where the disk does not take it."""
    partial = place.with_name(f"{place.name}.{secrets.token_hex(8)}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            for block in blocks:
                file.write(block)
                _Written.num_bytes += len(block)
        partial.replace(place)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.filename is not None and not str(error.filename).startswith(str(place)):
            raise  # what was to be written could not be fetched
        return False
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if _Written.num_bytes > limit_bytes() / 50:
        _Written.num_bytes = 0
        tidy()
    return True


def tidy() -> None:
    """Delete what was not used for longest, down to a little below the limit, if that is passed."""
    found = []
    for place in (cache_folder() / "fetched").glob("*/*"):
        with suppress(OSError):
            stat = place.stat()
            found.append((stat.st_mtime, stat.st_size, place))
    total, limit = sum(size for _, size, _ in found), limit_bytes()
    if total <= limit:
        return
    for _, size, place in sorted(found):
        if total <= limit * _ROOM:
            return
        with suppress(OSError):
            place.unlink()
            total -= size
