"""What varies over a grid: axes by name, and the cells that they and the settings make, the costly axis outermost."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

from everydream.errors import ConfigError
from everydream.sampling.settings import SamplerName
from everydream.tools.grid.sources import Sources
from everydream.tools.grid.values import items, known, numbers


@dataclass(frozen=True)
class Cell:
    """How one picture is drawn."""

    checkpoint: str
    """A label of `Sources`."""
    prompt: str
    negative: str = ""
    seed: int = 555
    guidance: float = 7.0
    sampler: str | None = None
    steps: int = 30
    lora: tuple[str, ...] = ()
    """FILE or FILE:STRENGTH, each."""
    lora_strength: float = 1.0
    """Times the strength of each adapter, those that a LoRA run exports among them."""
    ema: bool | None = None
    """The averaged weights of a last.ckpt, the trained ones, or None: those that its run shows."""
    width: int | None = None
    """Pixels; None: what the model was made for."""
    height: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Axis:
    """One direction of a grid."""

    name: str
    values: Sequence[Any]
    labels: Sequence[str]

    @property
    def cost(self) -> int:
        """How much it takes to go from one value to the next; the costliest axis is outermost."""
        return _KINDS[self.name].cost

    def put(self, cell: Cell, value: Any) -> Cell:
        """Return the cell with this value."""
        if self.name == "prompt":
            return replace(cell, prompt=cell.prompt.replace(self.values[0], value))
        if self.name == "size":
            return replace(cell, width=value[0], height=value[1])
        return replace(cell, **{self.name.replace(" ", "_"): value})


@dataclass(frozen=True)
class _Kind:
    cost: int
    read: Callable[[str, Cell, Sources], Sequence[Any]]
    label: Callable[[Any], str] = str


def read_axis(text: str, cell: Cell, sources: Sources) -> Axis:
    """Return the axis of `name: values`. Raises ConfigError for an unknown name or value, with the nearest."""
    name, colon, rest = text.partition(":")
    if not colon or not rest.strip():
        raise ConfigError(
            f"An axis is a name and values, as in 'seed: 1-4'; {text!r} is not. Axes: {', '.join(_KINDS)}."
        )
    name = known("axis", " ".join(name.split()), list(_KINDS))
    values = _KINDS[name].read(rest.strip(), cell, sources)
    if not values:
        raise ConfigError(f"{name}: {rest.strip()!r} names no value.")
    return Axis(name, values, [_KINDS[name].label(value) for value in values])


def cells_of(cell: Cell, axes: Sequence[Axis]) -> dict[tuple[int, ...], Cell]:
    """Return the cells by their places (number along each axis), in the order to draw them."""
    names = [axis.name for axis in axes if axis.name != "prompt"]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"Two axes vary the {double}, and the second would undo the first. Take one of them out.")
    order = drawing_order(axes)
    found = {}
    for numbered in product(*(range(len(axes[n].values)) for n in order)):
        place = dict(zip(order, numbered, strict=True))
        made = cell
        for n, axis in enumerate(axes):
            made = axis.put(made, axis.values[place[n]])
        found[tuple(place[n] for n in range(len(axes)))] = made
    return found


def drawing_order(axes: Sequence[Axis]) -> list[int]:
    """Return the numbers of the axes from the outermost to the innermost: by cost, of equal ones the later first."""
    return sorted(range(len(axes)), key=lambda n: (-axes[n].cost, -n))


def _checkpoints(text: str, cell: Cell, sources: Sources) -> list[str]:
    return [label for item in items(text) for label in sources.take(item)]


def _prompts(text: str, cell: Cell, sources: Sources) -> list[str]:
    found = items(text)
    if found and found[0] not in cell.prompt:
        raise ConfigError(
            f"prompt: {found[0]!r} is what the others stand for, and the prompt {cell.prompt!r} does not hold it. The "
            "first value of this axis is searched in --prompt and replaced by each."
        )
    return found


def _loras(text: str, cell: Cell, sources: Sources) -> list[tuple[str, ...]]:
    from everydream.tools.models.merge import with_strength  # noqa: PLC0415 - loads the model libraries

    found: list[tuple[str, ...]] = []
    for item in items(text):
        if item != "none":
            with_strength(item)
        found.append(() if item == "none" else (item,))
    return found


def _averages(text: str, cell: Cell, sources: Sources) -> list[bool]:
    sources.require_averages()
    return [known("ema", item, ["on", "off"]) == "on" for item in items(text)]


def _sizes(text: str, cell: Cell, sources: Sources) -> list[tuple[int, int]]:
    found = []
    for item in items(text):
        width, _, height = item.lower().partition("x")
        if not (width.strip().isdecimal() and (height.strip() or width.strip()).isdecimal()):
            raise ConfigError(f"size: {item!r} is no size in pixels such as 512 or 512x768.")
        found.append((int(width), int(height or width)))
    return found


def _whole(name: str, least: int) -> Callable[[str, Cell, Sources], list[Any]]:
    def read(text: str, cell: Cell, sources: Sources) -> list[Any]:
        found = numbers(name, text, whole=True)
        if min(found, default=least) < least:
            raise ConfigError(f"{name}: {min(found)} is below {least}, the least there is.")
        return found

    return read


def _samplers(text: str, cell: Cell, sources: Sources) -> list[str]:
    return [known("sampler", item, get_args(SamplerName)) for item in items(text)]


_KINDS: dict[str, _Kind] = {
    "checkpoint": _Kind(4, _checkpoints),
    "ema": _Kind(3, _averages, lambda on: "averaged" if on else "trained"),
    "lora": _Kind(2, _loras, lambda files: ", ".join(Path(file).name for file in files) or "no LoRA"),
    "lora strength": _Kind(1, lambda t, c, s: numbers("lora strength", t, False), lambda n: f"LoRA at {n:g}"),
    "prompt": _Kind(0, _prompts),
    "seed": _Kind(0, _whole("seed", 0), lambda n: f"seed {n}"),
    "guidance": _Kind(0, lambda t, c, s: numbers("guidance", t, False), lambda n: f"guidance {n:g}"),
    "sampler": _Kind(0, _samplers),
    "steps": _Kind(0, _whole("steps", 1), lambda n: f"{n} steps"),
    "size": _Kind(0, _sizes, lambda size: f"{size[0]}x{size[1]}"),
}
