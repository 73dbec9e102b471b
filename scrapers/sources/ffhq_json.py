"""Reading FFHQ's JSON entry by entry: it has 267 MB, of which a few kilobytes are wanted at a time."""

import io
import json
import re
from collections.abc import Iterator
from typing import TextIO

from scrapers.errors import ScrapeError
from scrapers.sources.files import SourceFile, explain
from scrapers.sources.text import open_text

_CHUNK_CHARS = 1 << 20
_MAX_ENTRY_CHARS = 16 << 20
_KEY = re.compile(r'\s*,?\s*"((?:[^"\\]|\\.)*)"\s*:\s*')
# Texts first, so that what looks like a comment within one stays.
_NOT_JSON = re.compile(r'("(?:[^"\\]|\\.)*")|#[^\n]*|//[^\n]*|\.\.\.')
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')


def read_entries(file: SourceFile) -> Iterator[tuple[str, object]]:
    """Yield the keys and values of the outermost object, in their order."""
    try:
        with open_text(file) as stream:
            yield from _entries(io.StringIO(_plain(stream.read())) if file.ending == ".jsonc" else stream, file.path)
    except OSError as error:
        raise ScrapeError(f"{file.path}: cannot be read ({explain(file.path, error)})") from error


def _plain(text: str) -> str:
    """Return JSON without what the set's readme adds to it: comments, and dots for what is left out."""
    return _TRAILING_COMMA.sub(lambda found: found[1] or "", _NOT_JSON.sub(lambda found: found[1] or "", text))


def _entries(stream: TextIO, path: str) -> Iterator[tuple[str, object]]:
    decoder = json.JSONDecoder()
    num_entries = 0
    buffer = stream.read(_CHUNK_CHARS).lstrip()
    if not buffer.startswith("{"):
        raise ScrapeError(f"{path}: not a JSON object of pictures")
    buffer, chunk = buffer[1:], "begun"
    while True:
        position = 0
        while key := _KEY.match(buffer, position):
            try:
                value, position = decoder.raw_decode(buffer, key.end())
            except json.JSONDecodeError:
                break  # cut by the end of the buffer, or broken: more will tell
            yield key[1], value
            num_entries += 1
        buffer = buffer[position:]
        if not chunk or len(buffer) > _MAX_ENTRY_CHARS:
            break
        chunk = stream.read(_CHUNK_CHARS)
        buffer += chunk
    if buffer.strip() != "}":
        raise ScrapeError(f"{path}: broken or cut short after {num_entries} entries; download it again")
