"""What captions say most, and what recurs in nearly all of them: it is learned along with the subject."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from everydream.data.captions import split_tags

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_COMMON = frozenset({
    "a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "to", "for", "by", "from", "is", "are", "as", "it",
    "its", "his", "her", "their", "this", "that", "one", "two",
})  # fmt: skip
_LISTED = 60
RECURRING = 0.5
"""A phrase in at least this share of a source's captions recurs."""
_FEW_CAPTIONS = 5
_LONGEST = 8
_CAPTIONS_KEPT = 100_000


@lru_cache(_CAPTIONS_KEPT)  # each of the facts asks anew
def words_of(caption: str) -> tuple[str, ...]:
    """Return the words of a caption in lower case, without punctuation."""
    return tuple(_WORD.findall(caption.casefold()))


def frequencies(captions: Iterable[str]) -> dict[str, Any]:
    """Return the most frequent words (articles and the like left out) and tags, as [text, captions that have it].

    Tags are the comma-separated parts, counted where a caption has several.
    """
    words: Counter[str] = Counter()
    tags: Counter[str] = Counter()
    for caption in captions:
        words.update(set(words_of(caption)) - _COMMON)
        parts = split_tags(caption)
        tags.update({tag.casefold() for tag in parts} if len(parts) > 1 else ())
    return {"words": _most(words), "tags": _most(tags), "num_words": len(words), "num_tags": len(tags)}


def _most(counter: Counter[str]) -> list[list[Any]]:
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return [list(item) for item in ranked[:_LISTED]]


def recurring_phrases(captions: Sequence[str]) -> list[list[Any]]:
    """Return the phrases of two words and more in most of the captions, as [phrase, number of captions], most first.

    Only the longest of those that come in the same captions; none where there are fewer than five captions.
    """
    if len(captions) < _FEW_CAPTIONS:
        return []
    least = RECURRING * len(captions)
    written = [words_of(caption) for caption in captions]
    per_word = Counter(word for words in written for word in set(words))
    frequent = {word for word, count in per_word.items() if count >= least}
    phrases: Counter[tuple[str, ...]] = Counter()
    for words in written:
        phrases.update({phrase for run in _runs(words, frequent) for phrase in _parts(run)})
    kept = {phrase: count for phrase, count in phrases.items() if count >= least}
    longest = [
        (phrase, count) for phrase, count in kept.items()
        if not any(other != phrase and same >= count and _holds(other, phrase) for other, same in kept.items())
        and not _COMMON.issuperset(phrase)
    ]  # fmt: skip
    ranked = sorted(longest, key=lambda item: (-item[1], -len(item[0]), item[0]))
    return [[" ".join(phrase), count] for phrase, count in ranked]


def recurring_words(captions: Sequence[str], least: float = RECURRING) -> list[tuple[str, int]]:
    """Return the words in at least this share of the captions, articles and the like left out, most first."""
    counter = Counter(word for caption in captions for word in set(words_of(caption)) - _COMMON)
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return [(word, count) for word, count in ranked if count >= least * len(captions)]


def _runs(words: Sequence[str], frequent: set[str]) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for word in words:
        if word in frequent:
            runs[-1].append(word)
        elif runs[-1]:
            runs.append([])
    return runs


def _parts(run: Sequence[str]) -> Iterable[tuple[str, ...]]:
    for start in range(len(run)):
        for end in range(start + 2, min(len(run), start + _LONGEST) + 1):
            yield tuple(run[start:end])


def _holds(longer: tuple[str, ...], phrase: tuple[str, ...]) -> bool:
    span = len(phrase)
    return any(longer[start : start + span] == phrase for start in range(len(longer) - span + 1))
