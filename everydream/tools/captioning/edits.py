"""Editing all captions of a folder by one rule: planned first, so that it is done whole or refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from everydream.data.texts import normalise, read_text
from everydream.errors import DataError
from everydream.tools.captioning.items import TEXT_SUFFIXES, Item
from everydream.tools.captioning.rewording import Reword
from everydream.tools.files import Rejected, listing, write_bytes

Lines = Literal["join", "choose"] | None
"""What the lines of a text sidecar are: one caption, or one each; None: nobody said."""
_SHOWN = 20


class Change(NamedTuple):
    """One caption before and after."""

    path: str
    """The image."""
    before: str
    after: str


@dataclass
class Edits:
    """What an edit of a folder would do."""

    changes: list[Change] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """Sidecar, relative to the root -> its new text."""
    names: dict[str, str] = field(default_factory=dict)
    """Image whose name is its caption -> the new caption."""
    refused: list[Rejected] = field(default_factory=list)
    """Images whose captions should change and cannot."""
    num_same: int = 0
    num_without: int = 0
    """Images without a caption."""


def plan_edits(root: Path, items: Sequence[Item], reword: Reword, lines: Lines) -> Edits:
    """Return what changes where; nothing is written."""
    edits = Edits()
    for item in items:
        num_known = len(edits.changes) + len(edits.refused)
        if item.origin.lower().endswith(TEXT_SUFFIXES):
            _plan_text(root, item, reword, lines, edits)
        elif item.caption.variants:
            _plan_other(item, reword, edits)
        else:
            edits.num_without += 1
            continue
        edits.num_same += len(edits.changes) + len(edits.refused) == num_known
    return edits


def _plan_text(root: Path, item: Item, reword: Reword, lines: Lines, edits: Edits) -> None:
    text = read_text(root / item.file, item.file)
    rows = list(filter(None, map(normalise, text.splitlines())))
    is_open = lines is None and len(rows) > 1
    if lines == "join" or is_open:
        rows = [normalise(text), *(rows if is_open else [])]
    new = [reword(row) for row in rows]
    if new == rows:
        return
    if is_open:
        _refuse(edits, item, f"{item.file} has several lines; say --lines join (they are one caption) or "
                             "--lines choose (one caption each)")  # fmt: skip
    elif not all(new):
        _refuse(edits, item, f"nothing would be left of {item.file}")
    else:
        edits.changes += [Change(item.picture.path, a, b) for a, b in zip(rows, new, strict=True) if a != b]
        edits.texts[item.file] = "".join(f"{row}\n" for row in new)


def _plan_other(item: Item, reword: Reword, edits: Edits) -> None:
    before = item.caption.variants
    after = [reword(text) for text in before]
    if list(before) == after:
        return
    if item.origin:
        _refuse(edits, item, f"its caption is in {item.file}, which is not rewritten; edit that file by hand")
    elif not after[0]:
        _refuse(edits, item, "nothing would be left of its name")
    else:
        edits.changes.append(Change(item.picture.path, before[0], after[0]))
        edits.names[item.picture.path] = after[0]


def _refuse(edits: Edits, item: Item, reason: str) -> None:
    edits.refused.append(Rejected(item.picture.path, reason))


def require_in_place(edits: Edits) -> None:
    """Raise DataError if a caption should change that is no text sidecar's: names of images are never changed."""
    in_names = [Rejected(path, "its caption is its name; give --out for a copy, or run to-sidecars first")
                for path in edits.names]  # fmt: skip
    require_possible(edits.refused + in_names)


def require_possible(refused: list[Rejected]) -> None:
    """Raise DataError if there is anything in the way of an edit."""
    if refused:
        raise DataError(
            f"{len(refused)} captions cannot be changed, so none is, and the folder stays consistent:{listing(refused)}"
        )


def apply_in_place(root: Path, edits: Edits) -> None:
    """Write the sidecars, each whole or not at all. Raises DiskError."""
    for file, text in edits.texts.items():
        write_bytes(root / file, text.encode("utf-8"))


def describe_edits(edits: Edits, applied: bool) -> str:
    """Return what changes, the first captions in full, and how many stay."""
    lines = [f"{path}: {before}\n  -> {after}" for path, before, after in edits.changes[:_SHOWN]]
    lines += [f"and {len(edits.changes) - _SHOWN:,} more"] if len(edits.changes) > _SHOWN else []
    verb = "changed" if applied else "would change"
    without = f", {edits.num_without:,} images have none" if edits.num_without else ""
    lines.append(f"{len(edits.changes):,} captions {verb}, {edits.num_same:,} stay as they are{without}.")
    return "\n".join(lines) + ("" if applied else "\nNothing was written: this was a rehearsal. --apply does it.")
