"""Loads a model; `FAMILIES` is the whole registry of families."""

from pathlib import Path
from typing import Any

from everydream.errors import ConfigError
from everydream.formats.files import StateDict
from everydream.formats.sharded import is_sharded
from everydream.models import flux, sd1, sd2, sd3, sdxl
from everydream.models.common import loading, schedules
from everydream.models.common.flow import FlowKind, FlowParts, FlowTransformer
from everydream.models.common.kinds import Kind, Parts
from everydream.models.common.stable_diffusion import StableDiffusion
from everydream.models.family import Family
from everydream.models.settings import ModelSettings

FAMILIES = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3, "flux": flux}


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
    if isinstance(parts, Parts):
        parts.scheduler = schedules.with_settings(parts.scheduler, settings)
    elif settings.prediction != "auto" or settings.zero_terminal_snr:
        raise ConfigError(
            f"model.prediction, model.zero_terminal_snr: a {name} model predicts a flow, to which neither applies. "
            "Take them out."
        )
    if settings.empty_prompt != "auto":
        parts.empty_prompt = settings.empty_prompt
    return _ready(name, parts, clip_skip, chunks)


def restore(tensors: StateDict, description: dict[str, Any], path: Path, clip_skip: int = 0, chunks: int = 1) -> Family:
    """Rebuild a model from what `Family.single_file` and `Family.description` gave; `path` is for messages."""
    module = FAMILIES[description["family"]]
    parts = loading.parts_of(tensors, description, module, path)
    return _ready(description["family"], parts, clip_skip, chunks)


def _ready(name: str, parts: Parts | FlowParts, clip_skip: int, chunks: int) -> Family:
    kind = FAMILIES[name].KIND
    if isinstance(parts, FlowParts):
        assert isinstance(kind, FlowKind)
        family: Family = FlowTransformer(kind, parts, clip_skip, chunks)
    else:
        assert isinstance(kind, Kind)
        family = StableDiffusion(kind, parts, clip_skip, chunks)
    for module in family.modules().values():
        module.eval()
        for parameter in module.parameters():
            # Memory of its own, aligned as the allocator does: tensors that lie as they did in their file make some
            # kernels round otherwise, so a resumed run would not be the uninterrupted one to the bit.
            parameter.data = parameter.data.clone()
    return family
