"""What was changed, as files before and after: each change can be undone and done again, also after a restart.

A change is noted before it is made, so one that a kill interrupted can be undone too. What another program has written
since is never overwritten: then nothing is undone, and the file is named.
"""

import base64
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from everydream.errors import EveryDreamError
from everydream.formats.atomic import atomic_file
from everydream.tools.files import write_bytes, writing

_KEPT = 200
"""Changes that are remembered."""


class Conflict(EveryDreamError):  # noqa: N818 - said to a user, as what happened
    """A file is not what the page showed, so it was not overwritten."""


class FileChange(NamedTuple):
    """A file's content before and after; None: it is not there."""

    file: Path
    before: bytes | None
    after: bytes | None

    def reversed(self) -> "FileChange":
        """Return the way back."""
        return FileChange(self.file, self.after, self.before)


class Entry(NamedTuple):
    """One change, of one file or of many, undone as one."""

    label: str
    """What was done, in words."""
    names: list[str]
    """The images concerned."""
    changes: list[FileChange]


class Journal:
    """The changes of a project, and how many of them are in effect."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.entries: list[Entry] = []
        self.done = 0
        self._num_lines = 0
        """Written by this process; the first of them says all."""
        self._seen = self._stamp()
        if file is not None and file.exists():
            with suppress(ValueError, KeyError, TypeError):  # what cannot be read is forgotten
                for line in file.read_text(encoding="utf-8").splitlines():
                    self._take(json.loads(line))

    @property
    def next_undo(self) -> str | None:
        """What undo would take back."""
        return self.entries[self.done - 1].label if self.done else None

    @property
    def next_redo(self) -> str | None:
        """What redo would do again."""
        return self.entries[self.done].label if self.done < len(self.entries) else None

    def do(self, entry: Entry) -> None:
        """Make a change. Raises Conflict, DiskError; then nothing is changed."""
        self._require_alone()
        entries, done = self.entries, self.done
        self._add(entry)
        self._note({"do": _plain(entry)})
        try:
            make(entry.changes)
        except EveryDreamError:
            self.entries, self.done = entries, done
            self._note_all()
            raise

    def undo(self) -> Entry | None:
        """Take back the last change; None if there is none. Raises Conflict, DiskError."""
        if not self.done:
            return None
        self._require_alone()
        entry = self.entries[self.done - 1]
        make([change.reversed() for change in entry.changes])
        self.done -= 1
        self._note({"done": self.done})
        return entry

    def drop(self) -> Entry | None:
        """Forget the last change and leave its files as they are, so that those before it can be undone."""
        if not self.done:
            return None
        self._require_alone()
        self.done -= 1
        entry = self.entries.pop(self.done)
        self._note_all()
        return entry

    def redo(self) -> Entry | None:
        """Make the last change that was taken back; None if there is none. Raises Conflict, DiskError."""
        if self.done == len(self.entries):
            return None
        self._require_alone()
        entry = self.entries[self.done]
        make(entry.changes)
        self.done += 1
        self._note({"done": self.done})
        return entry

    def _add(self, entry: Entry) -> None:
        self.entries = [*self.entries[: self.done], entry][-_KEPT:]
        self.done = len(self.entries)

    # The file: a line that says all, then one for each change. A line that a kill cut short is the last.

    def _stamp(self) -> tuple[int, int] | None:
        if self._file is None or not self._file.exists():
            return None
        found = self._file.stat()
        return found.st_size, found.st_mtime_ns

    def _require_alone(self) -> None:
        """Raise Conflict if another studio has written the file."""
        if self._stamp() != self._seen:
            raise Conflict(
                "Another studio of this project has made changes since this one began, so nothing was done: the one "
                "would lose what the other can take back. Stop one of the two, and start this one again."
            )

    def _note(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        if not 0 < self._num_lines < _KEPT:
            self._note_all()
            return
        with writing(self._file), self._file.open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._num_lines += 1
        self._seen = self._stamp()

    def _note_all(self) -> None:
        if self._file is None:
            return
        plain = {"entries": [_plain(entry) for entry in self.entries], "done": self.done}
        write_bytes(self._file, json.dumps(plain).encode() + b"\n")
        self._num_lines, self._seen = 1, self._stamp()

    def _take(self, line: dict[str, Any]) -> None:
        if "do" in line:
            self._add(_entry(line["do"]))
            return
        if "entries" in line:
            self.entries = [_entry(plain) for plain in line["entries"]]
        self.done = max(0, min(int(line["done"]), len(self.entries)))


def make(changes: Sequence[FileChange]) -> None:
    """Write all the files or none. Raises Conflict where one is not as it should be before, and DiskError."""
    for change in changes:
        # What a kill left undone is as it was before already.
        if content(change.file) not in (change.before, change.after):
            raise Conflict(
                f"{change.file} was changed by another program since, so nothing was done: its content would be lost. "
                "Look again to see it."
            )
    made: list[FileChange] = []
    try:
        for change in changes:
            made.append(change)
            _put(change.file, change.after)
    except EveryDreamError:
        for change in made:
            with suppress(EveryDreamError):
                _put(change.file, change.before)
        raise


def content(file: Path) -> bytes | None:
    """Return what a file holds, None if it is not there. Raises DiskError."""
    with writing(file):
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return None


def _put(file: Path, after: bytes | None) -> None:
    with writing(file):
        if after is None:
            file.unlink(missing_ok=True)
            return
        with atomic_file(file, private=True) as partial:
            partial.write_bytes(after)


def _plain(entry: Entry) -> list[Any]:
    return [entry.label, entry.names, [[str(c.file), _said(c.before), _said(c.after)] for c in entry.changes]]


def _entry(plain: list[Any]) -> Entry:
    label, names, changes = plain
    return Entry(label, names, [FileChange(Path(file), _heard(a), _heard(b)) for file, a, b in changes])


def _said(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _heard(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
