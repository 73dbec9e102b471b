"""Class images of prior preservation: what is missing is made by the model that is about to be trained.

    source with role: class and generate -> images of its own? -> how many are missing -> made, kept, found again

They are kept in a folder of ours, never in the user's: one for each model, prompt and way of making, with a
marker that says which. Picture i is that of seed + i, whatever was made before; blank ones are left out, and
the next takes their place.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everydream.config import RunConfig
from everydream.data.pairing import unique_names
from everydream.data.scan import scan
from everydream.data.settings import SourceSettings
from everydream.errors import ConfigError, TrainingError
from everydream.formats.atomic import atomic_file
from everydream.models.common.loading import find
from everydream.models.family import Family
from everydream.models.load import load
from everydream.sampling.sampler import sample_images
from everydream.training.launch import Launch

MARKER = "class_images.json"
_BLOCK_BYTES = 4096
_FLAT = 8
"""A picture whose values all lie this close together shows nothing; NaN decodes to black."""
_MAX_BLANK = 20
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class ClassFolder:
    """A folder of made images, and how many are wanted in it."""

    path: Path
    recipe: dict[str, Any]
    wanted: int

    def made(self) -> list[int]:
        """Return the numbers of the pictures that are there."""
        return sorted(int(path.stem) for path in self.path.glob("*.png") if path.stem.isdecimal())

    def blank(self) -> set[int]:
        """Return the numbers that gave a blank picture."""
        marker = self.path / MARKER
        return set(json.loads(marker.read_text(encoding="utf-8"))["blank"]) if marker.is_file() else set()

    def mark(self, blank: set[int]) -> None:
        """Write the marker."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path / MARKER) as partial:
            text = json.dumps({**self.recipe, "blank": sorted(blank)}, ensure_ascii=False, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")


def with_class_images(config: RunConfig) -> tuple[RunConfig, list[ClassFolder]]:
    """Return the config with the folders of made class images among its sources, and these folders.

    A source whose own images are too few is followed by one of made images that shares its draws. Raises
    ConfigError where a folder of made images was made otherwise than the config says.
    """
    sources, folders = [], []
    names = unique_names(config.data.sources)
    model = None
    for source, name in zip(config.data.sources, names, strict=True):
        if source.generate is None:
            sources.append(source)
            continue
        own = _num_usable(config, source) if source.path is not None else 0
        is_made = source.path is not None and (Path(source.path) / MARKER).is_file()
        if own >= source.generate:
            sources.append(source)
            continue
        model = model or fingerprint(find(config.model.path))
        recipe = _recipe(config, source, model)
        if is_made:
            folders.append(_known_folder(Path(source.path or ""), recipe, source.generate))
            sources.append(source)
            continue
        folder = ClassFolder(_folder(config, recipe), recipe, source.generate - own)
        folders.append(folder)
        made = {"path": str(folder.path), "name": f"{name} (made)" if own else name, "captions": "label"}
        sources += [_without_making(source)] if own else []
        sources.append(source.model_copy(update={**made, "generate": folder.wanted}))
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": sources})}), folders


def _without_making(source: SourceSettings) -> SourceSettings:
    label = source.label if source.caption_rule == "label" else None
    return source.model_copy(update={"generate": None, "label": label})


def _num_usable(config: RunConfig, source: SourceSettings) -> int:
    alone = config.data.model_copy(update={"sources": [source]})
    return len(scan(alone, config.captions))


def _recipe(config: RunConfig, source: SourceSettings, model: str) -> dict[str, Any]:
    """Return all that a made picture depends on."""
    settings = config.class_images
    return {
        "model": model,
        "prompt": source.label,
        "negative_prompt": settings.negative_prompt,
        "sampler": settings.sampler,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "seed": settings.seed,
        "size": config.data.resolution,
        "clip_skip": config.text_encoder.clip_skip,
        "prediction": config.model.prediction,
    }


def _folder(config: RunConfig, recipe: dict[str, Any]) -> Path:
    root = config.class_images.folder
    base = Path(root).expanduser() if root is not None else Path(config.runs_dir) / "class_images"
    slug = re.sub(r"\W+", "_", str(recipe["prompt"])).strip("_")[:40]
    digest = hashlib.blake2b(json.dumps(recipe, sort_keys=True).encode(), digest_size=6)
    return base / f"{slug}-{digest.hexdigest()}"


def _known_folder(path: Path, recipe: dict[str, Any], wanted: int) -> ClassFolder:
    """Return a folder of ours that the config names itself. Raises ConfigError if it was made otherwise."""
    marked = json.loads((path / MARKER).read_text(encoding="utf-8"))
    folder = ClassFolder(path, recipe, wanted)
    differing = [f"{key}: {marked.get(key)!r}, now {now!r}" for key, now in recipe.items() if marked.get(key) != now]
    if differing:
        raise ConfigError(
            f"{path} holds {len(folder.made())} of {wanted} class images, and the missing ones would be made otherwise "
            f"than those ({'; '.join(differing)}). Leave the source's path out to have all made anew."
        )
    return folder


def fingerprint(model: Path) -> str:
    """Return what tells a model from others: of each of its files the name, the size and three blocks."""
    digest = hashlib.blake2b(digest_size=8)
    files = [model] if model.is_file() else sorted(path for path in model.rglob("*") if path.is_file())
    for path in files:
        size = path.stat().st_size
        # Without the name of the model itself, which may be renamed.
        digest.update(f"{path.relative_to(model) if path != model else ''} {size} ".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _BLOCK_BYTES)):
                file.seek(start)
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def make_missing(
    config: RunConfig, folders: Sequence[ClassFolder], launch: Launch, progress: Callable[[int, int], None]
) -> int:
    """Make the pictures that the folders lack; return how many were made. All processes take part.

    Raises TrainingError if the model draws nothing but blank pictures.
    """
    lacking = [folder for folder in folders if len(folder.made()) < folder.wanted]
    if not lacking:
        return 0
    family = load(config.model, config.text_encoder.clip_skip)
    launch.place(family)
    total, before = sum(folder.wanted for folder in folders), sum(len(folder.made()) for folder in folders)
    for folder in lacking:
        _fill(config, folder, family, launch, lambda: progress(sum(len(f.made()) for f in folders), total))
    return sum(len(folder.made()) for folder in folders) - before


