"""Changes of one caption: pure functions from text to text."""

import re
import unicodedata
from collections.abc import Callable

from everydream.data.texts import normalise
from everydream.errors import ConfigError

Reword = Callable[[str], str]
"""Caption -> caption, both with single spaces; an unchanged one is left alone."""

_CLOSING = tuple(",.;:!?)]}、。，")
"""What follows a word without a space."""


def replacing(find: str, new: str, ignore_case: bool) -> Reword:
    """Return what replaces `find` wherever it stands as whole words, in any script. Raises ConfigError if it is blank.

    A word's neighbours are letters, digits, `_` and the marks that combine with them: `cafe` is not found in a `café`
    that is written with a combining accent.
    """
    wanted = normalise(find)
    if not wanted:
        raise ConfigError("There is nothing to find: FIND is blank.")
    pattern = re.compile(re.escape(wanted), re.IGNORECASE if ignore_case else 0)

    def reword(caption: str) -> str:
        def put(match: re.Match[str]) -> str:
            before, after = caption[: match.start()][-1:], caption[match.end() :][:1]
            inside = (_joins(before) and _joins(match[0][0])) or (_joins(match[0][-1]) and _joins(after))
            return match[0] if inside else new

        replaced = pattern.sub(put, caption)
        return normalise(replaced) if replaced != caption else caption

    return reword


def prefixing(text: str) -> Reword:
    """Return what puts `text` and a space before a caption that does not begin with them. Raises ConfigError."""
    prefix = _given(text)
    return lambda caption: caption if f"{caption} ".startswith(f"{prefix} ") else f"{prefix} {caption}"


def suffixing(text: str) -> Reword:
    """Return what puts `text` behind a caption that does not end with it, after a space unless it begins with a comma
    or another closing mark. Raises ConfigError.
    """
    suffix = _given(text) if text.lstrip().startswith(_CLOSING) else f" {_given(text)}"
    return lambda caption: caption if f" {caption}".endswith(suffix) else f"{caption}{suffix}"


def _given(text: str) -> str:
    if not normalise(text):
        raise ConfigError("There is nothing to add: TEXT is blank.")
    return normalise(text)


def _joins(char: str) -> bool:
    """Whether a character belongs to a word; "" is the caption's end."""
    return char.isalnum() or char == "_" or (char != "" and unicodedata.category(char).startswith("M"))
