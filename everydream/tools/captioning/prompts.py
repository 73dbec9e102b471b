"""What a captioning model is asked about an image: a template filled with what is known of it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter

from everydream.data.texts import BadText, normalise, read_text
from everydream.errors import ConfigError
from everydream.tools.captioning.items import Item

_ALWAYS = ("folder", "name", "caption")

Hints = Mapping[str, str]
"""Placeholder -> what stands for it in one image's prompt."""


def placeholders(template: str) -> list[str]:
    """Return the placeholders of a template, `{{` and `}}` being braces. Raises ConfigError if a brace is open."""
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ConfigError(f"--prompt {template!r}: {error}; write a brace that is meant as {{{{ or }}}}") from error


def hints_of(root: Path, item: Item) -> Hints:
    """Return what is known of an image: its folder, name, caption, and the texts and numbers of its `.json`."""
    stem = item.picture.name.rpartition(".")[0]
    folder = item.picture.folder.rpartition("/")[2] or root.resolve().name
    caption = item.caption.variants[0] if item.caption.variants else ""
    return {**_json_hints(root, item), "folder": folder, "name": stem, "caption": caption}


def _json_hints(root: Path, item: Item) -> Hints:
    name = item.picture.siblings.get((item.picture.name.rpartition(".")[0], "json"))
    if name is None:
        return {}
    try:
        found = json.loads(read_text(root / item.picture.folder / name, name))
    except (BadText, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {str(key): normalise(str(value)) for key, value in found.items() if isinstance(value, str | int | float)}


def check_template(template: str, hints: Sequence[Hints]) -> None:
    """Raise ConfigError if a placeholder is known for no image."""
    known = {key for hint in hints for key in hint}
    for name in placeholders(template):
        if name not in known:
            from_json = sorted(known - set(_ALWAYS))
            more = f"; from the .json files: {', '.join(from_json)}" if from_json else "; there are no .json files"
            raise ConfigError(f"--prompt: there is no {{{name}}}. Known for every image: {', '.join(_ALWAYS)}{more}")


def fill(template: str, hints: Hints) -> str:
    """Return the prompt for one image. Raises BadText if its `.json` lacks what the template asks for."""
    parts: list[str] = []
    for text, name, _, _ in Formatter().parse(template):
        if name is not None and name not in hints:
            raise BadText(f"its .json says nothing about {{{name}}}, which the prompt asks for")
        parts += [text, "" if name is None else hints[name]]
    return "".join(parts)
