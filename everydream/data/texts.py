"""Reading the small text files beside images: encodings, white space, YAML with line numbers.

Nothing here knows what a caption or a setting is. Whatever is wrong with a file becomes `BadText`, whose message
starts with the file's name, so that the scan can reject the images concerned instead of dying.
"""

import codecs
import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

import yaml

from everydream.data.shards import read_bytes

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class BadText(ValueError):  # noqa: N818 - a finding about a file that the scan lists, not a failure of the run
    """A text file that cannot be used; the message names it and is meant for a user."""


class Entry(NamedTuple):
    """One value of a YAML mapping and the line its key stands on."""

    value: object
    line: int


def decode_text(data: bytes, file: str) -> str:
    """Decode UTF-8 (with or without a mark) or UTF-16/32 by its mark; anything else is `BadText`, never mojibake."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise BadText(f"{file}: not {encoding.removesuffix('-sig').upper()} at byte {error.start}; "
                      "save it as UTF-8") from error  # fmt: skip
    if "\0" in text:
        # ASCII in UTF-16 without a mark is valid UTF-8 with a zero after each letter.
        raise BadText(f"{file}: holds zero bytes, as UTF-16 without a byte order mark does; save it as UTF-8")
    return text


def read_text(path: Path, file: str) -> str:
    """Read a text file that messages call `file`."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise BadText(f"{file}: cannot be read ({error.strerror or error})") from error
    return decode_text(data, file)


def normalise(text: str) -> str:
    """Turn every run of white space, line ends included, into one space and strip the ends."""
    return " ".join(text.split())


def nearest(word: str, choices: Collection[str]) -> str:
    """Return a hint at the choice that was probably meant, or the list of choices."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(sorted(choices))}"


def parse_yaml(text: str, file: str) -> dict[str, Entry]:
    """Parse a YAML mapping; an empty document is an empty mapping. Errors name the file and the line."""
    try:
        return _parse_mapping(yaml.SafeLoader(text), file)
    except yaml.YAMLError as error:
        raise BadText(f"{file}{_where(error)}: not valid YAML ({_problem(error)})") from error
    except BadText:
        raise
    except (ValueError, OverflowError, RecursionError) as error:
        # The constructor lets through what Python thinks of a date like 2024-13-01, or of 10,000 brackets.
        raise BadText(f"{file}: not valid YAML ({error})") from error


def _parse_mapping(loader: yaml.SafeLoader, file: str) -> dict[str, Entry]:
    node = loader.get_single_node()
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return {}
    if not isinstance(node, yaml.MappingNode):
        kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
        raise BadText(f"{file}, line {node.start_mark.line + 1}: expected `key: value` lines, found a {kind}")
    return dict(_entries(loader, node, file))


def _entries(loader: yaml.SafeLoader, node: yaml.MappingNode, file: str) -> Iterator[tuple[str, Entry]]:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise BadText(f"{file}, line {line}: the key {key!r} is not a word")
        if key in seen:
            raise BadText(f"{file}, line {line}: `{key}` is given twice")
        seen.add(key)
        yield key, Entry(loader.construct_object(value_node, deep=True), line)


def check_keys(entries: dict[str, Entry], known: Collection[str], file: str) -> None:
    """Raise `BadText` for the first key that is not known, with the nearest one that is."""
    for key, entry in entries.items():
        if key not in known:
            raise BadText(f"{file}, line {entry.line}: unknown key `{key}`; {nearest(key, known)}")


def is_text_map(value: object) -> TypeGuard[dict[str, object]]:
    """Tell whether a parsed YAML value is a mapping with text keys."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable")


def visible(text: object) -> str:
    """Return a text with what cannot be seen, or turns others around, spelled out as U+0000."""
    return _UNSEEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", str(text))
