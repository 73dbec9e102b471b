"""The keys of another trainer's file, taken one by one with the type they need; the rest is told at the end."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from everydream.tools.importing.draft import Draft

D = TypeVar("D")
V = TypeVar("V")
_YES, _NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


class Keys:
    """One table of a file. A wrong type is a problem of the draft; null and "" mean that a key is not set."""

    def __init__(self, raw: Mapping[str, Any], draft: Draft, where: str = "") -> None:
        """`where` stands before the keys in messages, e.g. `general.`."""
        self._raw, self._draft, self._where = raw, draft, where
        self._taken: set[str] = set()

    def name(self, key: str) -> str:
        """Return a key as messages and comments call it."""
        return f"{self._where}{key}"

    def given(self, key: str) -> bool:
        """Tell whether a key is set, without taking it."""
        return self._raw.get(key) not in (None, "")

    def is_on(self, key: str) -> bool:
        """Tell whether a key is set to more than false, 0 or nothing, without taking it."""
        return not _is_off(self._raw.get(key))

    def equals(self, other: "Keys", apart_from: Collection[str]) -> bool:
        """Tell whether two tables say the same, apart from some keys, without taking any."""
        keys = (self._raw.keys() | other._raw.keys()) - set(apart_from)
        return all(self._raw.get(key) == other._raw.get(key) for key in keys)

    def any(self, key: str) -> Any:
        """Take a key of any type; None if it is not set."""
        return self._take(key, lambda value: value, "", None)

    def text(self, key: str, default: D) -> str | D:
        """Take a text, without white space at its ends."""
        return self._take(key, _text, "a text", default)

    def number(self, key: str, default: D) -> float | D:
        """Take a finite number; in quotes it is one too."""
        return self._take(key, _number, "a number", default)

    def whole(self, key: str, default: D) -> int | D:
        """Take a whole number."""
        return self._take(key, _whole, "a whole number", default)

    def flag(self, key: str, default: D) -> bool | D:
        """Take true or false."""
        return self._take(key, _flag, "true or false", default)

    def texts(self, key: str) -> list[str]:
        """Take a list of texts; a single text is a list of its words."""
        return self._take(key, _texts, "a list of texts", [])

    def table(self, key: str) -> "Keys":
        """Take a table; an empty one if it is not set."""
        return Keys(self._take(key, _table, "a table of keys", {}), self._draft, f"{self.name(key)}.")

    def tables(self, key: str) -> "list[Keys]":
        """Take a list of tables."""
        found = self._take(key, _tables, "a list of tables", [])
        return [Keys(raw, self._draft, f"{self.name(key)}.{number}.") for number, raw in enumerate(found)]

    def problem(self, key: str, what: str) -> None:
        """Say what is wrong with a key's value."""
        self._draft.problems.append(f"{self.name(key)}: {what}")

    def tell_rest(
        self,
        needless: Mapping[str, str],
        missing: Mapping[str, str],
        neutral: Mapping[str, Any],
    ) -> None:
        """Tell of every key that was not taken, and of those that were and changed nothing.

        `needless` and `missing` give the reason; a key of `missing` that is switched off, or has its value of
        `neutral`, asks for nothing that a run here would not do.
        """
        comments = " ".join(entry.comment for entry in self._draft.entries.values())
        for key, value in self._raw.items():
            name = self.name(key)
            if key in self._taken:
                if _is_off(value) and key not in comments:
                    self._draft.tell("idle", name)
            elif key in needless:
                self._draft.tell("needless", f"{name}: {needless[key]}")
            elif key in missing and (_is_off(value) or value == neutral.get(key)):
                self._draft.tell("idle", name)
            elif key in missing:
                self._draft.tell("missing", f"{name}: {_shown(value)}; {missing[key]}")
            else:
                self._draft.tell("unknown", f"{name}: {_shown(value)}")

    def _take(self, key: str, convert: Callable[[Any], V], wanted: str, default: D) -> V | D:
        self._taken.add(key)
        if not self.given(key):
            return default
        try:
            return convert(self._raw[key])
        except (TypeError, ValueError, OverflowError):
            self.problem(key, f"should be {wanted} (it is {_shown(self._raw[key])})")
            return default


class Levels:
    """Tables of which the first that sets a key decides, as kohya's data sets inherit."""

    def __init__(self, levels: Sequence[Keys], names: Mapping[str, str]) -> None:
        """`names` are what the last level calls some keys."""
        self._levels, self._names = levels, names

    def whole(self, key: str, default: D) -> int | D:
        """Take a whole number from every level, the first counts."""
        return next((v for level, k in self._places(key) if (v := level.whole(k, None)) is not None), default)

    def number(self, key: str, default: D) -> float | D:
        """Take a number from every level, the first counts."""
        return next((v for level, k in self._places(key) if (v := level.number(k, None)) is not None), default)

    def flag(self, key: str, default: D) -> bool | D:
        """Take true or false from every level, the first counts."""
        return next((v for level, k in self._places(key) if (v := level.flag(k, None)) is not None), default)

    def text(self, key: str, default: D) -> str | D:
        """Take a text from every level, the first counts."""
        return next((v for level, k in self._places(key) if (v := level.text(k, None)) is not None), default)

    def any(self, key: str) -> Any:
        """Take a value of any type; None if no level sets it."""
        return next((v for level, k in self._places(key) if (v := level.any(k)) is not None), None)

    def _places(self, key: str) -> Iterator[tuple[Keys, str]]:
        last = len(self._levels) - 1
        names = ((level, self._names.get(key, key) if n == last else key) for n, level in enumerate(self._levels))
        # All of them are taken, so that none is told as left over.
        return iter([(level, name) for level, name in names if level.any(name) is not None])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value.strip()


def _number(value: Any) -> float:
    if isinstance(value, str) and value.endswith("%"):
        return _number(value[:-1]) / 100
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    number = _number(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in _YES + _NO:
        return value.lower() in _YES
    if not isinstance(value, bool):
        raise TypeError
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.split()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return value


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _tables(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise TypeError
    return [_table(item) for item in value]


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", 0, [], {})


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
