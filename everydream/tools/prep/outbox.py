"""The output folder: which files in it are ours, and what a new prep may remove.

`.prep/files.jsonl` names every file before it is written, so that a prep that was killed is known too;
`.prep/prep.json` is the marker, and at the end the report. Names with a leading dot are no training images.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from everydream.errors import ConfigError
from everydream.formats.atomic import PARTIAL
from everydream.tools.files import JUNK, write_bytes, writing

_FOLDER = ".prep"
REPORT = f"{_FOLDER}/prep.json"
_FILES = f"{_FOLDER}/files.jsonl"
_SHOWN = 5


class Outbox:
    """The output folder of one prep, emptied of what an earlier prep made."""

    def __init__(self, out: Path) -> None:
        """Take over `out`. Raises ConfigError if it holds anything that no prep has written."""
        self.out = out
        ours = _require_ours(out)
        for path in ours - {REPORT, _FILES}:  # these two last, so that a kill in between leaves it ours
            with writing(out / path), suppress(FileNotFoundError):
                (out / path).unlink()
        for folder in sorted({parent for path in ours for parent in Path(path).parents}, reverse=True):
            with suppress(OSError):  # not empty, or gone
                (out / folder).rmdir()
        self.report({"finished": False})
        write_bytes(out / _FILES, b"")

    def write(self, path: str, data: bytes) -> None:
        """Write a file, by its path relative to the folder."""
        with writing(self.out / _FILES), (self.out / _FILES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(path) + "\n")
        write_bytes(self.out / path, data)

    def report(self, found: dict[str, Any]) -> None:
        """Write prep.json."""
        text = json.dumps(found, ensure_ascii=False, indent=1)
        write_bytes(self.out / REPORT, text.encode("utf-8", "backslashreplace") + b"\n")


def _require_ours(out: Path) -> set[str]:
    """Return the files of an earlier prep that are there; raise ConfigError if there are others."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; give a folder.")
    there = {path.relative_to(out).as_posix() for path in _files(out)}
    if not there:
        return set()
    if not there & {REPORT, REPORT + PARTIAL}:
        raise ConfigError(f"--out {out} holds files that no prep has made ({_some(there)}), and nothing is mixed with "
                          "them. Choose a new folder.")  # fmt: skip
    ours = {REPORT, _FILES, *_listed(out / _FILES)}
    ours |= {path + PARTIAL for path in ours}
    if strangers := there - ours:
        raise ConfigError(f"--out {out} holds files beside those of the earlier prep ({_some(strangers)}). A new prep "
                          "replaces the earlier one whole: move them away, or choose a new folder.")  # fmt: skip
    return there


def _files(folder: Path) -> list[Path]:
    found = (Path(root) / name for root, _, names in os.walk(folder) for name in names)
    return [path for path in found if path.name not in JUNK]


def _listed(file: Path) -> set[str]:
    """Return the files that are named there; a line that was cut by a kill names a file that was not begun."""
    found: set[str] = set()
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                found.add(str(json.loads(line)))
    return found


def _some(paths: set[str]) -> str:
    shown = ", ".join(sorted(paths)[:_SHOWN])
    return shown if len(paths) <= _SHOWN else f"{shown} and {len(paths) - _SHOWN:,} more"
