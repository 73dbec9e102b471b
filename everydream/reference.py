"""Settings as documentation, generated from their classes: one line per key, with its default."""

import json
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from everydream.config import RunConfig
from everydream.problems import settings_in

_HEAD = """# Configuration reference

Generated from the settings classes: `everydream schema --markdown > docs/configuration.md`. For completion in an
editor: `everydream schema > everydream.schema.json`, and `# yaml-language-server: $schema=everydream.schema.json` as
the first line of the YAML.

One YAML a project. Unknown keys are refused with the nearest known one, and all problems are told at once. Any key can
be set on the command line: `train.epochs=4 optimizer.lr=1e-6 data.sources.0.repeats=3`.
"""


_SCRAPE_HEAD = """# Settings of a scrape

Generated from the settings classes: `everydream schema --scrape --markdown > docs/scraping_settings.md`. Any of them
can stand in a recipe (see [datasets/](../datasets/)) or be given as `key=value`: `filters.min_width=512`. Unknown keys
are refused with the nearest known one. What they are for: [scraping.md](scraping.md).
"""


def reference() -> str:
    """Return docs/configuration.md."""
    return _HEAD + "".join(_section("", RunConfig))


def scrape_reference(settings: type[BaseModel]) -> str:
    """Return docs/scraping_settings.md, given the settings class of the scraper, which this package does not know."""
    return _SCRAPE_HEAD + "".join(_section("", settings))


def _section(prefix: str, model: type[BaseModel]) -> list[str]:
    plain, nested = [], []
    for name, field in model.model_fields.items():
        inner = settings_in(field.annotation)
        if inner is None:
            meaning = " ".join((field.description or "").split())
            plain.append(f"| `{name}` | {_kind(field.annotation)} | {_default(field)} | {meaning} |\n")
        else:
            is_list = "list" in str(field.annotation)
            key = f"{prefix}{name}{'[]' if is_list else ''}"
            nested += [f"\n## `{key}`\n\n{(inner.__doc__ or '').strip()}\n", *_section(f"{key}.", inner)]
    table = ["\n| key | value | default | meaning |\n|---|---|---|---|\n", *plain] if plain else []
    return [*table, *nested]


def _kind(annotation: Any) -> str:
    """Return what a key takes, in words: a type, or the choices."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{str(choice).lower() if isinstance(choice, bool) else choice}`" for choice in arguments)
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is dict:
        return f"mapping of {_kind(arguments[0])} to {_kind(arguments[1])}"
    if origin in (Union, UnionType):
        return " or ".join(_kind(argument) for argument in arguments)
    words = {str: "text", int: "whole number", float: "number", bool: "true, false", type(None): "null"}
    return words[annotation]


def _default(field: Any) -> str:
    return "required" if field.default is PydanticUndefined else f"`{json.dumps(field.default)}`"
