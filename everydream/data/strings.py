"""Millions of texts without an object each: their UTF-8 bytes in a row, and where each begins.

A Python string takes 50 bytes and more beside its text, and worker processes that look at one copy its page; these take
eight, and processes share them.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

# Texts of JSON files may hold lone surrogates, which strict UTF-8 has no bytes for.
_CODEC = ("utf-8", "surrogatepass")
_AT_ONCE = 4096


class Strings(Sequence[str]):
    """N texts; a slice is a list of them."""

    def __init__(self, data: bytes | bytearray | memoryview, offsets: NDArray[np.int64]) -> None:
        self.data = data
        self.offsets = offsets
        """N + 1 places in `data`."""

    @staticmethod
    def of(texts: Iterable[str]) -> "Strings":
        """Return these texts."""
        buffer = TextBuffer()
        buffer.extend(list(texts))
        return buffer.strings()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            return self._between(first, last) if step == 1 else [self[n] for n in range(first, last, step)]
        number = place + len(self) if place < 0 else place
        if not 0 <= number < len(self):
            raise IndexError(f"text {place} of {len(self)}")
        return str(self.data[self.offsets[number] : self.offsets[number + 1]], *_CODEC)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            yield from self._between(first, min(first + _AT_ONCE, len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Strings):
            return np.array_equal(self.offsets, other.offsets) and bytes(self.data) == bytes(other.data)
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Strings({self[:5]}{f' and {len(self) - 5} more' if len(self) > 5 else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Strings, (bytes(self.data), self.offsets)

    def take(self, places: Iterable[int]) -> "Strings":
        """Return the texts at these places, in their order."""
        buffer = TextBuffer()
        buffer.extend_bytes(self.raw(place) for place in places)
        return buffer.strings()

    def raw(self, place: int) -> bytes:
        """Return a text's bytes, whose order is the order of the texts."""
        return bytes(self.data[self.offsets[place] : self.offsets[place + 1]])

    def _between(self, first: int, last: int) -> list[str]:
        if first >= last:
            return []
        bounds = self.offsets[first : last + 1]
        block = str(self.data[bounds[0] : bounds[-1]], *_CODEC)
        if len(block) == bounds[-1] - bounds[0]:  # all ASCII: a character is a byte
            places = (bounds - bounds[0]).tolist()
            return [block[low:high] for low, high in pairwise(places)]
        return [self[number] for number in range(first, last)]


class TextBuffer:
    """Texts that are still being gathered."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._lengths = array("q")

    def extend(self, texts: Sequence[str]) -> None:
        """Append texts."""
        joined = "".join(texts)
        data = joined.encode(*_CODEC)
        self._data += data
        ascii_only = len(data) == len(joined)
        self._lengths.extend(map(len, texts) if ascii_only else (len(text.encode(*_CODEC)) for text in texts))

    def extend_bytes(self, texts: Iterable[bytes]) -> None:
        """Append texts that are UTF-8 already."""
        for text in texts:
            self._data += text
            self._lengths.append(len(text))

    def extend_raw(self, data: Any, lengths: NDArray[np.int32]) -> None:
        """Append texts that lie in a row in a buffer."""
        self._data += memoryview(data)
        self._lengths.frombytes(lengths.astype(np.int64).tobytes())

    def strings(self) -> Strings:
        """Return what was gathered; the buffer is not to be used any more."""
        offsets = np.zeros(len(self._lengths) + 1, np.int64)
        np.cumsum(np.frombuffer(self._lengths, np.int64), out=offsets[1:])
        return Strings(self._data, offsets)
