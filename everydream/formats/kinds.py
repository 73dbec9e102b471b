"""What a file of weights is, told by its contents; also for messages to those who gave it where another was wanted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from everydream.errors import FormatError
from everydream.formats.files import is_safetensors, read_file
from everydream.formats.pickles import load_pickle

ADAPTER = " It is an adapter such as a LoRA, for `everydream sample --lora` or `everydream merge`."
_SAID = {
    "hypernetwork": " It is a hypernetwork, for `everydream sample --hypernetwork`.",
    "model": " It is a whole model.",
    "adapter": ADAPTER,
    "embedding": " It is a textual-inversion embedding, for `everydream sample --embedding`.",
}


def kind_of(path: Path) -> str:
    """Return what a file seems to be, as a sentence to end a message with, or "" if that cannot be told."""
    try:
        contents = read_file(path).tensors if is_safetensors(path) else load_pickle(path)[0]
    except FormatError:
        return ""
    return _SAID.get(kind_in(contents), "")


def kind_in(contents: Any) -> str:
    """Return hypernetwork, model, adapter or embedding for what a file holds, "" if that cannot be told."""
    inner = contents.get("state_dict", contents) if isinstance(contents, Mapping) else {}
    held = inner if isinstance(inner, Mapping) else {}
    keys = [key for key in held if isinstance(key, str)]
    tensors = [value for value in held.values() if isinstance(value, torch.Tensor)]
    signs = {
        "hypernetwork": any(isinstance(key, int) for key in held),
        "model": any(key.startswith(("model.diffusion_model.", "first_stage_model.")) for key in keys),
        "adapter": any(mark in key for key in keys for mark in ("lora", "hada_", "lokr_")),
        "embedding": "string_to_param" in keys or (0 < len(tensors) < 3 and all(t.dim() <= 2 for t in tensors)),
    }
    return next((kind for kind, is_so in signs.items() if is_so), "")
