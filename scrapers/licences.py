"""Licences by their names, as lists of images give them."""

import re
from collections.abc import Iterable

# "CC BY" must not let "CC BY-NC" in: a licence with a restriction has to be named with it.
_RESTRICTIONS = {"nc", "nd", "sa", "noncommercial", "noderivs", "noderivatives", "sharealike"}
_CREATIVE_COMMONS = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)/?([0-9.]*)", re.IGNORECASE)
_PUBLIC_DOMAIN = {"zero": "CC0", "mark": "Public Domain Mark"}


def is_named(licence: str, beginnings: Iterable[str]) -> bool:
    """Tell whether a licence's name begins with one of these, in any case: "CC BY" takes "cc-by-4.0".

    "?" and "" are unknown, and so are not. A restriction has to be named: "CC BY" does not take "CC BY-NC 2.0".
    """
    words = _words(licence)
    return any(_begins_with(words, _words(beginning)) for beginning in beginnings)


def _words(name: str) -> list[str]:
    return re.sub(r"[-_\s]+", " ", name.strip().strip("?")).casefold().split()


def _begins_with(words: list[str], start: list[str]) -> bool:
    rest = words[len(start) :]
    return words[: len(start)] == start and not _RESTRICTIONS & set(rest)


def licence_at(url: str) -> str:
    """Return the usual name of what a Creative Commons address stands for: "CC BY-NC 2.0"."""
    found = _CREATIVE_COMMONS.search(url)
    if not found:
        return ""
    kind, name, version = found[1].lower(), found[2].lower(), found[3]
    return f"{_PUBLIC_DOMAIN.get(name, name) if kind == 'publicdomain' else f'CC {name.upper()}'} {version}"
