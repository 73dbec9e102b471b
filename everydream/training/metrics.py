"""`metrics.jsonl`: one line per optimizer step, numbers only that do not depend on the clock.

So the file of a resumed run equals the uninterrupted one's byte for byte. Speed goes to the progress
bar and the trackers, what happened besides to `events.jsonl`.
"""

import json
import time
from pathlib import Path
from typing import Any

from typing_extensions import Self

from everydream.errors import DiskError
from everydream.formats.atomic import atomic_file


class JsonLines:
    """An append-only file of JSON objects, flushed line by line. Without a path it takes lines and drops them."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", encoding="utf-8", newline="\n") if path is not None else None

    def write(self, values: dict[str, Any]) -> None:
        """Append one object."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise DiskError(
                f"{self._file.name} cannot be written ({error}), so the run was stopped. Free some space and resume it."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()


def cut_after(path: Path, step: int) -> None:
    """Remove the lines of steps that a resumed run will do again, and a last line that was cut short."""
    if not path.is_file():
        return
    kept = []
    # Not splitlines(): a file name in a line may hold one of Unicode's other line ends.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    with atomic_file(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8", newline="\n")


class Events(JsonLines):
    """`events.jsonl`: rejected images, skipped steps, saves and failures, with the time."""

    def note(self, kind: str, **details: Any) -> None:
        """Append one event."""
        self.write({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **details})
