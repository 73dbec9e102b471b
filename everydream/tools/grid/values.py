"""The values of an axis from words: `1, 5, 10-13`, `3-9 (+2)`, `0-1 [5]`, "a, quoted", b."""

import csv
import re
from collections.abc import Sequence
from decimal import Decimal
from difflib import get_close_matches

from everydream.errors import ConfigError

_MOST = 1000
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_RANGE = re.compile(
    rf"(?P<first>{_NUMBER})\s*-\s*(?P<last>{_NUMBER})\s*(?:\((?P<step>{_NUMBER})\)|\[(?P<count>\d+)\])?"
)


def items(text: str) -> list[str]:
    """Return the values of a list by commas; those that hold one stand in double quotes, as in CSV."""
    row = next(csv.reader([text.strip()], skipinitialspace=True), [])
    return [item.strip() for item in row if item.strip()]


def numbers(axis: str, text: str, whole: bool) -> list[float]:
    """Return the numbers of a list of numbers and ranges; `whole`: integers only. Raises ConfigError."""
    found: list[Decimal] = []
    for item in items(text):
        found += _numbers(axis, item, whole)
        if len(found) > _MOST:
            raise ConfigError(f"{axis}: {text!r} are more than {_MOST} values. Take wider steps, as in 0-1 (+0.1).")
    different = list(dict.fromkeys(found))
    if whole and (odd := [number for number in different if number != int(number)]):
        raise ConfigError(f"{axis}: {odd[0]} is not a whole number; nearest is {round(odd[0])}.")
    return [int(number) if whole else float(number) for number in different]


def _numbers(axis: str, item: str, whole: bool) -> Sequence[Decimal]:
    if re.fullmatch(_NUMBER, item):
        return [Decimal(item)]
    match = _RANGE.fullmatch(item)
    if match is None:
        raise ConfigError(
            f"{axis}: {item!r} is neither a number nor a range. Ranges are 1-10, 1-10 (+2) with a step, and 0-1 [5] "
            "for 5 values evenly spread."
        )
    first, last = Decimal(match["first"]), Decimal(match["last"])
    if match["count"]:
        return _evenly(axis, item, first, last, int(match["count"]), whole)
    step = Decimal(match["step"]) if match["step"] else Decimal(1 if last >= first else -1)
    if not step or (last - first) * step < 0:
        raise ConfigError(f"{axis}: {item!r} never gets from {first} to {last} in steps of {step}; try ({-step:+}).")
    return [first + n * step for n in range(min(int((last - first) / step), _MOST) + 1)]


def _evenly(axis: str, item: str, first: Decimal, last: Decimal, count: int, whole: bool) -> list[Decimal]:
    if not 1 <= count <= _MOST:
        raise ConfigError(f"{axis}: {item!r} asks for {count} values; say 1 to {_MOST}.")
    spread = [first + (last - first) * n / max(count - 1, 1) for n in range(count)]
    return [Decimal(round(number)) for number in spread] if whole else spread


def known(axis: str, item: str, choices: Sequence[str]) -> str:
    """Return the choice that is meant, in any case. Raises ConfigError that names the nearest."""
    if found := [choice for choice in choices if choice.casefold() == item.casefold()]:
        return found[0]
    near = get_close_matches(item.casefold(), [choice.casefold() for choice in choices], 1, 0.0)
    nearest = next((choice for choice in choices if near and choice.casefold() == near[0]), None)
    meant = f" Did you mean {nearest}?" if nearest is not None else ""
    raise ConfigError(f"{axis}: there is no {item!r}.{meant} Known are {', '.join(choices)}.")
