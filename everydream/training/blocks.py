"""Learning-rate factors by block: parameter groups split by patterns over module names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch

from everydream.errors import ConfigError
from everydream.methods.method import ParameterGroup


def split_by_blocks(
    groups: Sequence[ParameterGroup], factors: Mapping[str, Mapping[str, float]]
) -> list[ParameterGroup]:
    """Return the groups with the blocks of `factors[part]` ({pattern: factor}) split off; the first match counts.

    A pattern matches a module and all that is in it: `down_blocks.*`, `mid_block`, `up_blocks.2`. The split-off group
    is called part/pattern. Raises ConfigError for a pattern that nothing is left to match of what trains.
    """
    return [piece for group in groups for piece in _split(group, factors.get(group.part, {}))]


def _split(group: ParameterGroup, factors: Mapping[str, float]) -> list[ParameterGroup]:
    left, pieces = group, []
    for pattern, factor in factors.items():
        found = [_is_in(name.removeprefix(f"{group.part}."), pattern) for name in left.names]
        if not any(found):
            blocks = dict.fromkeys(".".join(name.split(".")[1:3]) for name in left.names)
            raise ConfigError(
                f"unet.block_lr: {pattern!r} matches nothing that trains and no earlier pattern has. Patterns "
                f"are over module names such as down_blocks.* or mid_block; left are {', '.join(blocks) or 'none'}."
            )
        pieces.append(replace(_where(left, found), part=f"{group.part}/{pattern}", lr=group.lr * factor))
        left = _where(left, [not is_in for is_in in found])
    return [*([left] if left.names or not pieces else []), *pieces]


def _is_in(name: str, pattern: str) -> bool:
    """Tell whether a parameter is of a module that the pattern matches."""
    steps = name.split(".")
    return any(fnmatch(".".join(steps[:end]), pattern) for end in range(1, len(steps)))


def _where(group: ParameterGroup, chosen: Sequence[bool]) -> ParameterGroup:
    kept = [
        pair for pair, wanted in zip(zip(group.names, group.parameters, strict=True), chosen, strict=True) if wanted
    ]
    return replace(group, names=[name for name, _ in kept], parameters=[parameter for _, parameter in kept])
