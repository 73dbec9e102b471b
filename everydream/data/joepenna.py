"""The `joepenna` caption rule: folders name the subject and its class, `@` in a file's name starts a template.

    token/class/further levels/x@template@ignored.png

The first folder level replaces the token `S`, the second the class `C`, the others stand before the template; without
one it is `S C`, or nothing where the folders hold S or C already. For class images folders say nothing.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from everydream.data.captions import CAMERA_NAME, Caption
from everydream.data.settings import SourceSettings
from everydream.data.texts import BadText, normalise

_SEPARATOR = re.compile(r"[\s_]+")
_MEANINGS = {"S": ("token", "first"), "C": ("class_word", "second")}


def joepenna_caption(levels: Sequence[str], stem: str, source: SourceSettings) -> Caption:
    """Return the caption of the image `stem` (without its extension) in the folders `levels` below the source's.

    Raises BadText where `S` or `C` is used and nothing says what it stands for.
    """
    if source.role == "class":
        words, standard, prefix = {"C": normalise(source.class_word or "")}, ["C"], []
    else:
        words = {"S": normalise(source.token or ""), "C": normalise(source.class_word or "")}
        words |= dict(zip("SC", map(normalise, levels), strict=False))
        standard = ["S"] if source.token_only else ["S", "C"]
        prefix = _pieces(" ".join(levels[2:]))
    name, at, rest = stem.partition("@")
    template = _pieces(rest.partition("@")[0])
    written = prefix + template
    pieces = written if template or words.keys() & set(prefix) else prefix + standard
    for letter in sorted(words.keys() & set(pieces)):
        _require_word(letter, words[letter], " ".join(pieces))
    ignored = name if source.role != "class" and not at else ""
    warnings = [*_name_warnings(ignored, at, template), *_letter_warnings(written, words)]
    return Caption((normalise(" ".join(words.get(piece, piece) for piece in pieces)),), 0, {}, tuple(warnings))


def _pieces(text: str) -> list[str]:
    return list(filter(None, _SEPARATOR.split(text)))


def _require_word(letter: str, word: str, template: str) -> None:
    key, level = _MEANINGS[letter]
    if not word:
        raise BadText(f'{letter} of "{template}" stands for a word that is not given; set {key} for the source, or '
                      f"name the {level} folder level after it")  # fmt: skip


def _name_warnings(ignored: str, at: str, template: Sequence[str]) -> Iterator[str]:
    if _reads_as_text(ignored):
        yield f'its name says "{ignored}", which is ignored: with joepenna captions a template stands after an @'
    if at and not template:
        yield "nothing stands after the @ of its name, so it is captioned as if there were none"


def _letter_warnings(written: Sequence[str], words: Mapping[str, str]) -> Iterator[str]:
    """Tell of each S and C that a user wrote, since nobody can tell a size S from the subject."""
    for letter in sorted(words.keys() & set(written)):
        yield f'a lone {letter} of "{" ".join(written)}" is replaced by "{words[letter]}"'


def _reads_as_text(name: str) -> bool:
    """Tell whether a name holds two words or more, as `a photo of joe` does and `img-001` does not."""
    words = [piece for piece in _pieces(name) if piece.strip(",.;:!?'\"()").isalpha()]
    return len(words) > 1 and not CAMERA_NAME.search(name)
