"""Which column of a list holds what, and its values as the types of `Row`.

Lists change the type of a column from one release to the next (WIDTH is int32, then float64 with NaN, then text), and
single rows are shifted by a column. So nothing here raises for a value: what cannot be read is unknown.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from itertools import repeat
from typing import Any

from scrapers.filters import Needs
from scrapers.types import Row

ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url", "image_url", "image_urls", "img_url", "image_link"),
    # LAION-COCO has the alternative text of the page as TEXT and a model's better one as top_caption.
    "caption": ("top_caption", "caption", "text", "alt_text", "alt", "captions"),
    # Lists made by img2dataset have the original's size beside that of the thumbnail which they made.
    "width": ("original_width", "width"),
    "height": ("original_height", "height"),
    "aesthetic": ("aesthetic_score", "aesthetic", "aesthetic_score_laion_v2"),
    # CLIP ViT-B/32 first: LAION's `similarity` is that, and 0.3 means another thing for ViT-L/14.
    "similarity": ("similarity", "clip_similarity_vitb32", "clip_b32_similarity_score", "clip_similarity_vitl14",
                   "clip_l14_similarity_score"),
    # COYO has two scores. OpenNSFW2's is one probability, near 0 for what is harmless, as punsafe is; Gantman's is
    # mostly far higher for the same harmless picture (0.03 beside 0.00003), so no limit would suit both lists.
    "unsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "watermark": ("pwatermark", "watermark_score"),
    "nsfw": ("nsfw",),
    "licence": ("license", "licence", "license_name"),
    "licence_url": ("license_url", "licence_url"),
    "author": ("author", "creator"),
    "title": ("title", "photo_title"),
    "language": ("language", "lang"),
    # Never by themselves. LAION's, DataComp's and img2dataset's digests are of the file as it was crawled years ago;
    # sites re-encode their pictures, and most that differ are fine. Whoever fears swapped pictures more than fewer ones
    # maps the column: `columns: {sha256: sha256}`.
    "md5": (),
    "sha256": (),
    # A mirror's pictures; read where the source is one.
    "data": ("image", "image_bytes", "img", "jpg", "png", "bytes"),
}  # fmt: skip
CREDIT = ("licence", "licence_url", "author", "title")
"""Read wherever they are: who uses an image under CC BY has to name its author."""
_NULLS = {"", "null", "nan", "none", "\\n", "<na>"}
_SURROGATES = re.compile("[\ud800-\udfff]")
_DEFAULTS = {f.name: None if f.default is MISSING else f.default for f in fields(Row)}
MAX_SIDE_PX = 10**7


@dataclass(frozen=True)
class Choice:
    """What was found in one file."""

    columns: Mapping[str, str]
    """Field of `Row` -> column."""
    problems: list[str]
    notes: list[str]


def choose(
    columns: Sequence[str],
    overrides: Mapping[str, str],
    needs: Needs,
    file: str,
    key: tuple[str, str] = ("url", "the URL"),
) -> Choice:
    """Choose the columns to read from those of a file. `key` is the field without which there is no image."""
    problems = unknown_fields(overrides)
    chosen: dict[str, str] = {}
    for name in dict.fromkeys(("url", key[0], *needs.wanted, *CREDIT, "md5", "sha256")):
        if name in overrides:
            chosen[name] = overrides[name]
            if overrides[name] not in columns:
                problems.append(f"source.columns.{name}: {file} has no column `{overrides[name]}`; "
                                f"{_nearest(overrides[name], columns)}")  # fmt: skip
        else:
            found = _by_alias(name, columns)
            if found is not None:
                chosen[name] = found
    if key[0] not in chosen:
        problems.append(f"{file}: no column for {key[1]}; it has {_listed(columns)}. "
                        f"Name it: source.columns: {{{key[0]}: ...}}")  # fmt: skip
    lacks, notes = missing(chosen, needs, file, f"has {_listed(columns)}", True)
    return Choice(chosen, problems + lacks, notes)


def missing(has: Iterable[str], needs: Needs, file: str, what: str, can_map: bool) -> tuple[list[str], list[str]]:
    """Return the problems and the notes for what a run needs and a file lacks."""
    has = set(has)
    problems, notes = [], []
    for name, setting in needs.wanted.items():
        has_other = name == "unsafe" and "nsfw" in has
        if name in has or has_other or name in ("url", "width", "height", "nsfw", "licence_url"):
            continue
        map_it = f"map it with source.columns.{name}, or " if can_map else ""
        if name == "caption":
            problems.append(f"{file}: captions.text wants a caption; the file {what}. {map_it.capitalize()}"
                            f"{'s' if map_it else 'S'}et captions.text without {{caption}}")  # fmt: skip
        elif name in needs.required:
            problems.append(f"{file}: {setting} needs {_WORDS[name]}; the file {what}. "
                            f"{map_it.capitalize()}{'t' if map_it else 'T'}ake the filter out")  # fmt: skip
        else:
            notes.append(f"{file}: {setting} does nothing here, as the file {what}")
    return problems, notes


def unknown_fields(overrides: Mapping[str, str]) -> list[str]:
    """Return a problem for each key of `source.columns` that is no field."""
    return [f"source.columns.{name}: there is no such field; {_nearest(name, list(ALIASES))}"
            for name in overrides if name not in ALIASES]  # fmt: skip


def is_known(column: str, overrides: Mapping[str, str]) -> bool:
    """Tell whether a cell looks like the name of a column."""
    return column in overrides.values() or any(column.strip().casefold() in names for names in ALIASES.values())


_WORDS = {
    "aesthetic": "an aesthetic score", "similarity": "a similarity of image and caption",
    "unsafe": "a probability of being unsafe, or a label", "watermark": "a probability of a watermark",
    "licence": "a licence", "language": "a language",
}  # fmt: skip


def _by_alias(name: str, columns: Sequence[str]) -> str | None:
    folded: dict[str, str] = {}
    for column in columns:
        folded.setdefault(column.strip().casefold(), column)
    return next((folded[alias] for alias in ALIASES[name] if alias in folded), None)


def _nearest(word: str, choices: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, choices, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else f"it has {_listed(choices)}"


def _listed(columns: Sequence[str]) -> str:
    shown = ", ".join(columns[:40])
    return f"{shown} and {len(columns) - 40} more" if len(columns) > 40 else shown or "no columns"


def as_text(value: object) -> str:
    """Return a value as text; of a list the first; "" for what stands for nothing (NULL, nan)."""
    if isinstance(value, list):
        value = next((item for item in value if as_text(item)), None)
    if value is None or isinstance(value, dict):
        return ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if len(text) <= 6 and text.strip().casefold() in _NULLS:
        return ""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def as_url(value: object) -> str:
    """Return a value as text without white space round it."""
    return as_text(value).strip()


def as_number(value: object) -> float | None:
    """Return a finite number, also from text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (bytes, list)):
        value = as_text(value)
    if not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def as_side(value: object) -> int | None:
    """Return a length in pixels; None for what cannot be one."""
    number = as_number(value)
    return int(number) if number is not None and 1 <= number <= MAX_SIDE_PX else None


def _as_digest(num_digits: int) -> Callable[[object], str]:
    pattern = re.compile(f"[0-9a-f]{{{num_digits}}}")

    def as_digest(value: object) -> str:
        digest = as_url(value).lower()
        return digest if pattern.fullmatch(digest) else ""

    return as_digest


def as_bytes(value: object) -> bytes | None:
    """Return a picture's bytes, alone or as `{bytes, path}`."""
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) and data else None


PARSERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(ALIASES, as_text), "url": as_url, "width": as_side, "height": as_side, "data": as_bytes,
    **dict.fromkeys(("aesthetic", "similarity", "unsafe", "watermark"), as_number),
    "md5": _as_digest(32), "sha256": _as_digest(64),
}  # fmt: skip


def parse(name: str, values: Iterable[object]) -> list[Any]:
    """Turn the values of one column into those of a field of `Row`."""
    return list(map(PARSERS[name], values))


def make_rows(number: int, places: Sequence[str], values: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Make rows numbered from `number`, of parsed columns."""
    columns = (
        values.get(name, repeat(default)) for name, default in _DEFAULTS.items() if name not in ("number", "where")
    )
    return list(map(Row, range(number, number + len(places)), places, *columns))
