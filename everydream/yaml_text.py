"""Settings as text: YAML with numbers as people write them, and `a.b.c=value` overrides."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from everydream.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of a float, so that 1e-6 is a number, and no key twice."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp)
        for tag, regexp in resolvers
        if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands here twice", key_node.start_mark
            )
        seen.add(key)
    return dict(yaml.SafeLoader.construct_mapping(loader, node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML. Raises ConfigError naming the line."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error


def apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Set `a.b.c=value` in raw settings; return what is wrong with it, if anything.

    The value is read as YAML, so `train.epochs=4`, `optimizer.lr=1e-6` and `samples.guidance=[1, 7]` work.
    """
    key, sign, text = override.partition("=")
    if not sign or not key.strip():
        return f"override {override!r}: write it as section.key=value"
    target: Any = raw
    parts = key.strip().split(".")
    for part in parts[:-1]:
        if isinstance(target, list):
            if not part.isdigit() or int(part) >= len(target):
                return f"override {override!r}: {part!r} is not a number below {len(target)}"
            target = target[int(part)]
        elif isinstance(target, dict):
            if target.get(part) is None:  # not there, or a section with nothing under it
                target[part] = {}
            target = target[part]
        else:
            return f"override {override!r}: {part!r} is inside a plain value"
    try:
        value = parse_yaml(text, f"override {key}")
    except ConfigError as error:
        return str(error)
    if isinstance(target, list) and parts[-1].isdigit() and int(parts[-1]) < len(target):
        target[int(parts[-1])] = value
    elif isinstance(target, dict):
        target[parts[-1]] = value
    else:
        return f"override {override!r}: {parts[-1]!r} is not a key there"
    return None
