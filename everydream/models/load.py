"""Loads a model; `FAMILIES` is the whole registry of families."""

from pathlib import Path
from typing import Any

from everydream.formats.files import StateDict
from everydream.formats.sharded import is_sharded
from everydream.models import sd1, sd2, sdxl
from everydream.models.common import loading, schedules
from everydream.models.common.stable_diffusion import StableDiffusion
from everydream.models.family import Family
from everydream.models.settings import ModelSettings

FAMILIES = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl}


def load(settings: ModelSettings, clip_skip: int = 0, chunks: int = 1) -> Family:
    """Load the model in float32, on the CPU, in evaluation mode.

    `clip_skip` and `chunks` say how captions are read: see `TextEncoderSettings`.

    Raises ConfigError if there is nothing at the path, FormatError if it cannot be trained.
    """
    path = loading.find(settings.path)
    if path.is_dir() and not is_sharded(path):
        name, parts = loading.load_folder(path, FAMILIES)
    else:
        name, parts = loading.load_single(path, FAMILIES, Path(settings.config) if settings.config else None)
    parts.scheduler = schedules.with_settings(parts.scheduler, settings)
    if settings.empty_prompt != "auto":
        parts.empty_prompt = settings.empty_prompt
    return _ready(StableDiffusion(FAMILIES[name].KIND, parts, clip_skip, chunks))


def restore(tensors: StateDict, description: dict[str, Any], path: Path, clip_skip: int = 0, chunks: int = 1) -> Family:
    """Rebuild a model from what `Family.single_file` and `Family.description` gave; `path` is for messages."""
    module = FAMILIES[description["family"]]
    parts = loading.parts_of(tensors, description, module, path)
    return _ready(StableDiffusion(module.KIND, parts, clip_skip, chunks))


def _ready(family: Family) -> Family:
    for module in family.modules().values():
        module.eval()
    return family
