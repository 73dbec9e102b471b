"""`everydream sample`: prompts x seeds x guidance, from any model with any adapters."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.errors import ConfigError
from everydream.evaluation.grids import labelled_grid
from everydream.formats.pngs import parameters, write_png
from everydream.methods.hypernetwork import load_into
from everydream.methods.merging import merge_adapter
from everydream.methods.textual_inversion import learn_files
from everydream.models.family import Family
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.sampling.sampler import require_sampler, sample_images
from everydream.tools.models.files import to_fastest_device
from everydream.tools.models.merge import with_strength

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Wanted:
    """What to draw, and how."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    guidance: Sequence[float]
    negative_prompt: str
    width: int | None
    """Pixels; None: what the model was made for."""
    height: int | None
    steps: int
    sampler: str | None
    """None: the family's usual."""
    batch_size: int

    def cells(self) -> list[tuple[int, float]]:
        """Return (seed, guidance) of each picture of a prompt, in order."""
        return [(seed, guidance) for seed in self.seeds for guidance in self.guidance]

    def file_name(self, prompt: int, seed: int, guidance: float) -> str:
        """Return a picture's name."""
        return f"p{prompt:02d}-s{seed}-g{guidance:g}.png"


def sample(
    model: str,
    out: Path,
    wanted: Wanted,
    *,
    loras: Sequence[str] = (),
    embeddings: Sequence[Path] = (),
    hypernetwork: str | None = None,
    clip_skip: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw every prompt with every seed at every guidance scale into `out`; return the grid's path.

    Raises ConfigError if pictures of these names are there already, FormatError for adapters that do not fit.
    """
    names = [wanted.file_name(p, *cell) for p in range(len(wanted.prompts)) for cell in wanted.cells()]
    if not overwrite and (there := [name for name in [*names, "grid.png"] if (out / name).exists()]):
        raise ConfigError(f"{out} holds {there[0]} already. Give another --out, or --overwrite.")
    family = prepared(model, loras, embeddings, hypernetwork, clip_skip)
    factor = family.side_multiple
    for side, pixels in (("width", wanted.width), ("height", wanted.height)):
        if pixels is not None and pixels % factor:
            raise ConfigError(f"--{side} is {pixels}; this model's sides are multiples of {factor}.")
    require_sampler(family, wanted.sampler, "--sampler")
    pictures: dict[tuple[int, int, float], Picture] = {}
    for done, (place, picture) in enumerate(_pictures(family, wanted), 1):
        pictures[place] = picture
        if progress is not None:
            progress(done, len(names))
    out.mkdir(parents=True, exist_ok=True)
    # By their names: a picture that is passed on need not say where its maker keeps things.
    added = {"loras": [Path(lora).name for lora in loras], "embeddings": [path.name for path in embeddings]}
    hyper = Path(hypernetwork).name if hypernetwork is not None else None
    name = Path(model).name if Path(model).exists() else model
    common = {"model": name, "clip_skip": clip_skip, **added, "hypernetwork": hyper}
    for place, picture in pictures.items():
        _write(out / wanted.file_name(*place), picture, wanted, place, common)
    rows = [[pictures[(number, *cell)] for cell in wanted.cells()] for number in range(len(wanted.prompts))]
    labels = [f"seed {seed}, guidance {guidance:g}" for seed, guidance in wanted.cells()]
    grid = labelled_grid(rows, wanted.prompts, labels, Path(model).name)
    write_png(out / "grid.png", grid, {**common, **asdict(wanted)})
    return out / "grid.png"


def _write(
    path: Path, picture: Picture, wanted: Wanted, place: tuple[int, int, float], common: Mapping[str, Any]
) -> None:
    """Write a picture with all that it is a function of."""
    prompt, (height, width) = wanted.prompts[place[0]], picture.shape[:2]
    settings = {
        **common, "prompt": prompt, "negative": wanted.negative_prompt, "seed": place[1], "guidance": place[2],
        "steps": wanted.steps, "sampler": wanted.sampler, "width": width, "height": height,
    }  # fmt: skip
    said = parameters(
        prompt, wanted.negative_prompt, Steps=wanted.steps, Sampler=wanted.sampler, CFG_scale=f"{place[2]:g}",
        Seed=place[1], Size=f"{width}x{height}", Model=Path(str(common["model"])).stem,
    )  # fmt: skip
    write_png(path, picture, settings, said)


def prepared(
    model: str, loras: Sequence[str], embeddings: Sequence[Path], hypernetwork: str | None, clip_skip: int
) -> Family:
    """Return the model with its adapters, on the fastest device there is."""
    family = load(ModelSettings(path=model), clip_skip)
    for lora in loras:
        merge_adapter(family, *with_strength(lora))
    if embeddings:
        learn_files(family, embeddings)
    if hypernetwork is not None:
        load_into(family, *with_strength(hypernetwork))
    to_fastest_device(family)
    return family


def _pictures(family: Family, wanted: Wanted) -> Iterator[tuple[tuple[int, int, float], Picture]]:
    """Yield ((number of the prompt, seed, guidance), picture), one guidance scale after the other, in batches."""
    jobs = [(number, seed) for number in range(len(wanted.prompts)) for seed in wanted.seeds]
    for guidance in wanted.guidance:
        for first in range(0, len(jobs), wanted.batch_size):
            part = jobs[first : first + wanted.batch_size]
            pictures = sample_images(
                family,
                [wanted.prompts[number] for number, _ in part],
                [seed for _, seed in part],
                width=wanted.width or family.native_size,
                height=wanted.height or family.native_size,
                steps=wanted.steps,
                guidance=guidance,
                negative_prompt=wanted.negative_prompt,
                sampler=wanted.sampler,
            )
            yield from zip(((*job, guidance) for job in part), pictures, strict=True)
