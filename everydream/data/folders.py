"""Folder settings: the small files that say how the images of a folder are trained.

`global.yaml` counts for its folder and those below; `local.yaml` and the one-value files (`multiply.txt`,
`cond_dropout.txt`, `flip_p.txt`, `batch_id.txt`, `loss_scale.txt`, `shuffle_tags.txt`) for their folder only, as
EveryDream2 documents multiply.txt ("does not cascade down to any subfolders"). Key by key, the nearest wins:
the image's sidecar > local > nearest global > source > defaults. Within one folder `local.yaml` and a one-value
file must agree, because neither is nearer.

A bad file never kills the run and is never ignored: each image it would have counted for is rejected with its path.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from everydream.data.remote import names_in, url_of
from everydream.data.settings import CaptionSettings, SourceSettings
from everydream.data.shards import why
from everydream.data.texts import BadText, Entry, check_keys, normalise, parse_yaml, read_text

Value = float | int | bool | str

SWITCH_FILE = "shuffle_tags.txt"
ONE_VALUE_FILES = {
    "multiply.txt": "multiply",
    "cond_dropout.txt": "cond_dropout",
    "flip_p.txt": "flip_p",
    "batch_id.txt": "batch_id",
    "loss_scale.txt": "loss_scale",
    SWITCH_FILE: "shuffle_tags",
}
SETTING_FILES = frozenset({*ONE_VALUE_FILES, "global.yaml", "global.yml", "local.yaml", "local.yml"})
"""Lower-case names that are settings, so never an image's sidecar."""

_FALSE = {"0", "false", "no", "off"}
_TRUE = {"1", "true", "yes", "on"}
IMAGE_ONLY = ("main_prompt", "tags", "rating", "max_caption_length")


class Setting(NamedTuple):
    """A checked value and the file it was read from, relative to the source."""

    value: Value
    file: str


Values = Mapping[str, Setting]


@dataclass(frozen=True)
class Resolved:
    """What counts for one image, all levels applied."""

    repeats: float
    dropout: float
    flip_p: float
    loss_scale: float
    shuffle_tags: bool
    keep_tags: int
    batch_id: str
    group: str


def resolve(values: Values, source: SourceSettings, captions: CaptionSettings, flip_p: float) -> Resolved:
    """Fill what files do not say from the source, then from the run's defaults."""

    def pick(key: str, *fallbacks: Value | None) -> Value:
        found = values[key].value if key in values else None
        return next(value for value in (found, *fallbacks) if value is not None)

    return Resolved(
        repeats=float(pick("multiply", 1.0)),
        dropout=float(pick("cond_dropout", source.dropout, captions.dropout)),
        flip_p=float(pick("flip_p", source.flip_p, flip_p)),
        loss_scale=float(pick("loss_scale", source.loss_scale, 1.0)),
        shuffle_tags=bool(pick("shuffle_tags", source.shuffle_tags, captions.shuffle_tags)),
        keep_tags=int(pick("keep_tags", source.keep_tags, captions.keep_tags)),
        batch_id=str(pick("batch_id", "")),
        group=str(pick("group", "")),
    )


class FolderSettings:
    """The settings of every folder of one source, each file read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._levels: dict[str, _Level] = {}

    def values(self, folder: str) -> Values:
        """Return what counts in `folder` ("" is the root); `BadText` if a file that counts there is bad."""
        level = self._level(folder)
        if level.problems:
            raise BadText("; ".join(level.problems))
        return level.here

    def _level(self, folder: str) -> "_Level":
        if folder not in self._levels:
            above = self._level(folder.rpartition("/")[0]) if folder else _Level({}, {}, (), ())
            self._levels[folder] = read_level(self._root, folder, above)
        return self._levels[folder]


class _Level(NamedTuple):
    here: Values
    below: Values
    problems: tuple[str, ...]
    problems_below: tuple[str, ...]


def read_level(root: Path, folder: str, above: _Level) -> _Level:
    """Read the setting files of one folder on top of what its parent hands down."""
    problems_global: list[str] = []
    problems_local: list[str] = []
    globals_: dict[str, Setting] = {}
    locals_: dict[str, Setting] = {}
    try:
        names = _setting_files(root / folder)
    except OSError as error:
        # It may hold settings that the images below are to be trained by: without them they are not used.
        names = []
        problems_global.append(f"{folder or 'the folder'}: its setting files cannot be read ({why(error)})")
    for name in names:
        is_global = name.lower().startswith("global.")
        target, problems = (globals_, problems_global) if is_global else (locals_, problems_local)
        file = f"{folder}/{name}" if folder else name
        try:
            _add(target, read_setting_file(root / file, file))
        except BadText as error:
            problems.append(str(error))
    below = {**above.below, **globals_}
    problems_below = (*above.problems_below, *problems_global)
    return _Level({**below, **locals_}, below, (*problems_below, *problems_local), problems_below)


def _setting_files(folder: Path) -> list[str]:
    """Return the names of a folder's setting files. Raises OSError."""
    try:
        if (url := url_of(folder)) is not None:
            return sorted(name for name in names_in(url) if name.lower() in SETTING_FILES)
        return sorted(entry.name for entry in folder.iterdir() if entry.name.lower() in SETTING_FILES)
    except (FileNotFoundError, NotADirectoryError):
        return []  # a manifest may name images in folders that are not there


