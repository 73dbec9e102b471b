"""What each image of a run was, by its key: what a resume compares, and what a data set is known by.

Two arrays and not a dict: of a hundred million images that is 5 GB in the place of 50. Only where something
differs, and for the fingerprint, which is taken once a run, there are objects for a while.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from everydream.data.strings import Strings, TextBuffer
from everydream.types import Index

_AT_ONCE = 4096
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Digests:
    """Keys of images, and a number for each that changes with whatever matters of it."""

    keys: Strings
    digest_N: NDArray[np.int64]

    @staticmethod
    def of(*indexes: Index) -> "Digests":
        """Return those of all images of the indexes, in their order."""
        digests = [index.digest_N.view(np.int64) for index in indexes]
        return Digests(keys_of(*indexes), np.concatenate([np.zeros(0, np.int64), *digests]))

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Digests) and np.array_equal(self.digest_N, other.digest_N)
        return same and isinstance(other, Digests) and self.keys == other.keys

    __hash__ = None  # type: ignore[assignment]

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield key and digest of each image."""
        return zip(self.keys, map(int, self.digest_N), strict=True)

    def fingerprint(self) -> str:
        """Return one hash of the data set, whatever order its images came in: over keys and digests, by key."""
        found = hashlib.sha256(b"[")
        for nth, place in enumerate(sorted(range(len(self.keys)), key=self.keys.raw)):
            listed = json.dumps([self.keys[place], int(self.digest_N[place])])
            found.update((", " if nth else "").encode() + listed.encode())
        found.update(b"]")
        return found.hexdigest()


def keys_of(*indexes: Index) -> Strings:
    """Return the keys of all records of the indexes, in their order."""
    buffer = TextBuffer()
    for index in indexes:
        for first in range(0, len(index), _AT_ONCE):
            buffer.extend([index.key(record) for record in range(first, min(first + _AT_ONCE, len(index)))])
    return buffer.strings()


def differences(before: Digests, now: Digests) -> Iterator[str]:
    """Yield a line for each image that is gone, new or changed, for not too many of each kind."""
    if before == now:
        return
    old, new = dict(before.items()), dict(now.items())
    yield from _first(f"image gone: {key}" for key in old if key not in new)
    yield from _first(f"image new: {key}" for key in new if key not in old)
    yield from _first(f"image or caption changed: {key}" for key in new if old.get(key, new[key]) != new[key])


def _first(lines: Iterable[str]) -> Iterator[str]:
    found = list(lines)
    yield from found[:_SHOWN]
    if len(found) > _SHOWN:
        yield f"... and {len(found) - _SHOWN} more of these"
