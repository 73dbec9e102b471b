"""A file is there whole or not at all: temporary name in the same folder, flushed, renamed."""

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from everydream.errors import DiskError

PARTIAL = ".partial"
OLDER = ".older"


@contextmanager
def atomic_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yield the name to write to; it replaces `path` when the block ends without an error.

    Until then an older `path` stays as it is. A process that is killed leaves at most one `.partial`
    file per name, which the next write of the same name replaces; a link of that name is not followed.
    `private`: in a user's folder, where `.partial` may be a file of theirs, by a name that no file has.
    """
    partial = path.with_name(path.name + (f".{secrets.token_hex(8)}" if private else "") + PARTIAL)
    _remove(partial)
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)))
        yield partial
        partial.chmod(0o666 & ~_umask())  # some writers make private files
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        put_in_place(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    _sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder that takes the name `path` when the block ends without an error.

    An older folder of that name is removed just before the rename: a folder cannot be replaced in
    one step.
    """
    partial = path.with_name(path.name + PARTIAL)
    _remove(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def put_in_place(partial: Path, path: Path) -> None:
    """Give what is whole its name. A file replaces a file in one step; a folder, in either place, needs three.

    Between them the older one is called `.older`, and `settled` finds it there.
    """
    if not partial.is_dir() and not path.is_dir():
        partial.replace(path)
        return
    older = path.with_name(path.name + OLDER)
    if path.exists():
        _remove(older)
        path.rename(older)
    partial.rename(path)
    _remove(older)


def settled(path: Path) -> Path:
    """Return `path`, once the older one is back in its place if a kill came just before the newer one's turn."""
    older = path.with_name(path.name + OLDER)
    if not path.exists() and older.exists():
        with suppress(FileNotFoundError):  # another process of the run was first
            older.rename(path)
    return path


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise DiskError unless `folder`'s disk has `needed_bytes` free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise DiskError(
            f"{what} needs {format_bytes(needed_bytes)} in {folder}, but only {format_bytes(free)} are free there. "
            "Nothing was overwritten. Free some space, lower `checkpoints.keep`, or set `runs_dir` to another disk."
        )


def format_bytes(count: float) -> str:
    """Return a size for people: 1.5 GB (decimal units)."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it; by one thread at a time."""
    with _UMASK:
        mask = os.umask(0o022)
        os.umask(mask)
    return mask


_UMASK = threading.Lock()


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every system can (Windows)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
