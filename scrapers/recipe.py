"""From a recipe, options and overrides to settings; every problem is told at once, with its key."""

import difflib
import glob
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from scrapers.errors import ScrapeError
from scrapers.fetch.addresses import parse_opened
from scrapers.settings import ScrapeSettings

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return what a recipe holds. Raises ScrapeError."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScrapeError(f"The recipe {path.absolute()} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise ScrapeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ScrapeError(f"{path} should hold settings as `key: value` lines; see datasets/ for examples.")
    return raw


def beside_recipe(raw: dict[str, Any], recipe: Path) -> dict[str, Any]:
    """Return a recipe with the relative files that are not in the working directory looked for beside it."""
    source = raw.get("source")
    if not isinstance(source, dict) or not isinstance(source.get("files"), list):
        return raw

    def found(file: Any) -> Any:
        if not isinstance(file, str) or "://" in file or glob.glob(file):  # noqa: PTH207 - it may begin anywhere
            return file
        beside = str(recipe.parent / file)
        return beside if glob.glob(beside) else file  # noqa: PTH207

    return {**raw, "source": {**source, "files": [found(file) for file in source["files"]]}}


def is_override(argument: str) -> bool:
    """Whether an argument is `filters.min_width=512` and not a file."""
    return _OVERRIDE.match(argument) is not None and not Path(argument).exists()


def override(raw: dict[str, Any], key: str, value: Any) -> str | None:
    """Set `a.b.c` in raw settings; return what is wrong with that, if anything."""
    *sections, name = key.split(".")
    target = raw
    for section in sections:
        inner = target.setdefault(section, {})
        if inner is None:
            inner = target[section] = {}
        if not isinstance(inner, dict):
            return f"{key}: {section} holds a plain value"
        target = inner
    target[name] = value
    return None


def resolve(raw: dict[str, Any], overrides: list[str], name: str) -> ScrapeSettings:
    """Validate raw settings with `a.b=value` overrides, whose values are YAML. Raises ScrapeError."""
    problems = []
    for text in overrides:
        key, _, value = text.partition("=")
        try:
            problems.append(override(raw, key, yaml.safe_load(value)))
        except yaml.YAMLError as error:
            problems.append(f"{key}: {value!r} is not valid YAML: {error}")
    found = [problem for problem in problems if problem]
    try:
        settings = ScrapeSettings.model_validate(raw)
        found += [f"fetch.{problem}" for problem in parse_opened(settings.fetch.allow_private)[1]]
    except ValidationError as error:
        found += [_describe(item) for item in error.errors()]
    if found:
        count = f"{len(found)} problem" + ("s" if len(found) != 1 else "")
        raise ScrapeError(f"{name} has {count}; nothing was fetched:\n" + "\n".join(f"  {line}" for line in found))
    return settings


def _describe(item: Any) -> str:
    """Return one pydantic error as a line: key, what is wrong, the value, a suggestion."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _keys_at(item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        return f"{key}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}.")
    value = "" if isinstance(item["input"], dict | list) else f" (it is {item['input']!r})"
    return f"{key or 'settings'}: {item['msg'].removeprefix('Value error, ')}{value}"


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = ScrapeSettings
    for part in place:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)
