"""What an image is called: file names and sidecars, and what is suspicious about a caption.

The first that yields text wins: `stem.yaml`/`.yml`, `stem.caption`, `stem.txt` (or `stem.ext.txt`), `stem.json`, file
name; in a tar shard names are keys and no captions. A
blank sidecar falls through; one that cannot be understood is `BadText`, and the image is rejected with its message.
Captions are kept verbatim (white space apart) until a visit shuffles their tags (`data.drawing`).
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from everydream.data.folders import CHECKS, SETTING_FILES, Setting, check_values
from everydream.data.shards import shard_of
from everydream.data.texts import BadText, Entry, check_keys, is_text_map, normalise, parse_yaml, read_text

_CAPTION_KEYS = ("main_prompt", "tags", "rating", "max_caption_length")
_SIDECARS = ("yaml", "yml", "caption", "txt", "json")

Siblings = Mapping[tuple[str, str], str]
"""(stem, lower-case suffix) -> file name, for the possible sidecars of one folder."""


@dataclass(frozen=True)
class Caption:
    """What the caption rule found for one image."""

    variants: tuple[str, ...]
    """One a visit; empty: the image has no caption."""
    num_fixed: int
    """Leading tags that shuffling must not move: those of a YAML sidecar's main prompt."""
    values: Mapping[str, Setting]
    """Folder settings that the sidecar gives for this image alone."""
    warnings: tuple[str, ...]
    repeats: int = 1
    """Draws per image that its folder's name asks for."""


def caption_from_name(name: str) -> str:
    """Return the part of a file name before the first `_`, without the extension; "" if nothing is left."""
    stem = name.rpartition(".")[0] or name
    return normalise(stem.partition("_")[0])


def index_siblings(names: Iterable[str]) -> Siblings:
    """Arrange a folder's file names so that sidecars are found whatever the case of their suffixes."""
    found: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        stem, _, suffix = name.rpartition(".")
        if suffix.lower() not in _SIDECARS or name.lower() in SETTING_FILES:
            continue
        found.setdefault((stem, suffix.lower()), name)
        inner, _, extension = stem.rpartition(".")
        if inner and suffix.lower() == "txt":
            found.setdefault((inner, f"{extension.lower()}.txt"), name)
    return found


def sidecars_of(name: str, siblings: Siblings) -> list[str]:
    """Return the sidecars of an image, the one that counts most first."""
    stem, _, extension = name.rpartition(".")
    suffixes = (*_SIDECARS, f"{extension.lower()}.txt")
    return [siblings[stem, suffix] for suffix in suffixes if (stem, suffix) in siblings]


def read_caption(folder: Path, shown: str, name: str, siblings: Siblings, lines: Literal["join", "choose"]) -> Caption:
    """Apply the `everydream` rule to the image `name` in `folder`, which messages call `shown`."""
    found = [read_sidecar(folder / sidecar, f"{shown}/{sidecar}" if shown else sidecar, lines)
             for sidecar in sidecars_of(name, siblings)]  # fmt: skip
    settings = next((sidecar for _, sidecar in found if sidecar.is_yaml), Sidecar())
    warnings = [*settings.warnings, *(text for _, sidecar in found if not sidecar.is_yaml for text in sidecar.warnings)]
    yamls = [file for file, sidecar in found if sidecar.is_yaml]
    warnings += [f"two YAML sidecars: the settings of {yamls[0]} are used, not those of {file}" for file in yamls[1:]]
    from_name = "" if shard_of(folder / name) is not None else caption_from_name(name)
    chosen, twins = first_with_text(found)
    written = chosen.variants or tuple(filter(None, (from_name,)))
    variants = tuple(cut_caption(text, settings.max_length) for text in written)
    return Caption(variants, chosen.num_fixed, settings.values, (*warnings, *twins))


def first_with_text(found: Sequence[tuple[str, "Sidecar"]]) -> tuple["Sidecar", list[str]]:
    """Return the first of (file, sidecar) that holds text, or an empty one; and a warning for each that disagrees."""
    with_text = [(file, sidecar) for file, sidecar in found if sidecar.variants]
    if not with_text:
        return Sidecar(), []
    used, chosen = with_text[0]
    return chosen, [
        f"two captions: {used} is used, {file} says something else"
        for file, other in with_text[1:]
        if other.variants != chosen.variants
    ]


