"""Raw settings against their classes: every problem at once, each with its key path and, if misspelt, the nearest."""

import difflib
import json
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


def validate(model: type[M], raw: dict[str, Any]) -> tuple[M | None, list[str]]:
    """Return (settings, problems). Values at fault are put aside so that the rest can still be checked."""
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        problems = [_describe(model, item) for item in error.errors()]
        places = [item["loc"] for item in error.errors()]
    rest = json.loads(json.dumps(raw, default=str))
    for place in places:
        _remove(rest, place)
    try:
        return model.model_validate(rest), problems
    except ValidationError:
        return None, problems


def _describe(model: type[BaseModel], item: Any) -> str:
    """Return one pydantic error as a line: key path, what is wrong, the value, a suggestion."""
    place = item["loc"]
    key = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        known = _fields_at(model, place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        elsewhere = [path for path in _all_keys(model) if path.rpartition(".")[2] == place[-1]]
        near = near or elsewhere[:1]
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
        return f"{key}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{key}: missing. {_docs_at(model, place)}"
    message = item["msg"].removeprefix("Value error, ")
    choices = item.get("ctx", {}).get("expected")
    if item["type"] == "literal_error" and choices and isinstance(item["input"], str):
        near = difflib.get_close_matches(
            item["input"], str(choices).replace("'", "").replace(" or ", ", ").split(", "), n=1
        )
        message += f"; did you mean {near[0]}?" if near else ""
    value = "" if isinstance(item["input"], (dict, list)) else f" (it is {item['input']!r})"
    return f"{key or 'config'}: {message}{value}"


def _model_at(root: type[BaseModel], place: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the settings class at a key path."""
    model: type[BaseModel] | None = root
    for part in place:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = settings_in(model.model_fields[part].annotation)
    return model


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class inside an annotation such as list[SourceSettings]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(settings_in, get_args(annotation)) if found is not None), None)


def _fields_at(root: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    model = _model_at(root, place)
    return list(model.model_fields) if model is not None else []


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every key path there is."""
    paths = []
    for name, field in model.model_fields.items():
        inner = settings_in(field.annotation)
        paths += [f"{prefix}{name}"] if inner is None else _all_keys(inner, f"{prefix}{name}.")
    return paths


def _docs_at(root: type[BaseModel], place: tuple[int | str, ...]) -> str:
    model = _model_at(root, place[:-1])
    field = model.model_fields.get(str(place[-1])) if model is not None else None
    return (field.description or "") if field is not None else ""


def _remove(value: Any, place: tuple[int | str, ...]) -> None:
    """Take what stands at a key path out, as far as it is there, so that no other key path changes.

    Of an item in a list of sections only the path stays; of a list of plain values nothing.
    """
    holders = [value]
    for part in place[:-1]:
        try:
            holders.append(holders[-1][part])
        except (KeyError, IndexError, TypeError):
            return
    last = place[-1] if place else None
    if isinstance(holders[-1], list) and isinstance(last, int) and last < len(holders[-1]):
        item = holders[-1][last]
        if isinstance(item, dict):
            holders[-1][last] = {key: item[key] for key in item if key == "path"}
        else:
            _remove(value, place[:-1])
    elif isinstance(holders[-1], dict):
        holders[-1].pop(last, None)
