"""What a visit makes of a caption: dropout, one of the variants, kohya's grammar, shuffled tags.

Every choice is a function of the visit's seed, with a purpose of its own: changing one setting does not change what
the others draw.
"""

import re
from collections.abc import Callable, Sequence

from everydream.data.captions import split_tags
from everydream.seeding import derive

_WILDCARD = re.compile(r"\{([^{}]+)\}")
# Captions hold no zero character (`texts.decode_text` refuses it), so it can stand in for a brace that is meant.
_ESCAPES = (("{{", "\0<", "{"), ("}}", "\0>", "}"))
_FIXED = "|||"
_WITHIN = ";;;"


def draw_caption(
    variants: Sequence[str], seed: int, *, dropout: float, shuffle_tags: bool, keep_tags: int, grammar: bool = False
) -> str:
    """Return the caption of one visit, "" if it is dropped; with `grammar` it is read as kohya's scripts do."""
    # 53 bits are what a float holds, so the quotient is never 1.0 and a dropout of 1.0 always drops.
    if (derive(seed, "caption_dropout") >> 10) / 2**53 < dropout or not variants:
        return ""
    caption = variants[derive(seed, "caption_variant") % len(variants)]
    if not grammar:
        return ", ".join(_ordered(split_tags(caption), seed, keep_tags)) if shuffle_tags else caption
    chosen = choose_wildcards(
        caption, lambda nth, choices: choices[derive(seed, "caption_wildcard", nth) % len(choices)]
    )
    return _read_separators(chosen, seed, shuffle_tags, keep_tags)


def longest_reading(caption: str) -> str:
    """Return a caption in kohya's grammar with the longest choice of each wildcard: what must fit the text encoder."""
    longest = choose_wildcards(caption, lambda _, choices: max(choices, key=len))
    return _read_separators(longest, 0, shuffle_tags=False, keep_tags=0)


def choose_wildcards(caption: str, choose: Callable[[int, list[str]], str]) -> str:
    """Replace each `{a|b}` by `choose(nth, [a, b])`; doubled braces are braces. They do not nest."""
    for written, stand_in, _ in _ESCAPES:
        caption = caption.replace(written, stand_in)
    nth = iter(range(len(caption)))
    caption = _WILDCARD.sub(lambda match: choose(next(nth), match[1].split("|")), caption)
    for _, stand_in, meant in _ESCAPES:
        caption = caption.replace(stand_in, meant)
    return caption


def _read_separators(caption: str, seed: int, shuffle_tags: bool, keep_tags: int) -> str:
    """Put the parts around `|||` together, shuffling the middle one; `;;;` joins what a shuffle must not part."""
    parts = caption.split(_FIXED, 2)
    if len(parts) > 1:
        head, middle, tail = (split_tags(part) for part in (*parts, "")[:3])
        caption = ", ".join([*head, *(_ordered(middle, seed, 0) if shuffle_tags else middle), *tail])
    elif shuffle_tags:
        caption = ", ".join(_ordered(split_tags(caption), seed, keep_tags))
    return caption.replace(_WITHIN, ",")


def _ordered(tags: list[str], seed: int, keep_tags: int) -> list[str]:
    """Order the tags after the first `keep_tags` by a hash of their positions: stable across library versions."""
    moving = range(min(keep_tags, len(tags)), len(tags))
    order = sorted(moving, key=lambda position: derive(seed, "caption_shuffle", position))
    return [*tags[: moving.start], *(tags[position] for position in order)]
