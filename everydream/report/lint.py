"""What is suspicious about the captions of a source taken together; `data.captions.lint` looks at one at a time."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from everydream.data.captions import split_tags
from everydream.report.words import words_of

_LISTED = 20
_RARE, _MUCH_MORE = 3, 5
_LONG_WORD = 6
_MANY_PIECES = 4
_REPEATED = 3
ORDINARY_BELOW = 40_000
"""Entries of CLIP's vocabulary are ordered by how common they are; those behind are rare."""


def repeated_captions(captions: Sequence[str]) -> list[list[Any]]:
    """Return the captions that three images and more have, as [caption, images], most first."""
    ranked = sorted(Counter(captions).items(), key=lambda item: (-item[1], item[0]))
    return [[caption, count] for caption, count in ranked if count >= _REPEATED and caption]


def tag_variants(captions: Sequence[str]) -> list[list[list[Any]]]:
    """Return the tags that differ only in case, hyphens or plural, each group as [tag, captions], most first."""
    counter = Counter(tag for caption in captions for tag in set(split_tags(caption)))
    groups: dict[str, list[list[Any]]] = defaultdict(list)
    for tag, count in counter.items():
        groups[_folded(tag)].append([tag, count])
    found = [sorted(group, key=lambda item: (-item[1], item[0])) for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: (-sum(count for _, count in group), group[0][0]))[:_LISTED]


def _folded(tag: str) -> str:
    words = tag.casefold().replace("-", " ").replace("_", " ").split()
    return " ".join(word[:-1] if word.endswith("s") and len(word) > 3 else word for word in words)


def misspelled(captions: Sequence[str], pieces_of: Callable[[str], Sequence[str]]) -> list[list[Any]]:
    """Return likely typing errors as [word, captions, what it may mean, captions].

    A rare word that is one letter from a far more frequent one, begins with the same letter, and is no word of the
    text encoder's vocabulary. Neighbours are found by leaving out a letter, so in time linear in the words.
    """
    counter = Counter(word for caption in captions for word in set(words_of(caption)) if len(word) >= _LONG_WORD)
    by_deletion: dict[str, list[str]] = defaultdict(list)
    for word in counter:
        for key in {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}:
            by_deletion[key].append(word)
    found: dict[str, str] = {}
    for words in by_deletion.values():
        usual = max(words, key=lambda word: (counter[word], word))
        for word in words:
            rare = counter[word] <= _RARE and counter[usual] >= _MUCH_MORE * counter[word]
            if rare and word[0] == usual[0] and _folded(word) != _folded(usual) and len(pieces_of(word)) > 1:
                found.setdefault(word, usual)
    ranked = sorted(found.items(), key=lambda item: (-counter[item[1]], item[0]))
    return [[word, counter[word], usual, counter[usual]] for word, usual in ranked[:_LISTED]]


def token_problem(token: str, pieces: Sequence[str], rank_of: Mapping[str, int]) -> str | None:
    """Return what is wrong with a word chosen to name a subject, by how the text encoder reads it; None: nothing."""
    if len(pieces) == 1 and rank_of[pieces[0]] < ORDINARY_BELOW:
        return f'"{token}" is an ordinary word: the model has a meaning for it already, which training must overcome'
    common = [piece for piece in pieces if rank_of[piece] < ORDINARY_BELOW]
    if len(pieces) >= _MANY_PIECES and len(common) == len(pieces):
        return (
            f'"{token}" is read as {len(pieces)} common pieces ({shown_pieces(pieces)}), each with meanings of its own'
        )
    return None


def shown_pieces(pieces: Sequence[str]) -> str:
    """Return what a word is read as, for people: the pieces without the mark of a word's end."""
    return " ".join(piece.removesuffix("</w>") for piece in pieces)
