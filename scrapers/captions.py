"""Captions from the web as captions for training: entities, tags and invisible characters go, words stay.

What comes out is a fixed point of what the trainer does to a caption (white space), so it is trained on as written.
"""

import html
import re
import unicodedata

_PLACEHOLDER = "{caption}"
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
# Only what HTML has: "<3", "a < b" and "<lora:style:1>" are no tags.
_INLINE = (
    "a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd label mark nobr q s samp small span strike strong"
    " sub sup tt u var wbr"
)
_BLOCK = (
    "address article aside audio blockquote body br button caption center dd div dl dt embed fieldset figcaption figure"
    " footer form h1 h2 h3 h4 h5 h6 head header hr html iframe img input li link main meta nav object ol option p param"
    " picture pre script section select source style table tbody td textarea tfoot th thead title tr ul video"
)
_INLINE_TAG, _BLOCK_TAG = (
    re.compile(rf"</?(?:{'|'.join(sorted(names.split(), key=len, reverse=True))})(?:\s[^<>]*)?/?>", re.IGNORECASE)
    for names in (_INLINE, _BLOCK)
)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_MAX_ROUNDS = 5
"""Entities are escaped twice or three times in the wild; more only in an attack."""
# The bidirectional controls, the zero width space, the byte order mark and lone surrogates. Zero-width joiners stay:
# emoji and Indic scripts are spelled with them.
_INVISIBLE = re.compile("[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def caption_of(caption: str, text: str = _PLACEHOLDER) -> str:
    """Return what an image is called: the cleaned caption, in the place of `{caption}` in `text`.

    "" where `text` wants a caption and nothing is left of it. Nothing in either is a format: other braces are text.
    """
    if _PLACEHOLDER not in text:
        return tidy(text)
    cleaned = clean(caption)
    if not cleaned or text == _PLACEHOLDER:
        return cleaned
    return tidy(text.replace(_PLACEHOLDER, cleaned))


def clean(caption: str) -> str:
    """Undo HTML (entities, also escaped twice, and tags), then `tidy`."""
    for _ in range(_MAX_ROUNDS):
        if "&" not in caption and "<" not in caption:
            break
        plain = _ENTITY.sub(lambda match: html.unescape(match[0]), caption)
        plain = _INLINE_TAG.sub("", _BLOCK_TAG.sub(" ", _COMMENT.sub(" ", plain)))
        if plain == caption:
            break
        caption = plain
    return tidy(caption)


def tidy(text: str) -> str:
    """Drop invisible characters, turn control characters and runs of white space into one space, and compose (NFC)."""
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", _CONTROL.sub(" ", _INVISIBLE.sub("", text)))
    return " ".join(text.split())
