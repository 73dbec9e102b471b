"""Class images of prior preservation: what is missing is made by the model that is about to be trained.

    source with role: class and generate -> images of its own? -> how many are missing -> made, kept, found again

They are kept in a folder of ours, never in the user's: one for each model, prompt and way of making, with a
marker that says which. Picture i is that of seed + i, whatever was made before; blank ones are left out, and
the next takes their place.
"""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everydream.config import RunConfig
from everydream.data.pairing import MARKER, unique_names
from everydream.data.scan import scan
from everydream.data.settings import SourceSettings
from everydream.errors import ConfigError, TrainingError
from everydream.formats.atomic import atomic_file
from everydream.models.common.loading import find
from everydream.models.family import Family
from everydream.models.load import load
from everydream.sampling.sampler import sample_images
from everydream.training.launch import Launch

_READ_BYTES = 1 << 24
_MODEL_FILES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".json", ".txt")
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
        return sorted(int(path.stem) for path in self.path.glob("*.png") if path.stem.isdecimal())[: self.wanted]

    def marked(self) -> dict[str, Any]:
        """Return what the marker says: the recipe, and the numbers that gave a blank picture; {} without one."""
        marker = self.path / MARKER
        if not marker.is_file():
            return {}
        try:
            said = json.loads(marker.read_text(encoding="utf-8"))
            return {**said, "blank": set(map(int, said["blank"])), "model": str(said["model"])}
        except (ValueError, TypeError, KeyError) as error:
            why = f"{marker} is damaged ({error!r}). Delete its folder to have all made anew."
            raise ConfigError(why) from error

    def mark(self, blank: set[int]) -> None:
        """Write the marker."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path / MARKER) as partial:
            text = json.dumps({**self.recipe, "blank": sorted(blank)}, ensure_ascii=False, indent=1)
            partial.write_text(text + "\n", encoding="utf-8")


def with_class_images(config: RunConfig) -> tuple[RunConfig, list[ClassFolder]]:
    """Return the config with the folders of made class images among its sources, and these folders.

    A source whose own images are too few is followed by one of made images that shares its draws. A folder that a
    source names and that is not there, or was made by us, is where they are made. Raises ConfigError where it was
    made otherwise than the config says.
    """
    sources, folders = [], []
    model = functools.cache(lambda: fingerprint(find(config.model.path)))
    for source, name in zip(config.data.sources, unique_names(config.data.sources), strict=True):
        if source.generate is None:
            sources.append(source)
            continue
        path = Path(source.path) if source.path is not None else None
        if path is not None and (not path.exists() or (path / MARKER).is_file()):
            sources.append(source.model_copy(update={"captions": "label"}))
            folders.append(_named_folder(config, source, path, model))
            continue
        own = _num_usable(config, source) if path is not None else 0
        if own >= source.generate:
            sources.append(source)
            continue
        recipe = _recipe(config, source, model())
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
    alone = config.data.model_copy(update={"sources": [source], "index": None})
    return len(scan(alone, config.captions))


def _recipe(config: RunConfig, source: SourceSettings, model: str) -> dict[str, Any]:
    """Return all that a made picture depends on."""
    settings = config.class_images
    return {
        "model": model,
        "prompt": source.label,
        "negative_prompt": settings.negative_prompt,
        # What null meant when the first folders were named.
        "sampler": settings.sampler or "ddim",
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


def _named_folder(config: RunConfig, source: SourceSettings, path: Path, model: Callable[[], str]) -> ClassFolder:
    """Return a folder of ours that the config names itself. Raises ConfigError if it was made otherwise."""
    folder = ClassFolder(path, {}, source.generate or 0)
    marked = folder.marked()
    is_whole = len(folder.made()) >= folder.wanted
    # A run that goes on elsewhere needs no base model, nor do its class images if they are all there.
    known = marked["model"] if is_whole and not Path(config.model.path).exists() else model()
    recipe = _recipe(config, source, known)
    differing = [f"{key}: {marked.get(key)!r}, now {now!r}" for key, now in recipe.items() if marked.get(key) != now]
    if marked and differing:
        raise ConfigError(
            f"{path} holds class images that were made otherwise than they would be now ({'; '.join(differing)}). "
            "Give the source another path, or none, to have them made anew."
        )
    return replace(folder, recipe=recipe)


def fingerprint(model: Path) -> str:
    """Return what tells a model from others: a hash of all its weights and settings, a few seconds at full size."""
    digest = hashlib.blake2b(digest_size=8)
    inside = sorted(path for path in model.rglob("*") if path.is_file() and path.suffix in _MODEL_FILES)
    for path in [model] if model.is_file() else inside:
        # Without the name of the model itself, which may be renamed.
        name = path.relative_to(model).as_posix() if path != model else ""
        digest.update(f"{name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    return digest.hexdigest()


def make_missing(
    config: RunConfig, folders: Sequence[ClassFolder], launch: Launch, progress: Callable[[int, int], None]
) -> None:
    """Make the pictures that the folders lack, of which at least one does. All processes take part.

    Raises TrainingError if the model draws nothing but blank pictures.
    """
    family = load(config.model, config.text_encoder.clip_skip, config.text_encoder.chunks)
    launch.place(family)
    total = sum(folder.wanted for folder in folders)
    for folder in folders:
        _fill(config, folder, family, launch, lambda: progress(sum(len(f.made()) for f in folders), total))


def _fill(config: RunConfig, folder: ClassFolder, family: Family, launch: Launch, shown: Callable[[], None]) -> None:
    size = config.class_images.batch_size
    blank = folder.marked().get("blank", set())
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
    settings, factor = config.class_images, family.side_multiple
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
    return bool((np.ptp(picture, axis=(0, 1)) < _FLAT).all())


def describe_missing(folders: Sequence[ClassFolder]) -> list[str]:
    """Return a line for each folder that lacks pictures."""
    return [
        f"{folder.wanted - num} of {folder.wanted} class images of {folder.recipe['prompt']!r} are to be made, in "
        f"{folder.path}"
        for folder in folders
        if (num := len(folder.made())) < folder.wanted
    ]