@dataclass(frozen=True)
class Sidecar:
    """What one sidecar says."""

    variants: tuple[str, ...] = ()
    num_fixed: int = 0
    values: Mapping[str, Setting] = field(default_factory=dict)
    max_length: int | None = None
    warnings: tuple[str, ...] = ()
    is_yaml: bool = False


def read_sidecar(path: Path, file: str, lines: Literal["join", "choose"]) -> tuple[str, Sidecar]:
    """Read a sidecar by its suffix; return it with `file`, its name in messages. Raises BadText."""
    text = read_text(path, file)
    if path.suffix.lower() in (".yaml", ".yml"):
        return file, parse_yaml_sidecar(text, file)
    if path.suffix.lower() == ".json":
        return file, parse_json_sidecar(text, file)
    pieces = text.splitlines() if lines == "choose" else [text]
    return file, Sidecar(variants=tuple(filter(None, map(normalise, pieces))))


def parse_yaml_sidecar(text: str, file: str) -> Sidecar:
    """Read an image's own YAML: main prompt, then the tags by weight, joined by `, `; and folder settings."""
    entries = parse_yaml(text, file)
    check_keys(entries, (*_CAPTION_KEYS, *CHECKS), file)
    values = check_values({key: entry for key, entry in entries.items() if key not in _CAPTION_KEYS}, file)
    mains = _main_prompts(entries.get("main_prompt"), file)
    tags = _tags(entries.get("tags"), file)
    limit = _max_length(entries.get("max_caption_length"), file)
    variants = tuple(filter(None, (join_within(main, tags, limit) for main in mains or [""])))
    warnings = (f"{file}: rating is read but not used",) if "rating" in entries else ()
    num_fixed = max((len(split_tags(main)) for main in mains), default=0)
    return Sidecar(variants, num_fixed, values, limit, warnings, is_yaml=True)


def parse_json_sidecar(text: str, file: str) -> Sidecar:
    """Read what img2dataset and our scraper put beside images: an object with a `caption`, among much else."""
    try:
        found = json.loads(text)
    except ValueError:
        return Sidecar(warnings=(f"{file}: not valid JSON, so it is not used",))
    caption = found.get("caption") if isinstance(found, dict) else None
    return Sidecar(variants=tuple(filter(None, (normalise(caption),))) if isinstance(caption, str) else ())


def _main_prompts(entry: Entry | None, file: str) -> list[str]:
    if entry is None or entry.value is None:
        return []
    prompts = entry.value if isinstance(entry.value, list) else [entry.value]
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise BadText(f"{file}, line {entry.line}: main_prompt is {_shown(prompt)}, not a text or a list of texts; "
                          "put it in quotes if it is one")  # fmt: skip
    return list(filter(None, map(normalise, prompts)))


def _tags(entry: Entry | None, file: str) -> list[str]:
    """Return the tags, the heaviest first; equal weights keep their order."""
    if entry is None or entry.value is None:
        return []
    where = f"{file}, line {entry.line}"
    if not isinstance(entry.value, list):
        raise BadText(f"{where}: tags is {_shown(entry.value)}, not a list")
    weighted = [_weighted_tag(tag, file, entry.line) for tag in entry.value]
    return [tag for tag, _ in sorted(weighted, key=lambda pair: -pair[1]) if tag]


def _weighted_tag(raw: object, file: str, line: int) -> tuple[str, float]:
    where = f"{file}, line {line}"
    if isinstance(raw, str):
        return normalise(raw), 1.0
    if not is_text_map(raw) or not isinstance(raw.get("tag"), str):
        raise BadText(f"{where}: the tag {_shown(raw)} is not a text or {{tag, weight}}; put it in quotes if it is one")
    check_keys({key: Entry(value, line) for key, value in raw.items()}, ("tag", "weight"), file)
    weight = raw.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise BadText(f"{where}: the weight of the tag {raw['tag']!r} is {_shown(weight)}, not a number")
    return normalise(str(raw["tag"])), float(weight)


