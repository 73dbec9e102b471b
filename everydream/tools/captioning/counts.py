"""How often tags and words stand in the captions of a folder."""

import re
from collections import Counter
from collections.abc import Sequence

from everydream.data.captions import split_tags
from everydream.tools.captioning.items import Item

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


def count(items: Sequence[Item], words: bool) -> dict[str, int]:
    """Return tag (or word) -> images that have it, the most frequent first; an image counts once for each."""
    counts: Counter[str] = Counter()
    for item in items:
        counts.update({piece for text in item.caption.variants for piece in _pieces(text, words)})
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _pieces(caption: str, words: bool) -> list[str]:
    return _WORD.findall(caption) if words else split_tags(caption)


def describe_counts(counts: dict[str, int], num_images: int) -> str:
    """Return one line per tag."""
    width = len(f"{max(counts.values(), default=0):,}")
    lines = [f"{number:>{width},}  {piece}" for piece, number in counts.items()]
    return "\n".join([*lines, f"{len(counts):,} different ones in the captions of {num_images:,} images."])
