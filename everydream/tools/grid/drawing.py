"""Cells to pictures on disk: each with its settings, those that are there already left alone, failures kept apart."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from everydream.errors import ConfigError, FormatError
from everydream.formats.hashes import sampled_sha256
from everydream.formats.pngs import parameters, settings_in, write_png
from everydream.sampling.sampler import require_sampler, sample_images
from everydream.tools.grid.axes import Cell
from everydream.tools.grid.sources import Source
from everydream.tools.grid.weights import Bench, Merged
from everydream.tools.models.merge import with_strength

_NO_PICTURE_PX = (256, 256)


@dataclass
class Drawn:
    """What became of the cells."""

    pictures: dict[Cell, Path] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    """Why, in a line."""
    num_new: int = 0


def draw(
    cells: Iterable[Cell],
    sources: Mapping[str, Source],
    folder: Path,
    progress: Callable[[int, str], None],
    bench: Bench | None = None,
) -> Drawn:
    """Draw the cells that `folder` lacks, in their order, and return where all are.

    A cell that fails does not stop the others; the next run tries it again. Raises OSError if nothing can be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn, bench, hashes, broken = Drawn(), bench or Bench(), _Hashes(), dict[Source, str]()
    for done, cell in enumerate(dict.fromkeys(cells), 1):
        source = sources[cell.checkpoint]
        settings = _settings(cell, source, hashes)
        path = folder / f"{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]}.png"
        if not _is_there(path, settings):
            try:
                if source in broken:
                    raise FormatError(broken[source])
                picture = _picture(cell, source, bench)
            except Exception as error:  # of a cell's own: a foreign file, a size too large for the memory, ...
                drawn.failed[cell] = reason = " ".join(str(error).split()) or type(error).__name__
                if not bench.holds(source):  # it could not be loaded, and will not be at the next cell
                    broken[source] = reason
                progress(done, _counts(drawn))
                continue
            write_png(path, picture, settings, _parameters(cell, source, picture.shape))
            drawn.num_new += 1
        drawn.pictures[cell] = path
        progress(done, _counts(drawn))
    return drawn


def size_of_pictures(drawn: Drawn) -> tuple[int, int]:
    """Return width and height of the first picture, or those of none."""
    for path in drawn.pictures.values():
        with Image.open(path) as image:
            return image.size
    return _NO_PICTURE_PX


def _picture(cell: Cell, source: Source, bench: Bench) -> Any:
    family = bench.place(source, cell.ema, _adapters(cell, source))
    require_sampler(family, cell.sampler, "sampler")
    size = {"width": cell.width or family.native_size, "height": cell.height or family.native_size}
    multiple = family.side_multiple
    if odd := [f"{side} {pixels}" for side, pixels in size.items() if pixels % multiple]:
        raise ConfigError(f"size: {odd[0]} is no multiple of {multiple}, as this model's sides are.")
    (picture,) = sample_images(
        family, [cell.prompt], [cell.seed], **size, steps=cell.steps, guidance=cell.guidance,
        negative_prompt=cell.negative, sampler=cell.sampler,
    )  # fmt: skip
    return picture


def _adapters(cell: Cell, source: Source) -> Merged:
    chosen = [(path, 1.0) for path in source.loras] + [with_strength(text) for text in cell.lora]
    return tuple((path, strength * cell.lora_strength) for path, strength in chosen)


class _Hashes(dict[Path, str]):
    """Hashes of weights by their paths, each found once."""

    def __missing__(self, path: Path) -> str:
        self[path] = sampled_sha256(path)
        return self[path]


def _settings(cell: Cell, source: Source, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """Return what a picture is a function of, and how the files were called: no folder of anybody's."""
    files = [*source.files(), *(with_strength(text)[0] for text in cell.lora if _exists(text))]
    own = {**cell.plain(), "lora": [Path(text).name for text in cell.lora]}
    reading = {"clip_skip": source.clip_skip, "chunks": source.chunks}
    named: dict[str, Any] = {**own, **reading, "weights": {path.name: hashes[path] for path in files}}
    return dict(json.loads(json.dumps(named)))


def _exists(text: str) -> bool:
    try:
        return with_strength(text)[0].exists()
    except ConfigError:
        return False


def _is_there(path: Path, settings: Mapping[str, Any]) -> bool:
    try:
        return path.is_file() and settings_in(path) == settings
    except FormatError:  # cut short, by whatever did it
        return False


def _parameters(cell: Cell, source: Source, shape_HWC: tuple[int, ...]) -> str:
    return parameters(
        cell.prompt, cell.negative, Steps=cell.steps, Sampler=cell.sampler, CFG_scale=f"{cell.guidance:g}",
        Seed=cell.seed, Size=f"{shape_HWC[1]}x{shape_HWC[0]}", Model=Path(source.model.path).stem,
    )  # fmt: skip


def _counts(drawn: Drawn) -> str:
    there = len(drawn.pictures) - drawn.num_new
    parts = [f"{there} were there" if there else "", f"{len(drawn.failed)} failed" if drawn.failed else ""]
    return ", ".join(filter(None, parts))
