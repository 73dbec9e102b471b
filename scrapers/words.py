"""Words and phrases in captions.

A phrase stands in a text where no letter, mark or digit touches its ends, in any case, after compatibility
normalisation (NFKC). So "cat" is in "Cat's", "black-cat" and "big_cat", and not in "cats" or "category"; "cafe" is not
"café". In Chinese, Japanese, Thai and other scripts without spaces it may stand anywhere. Phrases are never patterns:
"c++", "a.b" and "(" mean themselves.
"""

import re
import unicodedata

# Scripts without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han (and what is beyond the basic plane).
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


def fold(text: str) -> str:
    """Return the form in which tidy texts are compared: no case, no compatibility forms, plain apostrophes."""
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.replace("\u2019", "'").split())


def holds_phrase(text: str, phrase: str) -> bool:
    """Tell whether a folded phrase stands in a folded text as whole words."""
    start = text.find(phrase)
    while start >= 0:
        end = start + len(phrase)
        if not (_joins(text[start - 1 : start], phrase[0]) or _joins(phrase[-1], text[end : end + 1])):
            return True
        start = text.find(phrase, start + 1)
    return False


def _joins(left: str, right: str) -> bool:
    """Tell whether two neighbours belong to one word; "" is the end of the text."""
    return _is_letter(left) and _is_letter(right) and not (_UNSPACED.match(left) or _UNSPACED.match(right))


def _is_letter(char: str) -> bool:
    return bool(char) and (char.isalnum() or unicodedata.category(char)[0] == "M")