def _max_length(entry: Entry | None, file: str) -> int | None:
    if entry is None:
        return None
    if isinstance(entry.value, bool) or not isinstance(entry.value, int) or entry.value < 1:
        raise BadText(f"{file}, line {entry.line}: max_caption_length is {_shown(entry.value)}, "
                      "not a number of characters of at least 1")  # fmt: skip
    return entry.value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def join_within(main: str, tags: Sequence[str], limit: int | None) -> str:
    """Join main prompt and tags by `, `, leaving out the tags from the first that would pass `limit` characters."""
    caption = cut_caption(main, limit)
    for tag in tags:
        longer = f"{caption}, {tag}" if caption else tag
        if limit is not None and len(longer) > limit:
            return caption or cut_caption(tag, limit)
        caption = longer
    return caption


def cut_caption(caption: str, limit: int | None) -> str:
    """Cut a caption to at most `limit` characters, between words; a first word that is longer is cut itself."""
    if limit is None or len(caption) <= limit:
        return caption
    head = caption[:limit]
    if caption[limit] not in " ,":
        head = head.rpartition(" ")[0] or head
    return head.rstrip(" ,") or head


def split_tags(caption: str) -> list[str]:
    """Split at commas; empty and repeated tags go, the first of each stays where it is."""
    return list(dict.fromkeys(filter(None, (tag.strip() for tag in caption.split(",")))))


_COPY = re.compile(r"\s\(\d{1,4}\)$|(^|\s)- Copy( \(\d+\))?$|^Copy of ", re.IGNORECASE)
CAMERA_NAME = re.compile(
    r"^(_?(IMG|DSC|DSCN|DSCF|MG|MVI|PXL|GOPR|DJI|VID|SAM|PANO|CIMG|HPIM)[ _-]?\d{3,}|IMG-\d{8}-WA\d+|P\d{7}$"
    r"|Screen ?shot\b|WhatsApp Image\b|image ?\d+$|photo ?\d+$)",
    re.IGNORECASE,
)
_HASH = re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-", re.IGNORECASE)
_NUMBER = re.compile(r"^[\d .-]+$")
_PLACEHOLDER = re.compile(r"(?<!\S)[SC](?!\S)")
# U+FFFD is what a failed decoding leaves; zero-width and direction marks are invisible, yet the tokenizer sees them.
_INVISIBLE = re.compile("[\ufffd\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def lint(caption: str, stem: str) -> list[str]:
    """Return what is suspicious about one caption; `stem` is the image's name without its extension."""
    found: list[str] = []
    if caption and normalise(stem).startswith(caption):
        if _COPY.search(caption):
            found.append(f'" ({caption.rpartition("(")[2]}" looks like a copy\'s suffix' if caption.endswith(")")
                         else "the file name looks like a copy's")  # fmt: skip
        if CAMERA_NAME.search(stem):
            found.append("the caption comes from a camera's file name")
        elif _NUMBER.search(caption):
            found.append("the caption is only a number")
    if _HASH.search(caption):
        found.append("holds what looks like a hash")
    if _PLACEHOLDER.search(caption):
        found.append("holds a lone S or C, as JoePenna's templates do")
    if odd := _odd_characters(caption):
        found.append(f"holds control or invisible characters ({', '.join(odd)})")
    return found + [f"tags that differ only in case or plural: {' / '.join(twins)}" for twins in _twin_tags(caption)]


def _odd_characters(caption: str) -> list[str]:
    if caption.isprintable() and "\ufffd" not in caption:
        return []  # nearly always, and much sooner known
    odd = {char for char in caption if unicodedata.category(char) == "Cc"} | set(_INVISIBLE.findall(caption))
    return sorted(f"U+{ord(char):04X}" for char in odd)


def _twin_tags(caption: str) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for tag in split_tags(caption):
        folded = tag.casefold()
        groups.setdefault(folded[:-1] if folded.endswith("s") and len(folded) > 3 else folded, []).append(tag)
    return [twins for twins in groups.values() if len(twins) > 1]
