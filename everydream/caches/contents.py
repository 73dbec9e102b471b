"""A hash of each image file's bytes, remembered while the file stays as it is.

What is remembered goes by path, size, dates of change and number of the file: an editor, a copy over it or a restored
backup changes at least one of them, also where it keeps the date (the date of the last status change cannot be set). A
file that was changed within the last seconds is hashed again the next time: clocks of file systems are coarse.
"""

import hashlib
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from everydream.caches.keys import KEY_BYTES, content_hash
from everydream.caches.store import Keys, as_keys
from everydream.data.remote import url_of
from everydream.data.shards import read_bytes, shard_of, stamp_of
from everydream.formats.atomic import atomic_file
from everydream.types import Span

UNKNOWN = b"\xff" * KEY_BYTES
"""In the place of the hash of a file that cannot be read."""
_PREFIX = "contents-"
_SETTLED_S = 3.0
_THREADS = 8
_REQUESTS = 16
_MANY_FILES = 8


def hash_files(
    folder: Path,
    paths: Sequence[Path],
    spans: Sequence[Span | None],
    progress: Callable[[int, int], None] | None = None,
) -> Keys:
    """Return the hash of each file's bytes; those of unchanged files are remembered in `folder`.

    `spans`: where those that lie in shards are, as the scan found them.
    """
    with ThreadPoolExecutor(_REQUESTS) as pool:
        stamps = list(pool.map(_stamp, paths, spans))
    known = _remembered(folder)
    hashes = [known.get(stamp, b"") if stamp is not None else b"" for stamp in stamps]
    missing = [number for number, found in enumerate(hashes) if not found]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        for done, (number, found) in enumerate(
            zip(missing, pool.map(_hash, [paths[n] for n in missing], [spans[n] for n in missing]), strict=True)
        ):
            hashes[number] = found
            if progress is not None:
                progress(done + 1, len(missing))
    new = {stamp: hashes[n] for n in missing if (stamp := stamps[n]) is not None and hashes[n] != UNKNOWN}
    if new:
        with suppress(OSError):  # a full disk; then they are hashed again the next time
            _remember(folder, new)
    return as_keys(hashes)


def _hash(path: Path, span: Span | None) -> bytes:
    try:
        return content_hash(read_bytes(path, span))
    except OSError:
        return UNKNOWN


def _stamp(path: Path, span: Span | None) -> bytes | None:
    """Return what tells a file as it is now from what it was; None where that is not certain yet."""
    file = shard_of(path) or path
    try:
        if url_of(file) is not None:
            said = stamp_of(file)
            return _digest((file.as_posix(), said, span)) if said else None
        stat = file.stat()
    except OSError:
        return None
    if time.time() - max(stat.st_mtime, stat.st_ctime) < _SETTLED_S:
        return None
    facts = (os.fspath(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, span)
    return _digest(facts)


def _digest(facts: object) -> bytes:
    return hashlib.blake2b(ascii(facts).encode(), digest_size=KEY_BYTES).digest()


def _remembered(folder: Path) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for path in folder.glob(f"{_PREFIX}*.npz"):
        try:
            # A zip, which has checksums of its own; opened here, for numpy leaves a damaged one open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                stamps, hashes = saved["stamps"].tobytes(), saved["hashes"].tobytes()
        except OSError:
            continue  # somebody else's, or not to be read at this moment
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            continue
        cuts = range(0, len(stamps), KEY_BYTES)
        found |= {stamps[at : at + KEY_BYTES]: hashes[at : at + KEY_BYTES] for at in cuts}
    return found


def _remember(folder: Path, new: dict[bytes, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    older = list(folder.glob(f"{_PREFIX}*.npz"))
    if len(older) >= _MANY_FILES:
        new = _remembered(folder) | new
    with atomic_file(folder / f"{_PREFIX}{secrets.token_hex(8)}.npz") as partial, partial.open("wb") as file:
        np.savez(file, stamps=as_keys(list(new)), hashes=as_keys(list(new.values())))
    for path in older if len(older) >= _MANY_FILES else ():
        path.unlink(missing_ok=True)
