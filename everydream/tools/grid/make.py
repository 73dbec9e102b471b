"""A grid from what was asked for to its files: cells, sheet.png, sheet.html."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from everydream.errors import ConfigError, FormatError
from everydream.formats.atomic import atomic_file
from everydream.formats.pngs import settings_in, write_png
from everydream.models.settings import is_hub_id
from everydream.tools.grid.axes import Axis, Cell, cells_of, read_axis
from everydream.tools.grid.drawing import Drawn, draw
from everydream.tools.grid.page import page
from everydream.tools.grid.sheet import legend, sheet
from everydream.tools.grid.sources import Sources
from everydream.tools.models.runs import exports_by_step, settings_of
from everydream.tools.progress import counting

SHEET, PAGE, CELLS = "sheet.png", "sheet.html", "cells"
_KEY = "grid"


@dataclass(frozen=True)
class Request:
    """A grid as it was asked for; a sheet carries it, so that it can be made again."""

    prompt: str
    axes: tuple[str, ...] = ()
    """As typed, of x, y, z in order."""
    model: str | None = None
    run: str | None = None
    negative: str = ""
    seed: int = 555
    guidance: float = 7.0
    steps: int = 30
    sampler: str | None = None
    lora: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    clip_skip: int = 0


def request_in(path: Path) -> Request:
    """Return what a sheet was asked for. Raises ConfigError if it is none of ours, FormatError if it is damaged."""
    said = settings_in(path).get(_KEY)
    if not isinstance(said, dict):
        raise ConfigError(f"--again: {path} does not say how it was made. Give the {SHEET} of an earlier grid.")
    try:
        # As JSON: in Python's strict mode a list is no tuple.
        return TypeAdapter(Request).validate_json(json.dumps(said), strict=True)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise FormatError(
            f"--again: {path} says of its {'.'.join(map(str, wrong['loc']))} what no grid does: {wrong['msg']}. "
            f"Give the {SHEET} of another grid."
        ) from error


def planned(request: Request) -> tuple[Sources, Cell, list[Axis], Mapping[tuple[int, ...], Cell]]:
    """Return sources, what no axis varies, the axes and the cells in their order. Raises ConfigError."""
    run = Path(request.run) if request.run is not None else None
    config = settings_of(run) if run is not None else None
    exports = exports_by_step(run, config) if run is not None and config is not None else {}
    sources = Sources(run, config, exports, request.clip_skip)
    cell = Cell(
        "", request.prompt, request.negative, request.seed, request.guidance, request.sampler, request.steps,
        request.lora, width=request.width, height=request.height,
    )  # fmt: skip
    axes = [read_axis(text, cell, sources) for text in request.axes]
    if not any(axis.name == "checkpoint" for axis in axes):
        cell = replace(cell, checkpoint=_fixed(request, sources, axes))
    if any(axis.name == "lora strength" for axis in axes):
        _require_adapters(cell, axes, sources)
    return sources, cell, axes, cells_of(cell, axes)


def _fixed(request: Request, sources: Sources, axes: Sequence[Axis]) -> str:
    """Return the label of the one checkpoint of a grid that does not vary it."""
    if request.model is not None:
        if not Path(request.model).exists() and not is_hub_id(request.model):
            raise ConfigError(f"There is no model at {Path(request.model).absolute()}. Give a folder, a file or --run.")
        return sources.take(request.model)[0]
    if sources.run is None:
        raise ConfigError("Say what to draw with: everydream grid MODEL, or --run RUN, or an axis 'checkpoint: ...'.")
    return sources.take("last")[0] if any(axis.name == "ema" for axis in axes) else sources.usual()


def _require_adapters(cell: Cell, axes: Sequence[Axis], sources: Sources) -> None:
    has_axis = any(axis.name == "lora" for axis in axes)
    if not (cell.lora or has_axis or any(source.loras for source in sources.found.values())):
        raise ConfigError("lora strength: has no effect without an adapter. Give --lora FILE or an axis 'lora: FILES'.")


def make(request: Request, out: Path) -> Drawn:
    """Draw what is missing and write sheet and page into `out`; return what became of the cells."""
    sources, cell, axes, cells = planned(request)
    with counting("Drawing", len(set(cells.values()))) as show:
        drawn = draw(cells.values(), sources.found, out / CELLS, show)
    lines = legend(cell, axes)
    write_png(out / SHEET, sheet(axes, cells, drawn, lines), {_KEY: asdict(request)})
    title = Path(request.run or request.model or "grid").name
    with atomic_file(out / PAGE) as partial:
        partial.write_text(page(title, axes, cells, drawn, lines), encoding="utf-8")
    return drawn


def describe(drawn: Drawn, out: Path) -> list[str]:
    """Return what to tell: counts, where the files are, each reason for a failure once."""
    there = len(drawn.pictures) - drawn.num_new
    counts = [f"{drawn.num_new} drawn", f"{there} were there already" if there else ""]
    counts += [f"{len(drawn.failed)} failed" if drawn.failed else ""]
    lines = [f"{', '.join(filter(None, counts))}; all together in {out / SHEET} and {out / PAGE}"]
    reasons: dict[str, Any] = {}
    for reason in drawn.failed.values():
        reasons[reason] = reasons.get(reason, 0) + 1
    return [*lines, *(f"  failed, {number} times: {reason}" for reason, number in reasons.items())]
