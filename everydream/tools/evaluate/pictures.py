"""The pictures that are judged, with their prompts: from folders, or drawn by checkpoints first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from everydream.errors import FormatError
from everydream.formats.pngs import PARAMETERS, settings_in, texts_in
from everydream.models.features import Features
from everydream.tools.evaluate.copying import pixel_rows
from everydream.tools.files import list_pictures
from everydream.tools.grid.axes import Cell
from everydream.tools.grid.drawing import draw
from everydream.tools.grid.sources import Sources
from pictures.decode import decode

_BATCH = 64
Picture = NDArray[np.uint8]
Rows = Callable[[Sequence[Picture]], torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    """Pictures that are judged together."""

    name: str
    paths: Sequence[Path]
    prompts: Sequence[str]
    """What each was drawn for."""
    failed: Sequence[str] = ()
    """Why pictures are missing, each reason once."""


def from_folder(folder: Path) -> Candidate:
    """Return the pictures of a folder and below. Raises ConfigError, DataError if there is none."""
    paths = files_in(folder)
    return Candidate(folder.absolute().name, paths, [prompt_of(path) for path in paths])


def files_in(folder: Path) -> list[Path]:
    """Return the images of a folder and below. Raises ConfigError, DataError if there is none."""
    return [folder / picture.path for picture in list_pictures(folder).pictures]


def prompt_of(path: Path) -> str:
    """Return what a picture was drawn for: by its own settings, a text file beside it, or its name before the `_`."""
    try:
        said = settings_in(path).get("prompt") or texts_in(path).get(PARAMETERS, "").split("\n")[0]
    except FormatError:
        said = ""
    sidecar = path.with_suffix(".txt")
    if not said and sidecar.is_file():
        said = sidecar.read_text(encoding="utf-8", errors="replace").strip()
    return str(said or path.stem.split("_")[0].strip())


def drawn_by(
    sources: Sources,
    labels: Sequence[str],
    cells: Sequence[Cell],
    out: Path,
    progress: Callable[[int, str], None],
) -> list[Candidate]:
    """Return a candidate for each checkpoint, once its pictures are drawn; those that are there already are kept.

    `cells`: what each of them draws.
    """
    asked = {label: [Cell(**{**cell.plain(), "checkpoint": label}) for cell in cells] for label in labels}
    drawn = draw([cell for label in labels for cell in asked[label]], sources.found, out, progress)
    candidates = []
    for label, wanted in asked.items():
        there = [cell for cell in wanted if cell in drawn.pictures]
        reasons = list(dict.fromkeys(drawn.failed[cell] for cell in wanted if cell in drawn.failed))
        paths = [drawn.pictures[cell] for cell in there]
        candidates.append(Candidate(label, paths, [cell.prompt for cell in there], reasons))
    return candidates


def rows_of(paths: Sequence[Path], rows: Rows) -> torch.Tensor:
    """Return the rows (N, D) of images on disk, a portion at a time."""
    parts = [rows([decode(path) for path in paths[n : n + _BATCH]]) for n in range(0, len(paths), _BATCH)]
    return torch.cat(parts) if parts else torch.zeros(0, 1)


def image_rows(features: Features | None) -> Rows:
    """Return what makes rows of pictures: the network's, or without one pixel_rows'."""
    return features.images if features is not None else pixel_rows
