"""What a visit makes of a caption: dropout, one of the variants, wildcards, kohya's grammar, tags dropped and shuffled.

Every choice is a function of the visit's seed, with a purpose of its own: changing one setting does not change what
the others draw.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from everydream.data.captions import split_tags
from everydream.seeding import derive

_WILDCARD = re.compile(r"\{([^{}]+)\}")
# Captions hold no zero character (`texts.decode_text` refuses it), so it can stand in for a brace that is meant.
_ESCAPES = (("{{", "\0<", "{"), ("}}", "\0>", "}"))
_FIXED = "|||"
_WITHIN = ";;;"


@dataclass(frozen=True)
class TagRules:
    """What happens to the comma-separated parts of a caption."""

    shuffle: bool = False
    keep: int = 0
    """Leading tags that neither move nor go."""
    dropout: float = 0.0

    @property
    def touch(self) -> bool:
        """Whether anything happens; else a caption is verbatim."""
        return self.shuffle or self.dropout > 0.0


def draw_caption(
    variants: Sequence[str],
    seed: int,
    *,
    dropout: float,
    tags: TagRules,
    wildcards: bool = False,
    grammar: bool = False,
) -> str:
    """Return the caption of one visit, "" if it is dropped; with `grammar` it is read as kohya's scripts do."""
    if _uniform(seed, "caption_dropout") < dropout or not variants:
        return ""
    caption = variants[derive(seed, "caption_variant") % len(variants)]
    if wildcards or grammar:
        caption = choose_wildcards(
            caption, lambda nth, choices: choices[derive(seed, "caption_wildcard", nth) % len(choices)]
        )
    if grammar:
        return _read_separators(caption, seed, tags)
    return ", ".join(_drawn(split_tags(caption), seed, tags)) if tags.touch else caption


def _uniform(seed: int, purpose: str, *keys: int) -> float:
    # 53 bits are what a float holds, so the quotient is never 1.0 and a dropout of 1.0 always drops.
    return (derive(seed, purpose, *keys) >> 10) / 2**53


def longest_reading(caption: str, wildcards: bool, grammar: bool) -> str:
    """Return the longest that a caption can be drawn as: what must fit the text encoder."""
    if wildcards or grammar:
        caption = choose_wildcards(caption, lambda _, choices: max(choices, key=len))
    return _read_separators(caption, 0, TagRules()) if grammar else caption


def choose_wildcards(caption: str, choose: Callable[[int, list[str]], str]) -> str:
    """Replace each `{a|b}` by `choose(nth, [a, b])`; doubled braces are braces. They do not nest."""
    for written, stand_in, _ in _ESCAPES:
        caption = caption.replace(written, stand_in)
    nth = iter(range(len(caption)))
    caption = _WILDCARD.sub(lambda match: choose(next(nth), match[1].split("|")), caption)
    for _, stand_in, meant in _ESCAPES:
        caption = caption.replace(stand_in, meant)
    return caption


def _read_separators(caption: str, seed: int, rules: TagRules) -> str:
    """Put the parts around `|||` together; only the middle one is drawn. `;;;` joins what must not be parted."""
    parts = caption.split(_FIXED, 2)
    if len(parts) > 1:
        head, middle, tail = (split_tags(part) for part in (*parts, "")[:3])
        caption = ", ".join([*head, *_drawn(middle, seed, replace(rules, keep=0)), *tail])
    elif rules.touch:
        caption = ", ".join(_drawn(split_tags(caption), seed, rules))
    return caption.replace(_WITHIN, ",")


def _drawn(tags: list[str], seed: int, rules: TagRules) -> list[str]:
    """Leave out and order the tags after the first that stay, by hashes of their positions; of all one always stays."""
    fixed, moving = tags[: rules.keep], list(range(min(rules.keep, len(tags)), len(tags)))
    if rules.dropout > 0.0:
        kept = [place for place in moving if _uniform(seed, "caption_tag_dropout", place) >= rules.dropout]
        moving = kept or ([] if fixed else moving[:1])
    if rules.shuffle:
        moving.sort(key=lambda place: derive(seed, "caption_shuffle", place))
    return [*fixed, *(tags[place] for place in moving)]