def _add(target: dict[str, Setting], found: Values) -> None:
    for key, setting in found.items():
        known = target.setdefault(key, setting)
        if known.value != setting.value:
            raise BadText(f"{setting.file}: {key} is {setting.value!r}, but {known.value!r} in {known.file}; keep one")


def read_setting_file(path: Path, file: str) -> Values:
    """Read one setting file, YAML or one-value, by its name."""
    text = read_text(path, file)
    key = ONE_VALUE_FILES.get(path.name.lower())
    if key is None:
        entries = parse_yaml(text, file)
        for misplaced in entries.keys() & set(IMAGE_ONLY):
            raise BadText(f"{file}, line {entries[misplaced].line}: `{misplaced}` belongs in an image's own .yaml")
        return check_values(entries, file)
    content = normalise(text)
    if path.name.lower() == SWITCH_FILE:
        if content.lower() in _FALSE:
            raise BadText(f'{file}: says "{content}", but its presence switches shuffling on; '
                          "delete it, or write shuffle_tags: false in local.yaml")  # fmt: skip
        return {key: Setting(True, file)}
    return {key: check_value(key, content, file)}


def check_values(entries: Mapping[str, Entry], file: str) -> dict[str, Setting]:
    """Check the folder settings of a YAML file; an unknown key is an error with the nearest one."""
    check_keys(dict(entries), CHECKS, file)
    return {key: check_value(key, entry.value, file, entry.line) for key, entry in entries.items()}


def check_value(key: str, raw: object, file: str, line: int | None = None) -> Setting:
    """Turn text or a YAML value into a setting; numbers given as text are numbers."""
    parse, expected = CHECKS[key]
    value = parse(raw.strip() if isinstance(raw, str) else raw)
    if value is None:
        where = file if line is None else f"{file}, line {line}"
        shown = "empty" if raw in ("", None) else f"{raw!r}"
        raise BadText(f"{where}: {key} is {shown}, expected {expected}")
    return Setting(value, file)


def _number(raw: object) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    try:
        number = float(raw)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _amount(raw: object) -> float | None:
    number = _number(raw)
    return number if number is not None and number >= 0 else None


def _probability(raw: object) -> float | None:
    number = _amount(raw)
    return number if number is not None and number <= 1 else None


def _count(raw: object) -> int | None:
    number = _amount(raw)
    return int(number) if number is not None and number.is_integer() and number < 2**31 else None


def _switch(raw: object) -> bool | None:
    word = str(raw).lower()
    return True if word in _TRUE else False if word in _FALSE else None


def _text(raw: object) -> str | None:
    return str(raw) if isinstance(raw, str | int) and not isinstance(raw, bool) and raw != "" else None


CHECKS: dict[str, tuple[Callable[[object], Value | None], str]] = {
    "multiply": (_amount, "a number of at least 0"),
    "cond_dropout": (_probability, "a number from 0 to 1"),
    "flip_p": (_probability, "a number from 0 to 1"),
    "batch_id": (_text, "a text"),
    "loss_scale": (_amount, "a number of at least 0"),
    "shuffle_tags": (_switch, "true or false"),
    "keep_tags": (_count, "a whole number of at least 0"),
    "group": (_text, "a text"),
}
"""Each folder setting: how a raw value is read (None: it cannot be) and what to ask for."""
