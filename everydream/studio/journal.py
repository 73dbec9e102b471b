"""What was changed, as files before and after: each change can be undone and done again, also after a restart.

A change is noted before it is made, so one that a kill interrupted can be undone too. What another program has written
since is never overwritten: then nothing is undone, and the file is named.
"""

import base64
import json
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
        if file is not None and file.exists():
            with suppress(ValueError, KeyError, TypeError):  # one that cannot be read is begun anew
                self._take(json.loads(file.read_text(encoding="utf-8")))

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
        entries, done = self.entries, self.done
        self.entries = [*entries[:done], entry][-_KEPT:]
        self.done = len(self.entries)
        self._keep()
        try:
            make(entry.changes)
        except EveryDreamError:
            self.entries, self.done = entries, done
            self._keep()
            raise

    def undo(self) -> Entry | None:
        """Take back the last change; None if there is none. Raises Conflict, DiskError."""
        if not self.done:
            return None
        entry = self.entries[self.done - 1]
        make([change.reversed() for change in entry.changes])
        self.done -= 1
        self._keep()
        return entry

    def redo(self) -> Entry | None:
        """Make the last change that was taken back; None if there is none. Raises Conflict, DiskError."""
        if self.done == len(self.entries):
            return None
        entry = self.entries[self.done]
        make(entry.changes)
        self.done += 1
        self._keep()
        return entry

    def _keep(self) -> None:
        if self._file is None:
            return
        plain = {"done": self.done, "entries": [
            [entry.label, entry.names, [[str(c.file), _said(c.before), _said(c.after)] for c in entry.changes]]
            for entry in self.entries
        ]}  # fmt: skip
        write_bytes(self._file, json.dumps(plain).encode())

    def _take(self, plain: dict[str, Any]) -> None:
        entries = [
            Entry(label, names, [FileChange(Path(file), _heard(a), _heard(b)) for file, a, b in changes])
            for label, names, changes in plain["entries"]
        ]
        self.entries, self.done = entries, min(int(plain["done"]), len(entries))


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
        with atomic_file(file) as partial:
            partial.write_bytes(after)


def _said(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _heard(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
