"""Changes of many captions by one rule: what each would become, why some cannot, and the files that would change."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import regex

from everydream.data.captions import split_tags
from everydream.data.texts import normalise
from everydream.errors import ConfigError
from everydream.studio.journal import FileChange
from everydream.studio.sidecars import Fixed, Image, content_of, list_folder, sidecar_of
from everydream.tools.captioning.rewording import Reword, replacing

_PATIENCE_S = 10.0
"""How long a pattern may take over all captions: some take for ever."""
_DIFFER = "two sources read its file in different ways (`lines`), and the change would make two files of it"


class Edit(NamedTuple):
    """One image's caption before and after, a row for each variant, and the file."""

    name: str
    before: list[str]
    after: list[str]
    change: FileChange


class Edits(NamedTuple):
    """What a change of many captions would do."""

    edits: list[Edit]
    refused: list[tuple[str, str]]
    """Images whose captions should change and cannot, with the reason."""
    num_same: int

    @property
    def digest(self) -> str:
        """Return what is equal for two that would do the same."""
        digest = blake2b(digest_size=16)
        for edit in self.edits:
            for part in (edit.name, str(edit.change.file), edit.change.before, edit.change.after):
                digest.update(ascii(part).encode() + b"\0")
        return digest.hexdigest()

    @property
    def changes(self) -> list[FileChange]:
        """The files that would change, each once."""
        return list({_real(edit.change.file): edit.change for edit in self.edits}.values())


def rewording(wanted: Mapping[str, Any]) -> tuple[str, Reword]:
    """Return in words what a page asks for, and what does it to a caption. Raises ConfigError."""
    kind = wanted.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"There is no change {kind!r}; there are {', '.join(KINDS)}.")
    fields, made = KINDS[kind]
    values = {field: wanted.get(field, "") for field in fields}
    if wrong := [field for field, value in values.items() if not isinstance(value, str) or len(value) > 1000]:
        raise ConfigError(f"`{wrong[0]}` is not a text of up to 1,000 characters.")
    return made(values, bool(wanted.get("ignore_case")))


def _replace(values: Mapping[str, str], ignore_case: bool) -> tuple[str, Reword]:
    find, new = values["find"], values["with"]
    return f"replace {find!r} by {new!r}", replacing(find, new, ignore_case)


def _substitute(values: Mapping[str, str], ignore_case: bool) -> tuple[str, Reword]:
    """Replace by a pattern. One that is still not done after a while is given up."""
    find, new = values["find"], values["with"]
    if not find:
        raise ConfigError("There is nothing to find: the pattern is empty.")
    try:
        pattern = regex.compile(find, regex.IGNORECASE if ignore_case else 0)
        pattern.sub(new, "")
    except (regex.error, IndexError) as error:
        raise ConfigError(f"The pattern {find!r} with {new!r} cannot be used: {error}.") from error
    until = monotonic() + _PATIENCE_S

    def reword(caption: str) -> str:
        try:
            # `concurrent`: other threads go on meanwhile.
            changed = pattern.sub(new, caption, timeout=max(until - monotonic(), 0.001), concurrent=True)
        except TimeoutError as error:
            raise ConfigError(
                f"The pattern {find!r} takes longer than {_PATIENCE_S:g} s, so it was given up. Write it without "
                "repetitions inside repetitions."
            ) from error
        except (regex.error, IndexError) as error:
            raise ConfigError(f"The pattern {find!r} with {new!r} cannot be used: {error}.") from error
        return normalise(changed) if changed != caption else caption

    return f"replace the pattern {find!r} by {new!r}", reword


def _add(values: Mapping[str, str], _: bool, first: bool = False) -> tuple[str, Reword]:
    tag = normalise(values["tag"]).strip(", ")
    if not tag:
        raise ConfigError("There is no tag to add.")

    def reword(caption: str) -> str:
        if tag in split_tags(caption):
            return caption
        parts = [tag, caption] if first else [caption.rstrip(", "), tag]
        return ", ".join(filter(None, parts))

    return f"add the tag {tag!r}", reword


def _remove(values: Mapping[str, str], ignore_case: bool) -> tuple[str, Reword]:
    fold = str.casefold if ignore_case else str
    tag = normalise(values["tag"]).strip(", ")
    if not tag:
        raise ConfigError("There is no tag to remove.")

    def reword(caption: str) -> str:
        tags = caption.split(",")
        kept = [part.strip() for part in tags if fold(part.strip()) != fold(tag)]
        return caption if len(kept) == len(tags) else ", ".join(filter(None, kept))

    return f"remove the tag {tag!r}", reword


KINDS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, str], bool], tuple[str, Reword]]]] = {
    "replace": (("find", "with"), _replace),
    "pattern": (("find", "with"), _substitute),
    "add": (("tag",), _add),
    "add first": (("tag",), partial(_add, first=True)),
    "remove": (("tag",), _remove),
}
"""What a page may ask for: the texts that it gives, and what makes the rewording of them."""


def plan_edits(images: Sequence[Image], reword: Reword) -> Edits:
    """Return what a rewording does to the captions of images; nothing is written. Raises ConfigError."""
    listed = cache(list_folder)
    edits: list[Edit] = []
    refused: list[tuple[str, str]] = []
    for image in images:
        found = sidecar_of(image, listed)
        if isinstance(found, Fixed):
            refused += [(image.name, found.reason)] if any(reword(text) != text for text in image.captions) else []
            continue
        rows = found.text.split("\n") if found.lines == "choose" else [normalise(found.text)]
        new = [reword(row) for row in rows]
        if new == rows:
            continue
        if not all(new):
            refused.append((image.name, "nothing would be left of its caption"))
            continue
        change = FileChange(found.file, found.before, content_of("\n".join(new), found.file.name))
        edits.append(Edit(image.name, rows, new, change))
    edits, apart = _agreed(edits)
    refused += [(edit.name, _DIFFER) for edit in apart]
    return Edits(edits, refused, len(images) - len(edits) - len(refused))


def _agreed(edits: Sequence[Edit]) -> tuple[list[Edit], list[Edit]]:
    """Return the edits without, and those with, another that makes something else of the same file."""
    results: dict[str, set[bytes | None]] = {}
    for edit in edits:
        results.setdefault(_real(edit.change.file), set()).add(edit.change.after)
    differ = {file for file, found in results.items() if len(found) > 1}
    return (
        [edit for edit in edits if _real(edit.change.file) not in differ],
        [edit for edit in edits if _real(edit.change.file) in differ],
    )


def _real(file: Path) -> str:
    return os.path.realpath(file)
