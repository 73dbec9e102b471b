"""Settings of the models room; apart from `load`, so that reading a config does not import diffusers."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from everydream.settings import Settings


def is_hub_id(path: str) -> bool:
    """Tell whether a model path that is not there can be meant as a hub id, `org/name`."""
    is_file_name = Path(path).suffix.lower() in (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not is_file_name


def is_written_as_folder(path: str) -> bool:
    """Tell whether a model is a diffusers folder with a transformer, which has no single-file form here."""
    try:
        index = json.loads((Path(path) / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and "transformer" in index


class ModelSettings(Settings):
    """The model to start from."""

    path: Annotated[str, Field(min_length=1)]
    """A diffusers folder, a .safetensors or .ckpt single file, or a hub id such as `org/name`."""
    prediction: Literal["auto", "epsilon", "v"] = "auto"
    """What the UNet predicts. Auto: from the folder's scheduler, the file's metadata, or its tensors."""
    zero_terminal_snr: bool | None = None
    """The last timestep is pure noise (arXiv 2305.08891); for models that predict v. Null: as the model says."""
    empty_prompt: Literal["auto", "zeros", "encode"] = "auto"
    """An empty caption or negative prompt is all zeros, or encoded. Auto: as the model has it (SDXL: zeros)."""
    config: str | None = None
    """Diffusers folder with the configuration of a single file of an unusual shape, or its depth estimator."""
