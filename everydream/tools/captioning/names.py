"""File names that say a caption and are valid on every file system."""

import re
import unicodedata

_MAX_BYTES = 200
"""Of a stem, in UTF-8: with a number, a sidecar's ending and `.partial` it stays under the 255 of most file systems."""
_FORBIDDEN = re.compile(r'[<>:"/\\|?*_]')
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)


def safe_stem(caption: str) -> str:
    """Return the stem of a name for a caption; it may say less than the caption, and never holds `_`."""
    text = "".join(" " if unicodedata.category(char).startswith("C") else char for char in caption)
    text = " ".join(_FORBIDDEN.sub(" ", text).split())
    # A leading dot hides a file, and a leading dash makes it an option of many commands.
    stem = text.lstrip(" .-~").encode("utf-8")[:_MAX_BYTES].decode("utf-8", "ignore").strip(" .")
    return f"image {stem}".strip() if not stem or _DEVICE.fullmatch(stem) else stem


def same_file_key(name: str) -> str:
    """Return a text that is equal for two names which some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