def _fill(config: RunConfig, folder: ClassFolder, family: Family, launch: Launch, shown: Callable[[], None]) -> None:
    size = config.class_images.batch_size
    blank = folder.blank()
    launch.wait()
    while True:
        made = set(folder.made())
        if len(made) >= folder.wanted:
            return
        if len(blank) >= max(_MAX_BLANK, folder.wanted):
            raise TrainingError(
                f"The model drew {len(blank)} blank pictures for {folder.recipe['prompt']!r}, so it can make no class "
                "images. Look at it with `everydream sample`, try another class_images.sampler or train.precision: "
                "fp32, or give class images of your own."
            )
        if launch.is_main:
            folder.mark(blank)
        # Whole batches, counted from the first picture: so a picture does not depend on where a run was killed.
        last = folder.wanted + len(blank)
        batches = [range(first, min(first + size, last)) for first in range(0, last, size)]
        lacking = [batch for batch in batches if not set(batch) <= made | blank]
        launch.wait()
        found: set[int] = set()
        for number, batch in enumerate(lacking):
            if number % launch.world == launch.rank:
                with launch.autocast():
                    found |= _make(config, folder, family, batch)
                shown()
        blank = blank.union(*launch.gather(found))
        if launch.is_main:
            folder.mark(blank)


def _make(config: RunConfig, folder: ClassFolder, family: Family, numbers: Sequence[int]) -> set[int]:
    """Make and keep the pictures of these numbers; return those that were blank."""
    settings, factor = config.class_images, family.spatial_factor
    side = max(config.data.resolution // factor, 1) * factor
    pictures = sample_images(
        family,
        [str(folder.recipe["prompt"])] * len(numbers),
        [settings.seed + number for number in numbers],
        width=side,
        height=side,
        steps=settings.steps,
        guidance=settings.guidance,
        negative_prompt=settings.negative_prompt,
        sampler=settings.sampler,
    )
    blank = set()
    for number, picture in zip(numbers, pictures, strict=True):
        if is_blank(picture):
            blank.add(number)
            continue
        with atomic_file(folder.path / f"{number:05d}.png") as partial:
            Image.fromarray(picture).save(partial, format="PNG")
    return blank


def is_blank(picture: Picture) -> bool:
    """Tell whether a picture (H, W, 3) shows nothing."""
    spread = picture.reshape(-1, picture.shape[-1]).max(0).astype(int) - picture.reshape(-1, picture.shape[-1]).min(0)
    return bool((spread < _FLAT).all())


def describe_missing(folders: Sequence[ClassFolder]) -> list[str]:
    """Return a line for each folder that lacks pictures."""
    return [
        f"{folder.wanted - num} of {folder.wanted} class images of {folder.recipe['prompt']!r} are to be made, in "
        f"{folder.path}"
        for folder in folders
        if (num := len(folder.made())) < folder.wanted
    ]
