"""File names that carry a caption, valid on every file system, and read back by EveryDream as that caption.

The contract (`datasets/README.md`): the caption is the part of the file name before the first `_`,
unless a sidecar text file holds one. So a name made here says whether it still is the whole caption;
where it is not, the caller writes the sidecar.
"""

import re
import unicodedata
from dataclasses import dataclass

MAX_BYTES = 240
"""UTF-8 bytes of a name with its number and ending; most file systems stop at 255."""
_ROOM_FOR_ENDING = len("_(1000000).jpeg")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*_\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|clock\$|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
# Marks that turn the direction of text make a name look like another ("gpj.exe"); noncharacters stop macOS.
_UNSEEN = re.compile("[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_IGNORED_BY_HFS = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")


@dataclass(frozen=True)
class CaptionName:
    """The stem of a file's name, without number and ending."""

    stem: str
    is_whole: bool
    """Whether the stem reads back as exactly the caption."""

    def numbered(self, number: int, ending: str) -> str:
        """Return the file's name for the how-manieth image of this caption, from 1: `stem_(1).png`."""
        return f"{self.stem}_({number}){ending}"


def name_of(caption: str) -> CaptionName:
    """Return the stem for a caption: forbidden characters become spaces, and what is too long is cut."""
    text = " ".join(caption.split())
    printable = "".join(c if _is_printable(c) else " " for c in _UNSEEN.sub("", text))
    stem = " ".join(_FORBIDDEN.sub(" ", printable).split())
    # A name that starts with "-" is an option to `rm *`, and one with "~" a home folder.
    stem = _cut(stem.lstrip(" .-~"), MAX_BYTES - _ROOM_FOR_ENDING).strip(" .")
    if not stem or _RESERVED.fullmatch(stem):
        stem = f"image {stem}".strip()
    return CaptionName(stem, stem == text)


def key_of(stem: str) -> str:
    """Return a text that is equal for two stems which some file system takes for one name.

    Case (Windows, macOS), composed or not (macOS), and on HFS+ also the characters that it does not see. Coarser than
    any one of them: to keep two apart needlessly costs a number, to miss one costs an image.
    """
    seen = unicodedata.normalize("NFD", _IGNORED_BY_HFS.sub("", stem))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", seen.upper()).casefold())


def _is_printable(char: str) -> bool:
    if char.isascii():
        return char.isprintable()
    point = ord(char)
    is_noncharacter = (point & 0xFFFE) == 0xFFFE or 0xFDD0 <= point <= 0xFDEF
    return not is_noncharacter and unicodedata.category(char) not in ("Cc", "Cs")


def _cut(text: str, max_bytes: int) -> str:
    """Cut to so many UTF-8 bytes, between characters."""
    return text.encode("utf-8")[:max_bytes].decode("utf-8", "ignore")
