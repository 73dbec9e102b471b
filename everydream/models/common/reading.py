"""Reads parts of a diffusers folder: JSON files and networks."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from everydream.errors import FormatError


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object. Raises FormatError where the file is not one."""
    if not path.is_file():
        raise FormatError(f"{path} is missing, so {path.parent} is not a whole diffusers model folder.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} should hold a JSON object.")
    return content


def pretrained(network: Any, folder: Path, unused: tuple[str, ...] = ()) -> Any:
    """Load one network in float32; a tensor that is missing is an error and not a random number.

    Those that begin like one of `unused` may be missing, and are 0 then.
    """
    variant = "fp16" if not has_weights(folder, "") and has_weights(folder, ".fp16") else None
    module, info = network.from_pretrained(folder, variant=variant, local_files_only=True, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        raise FormatError(f"{folder} lacks {len(missing)} tensors of its {network.__name__}, {missing[0]} for one.")
    for key in info["missing_keys"]:
        nn.init.zeros_(module.get_parameter(key))
    return module.float()  # the libraries keep the file's precision, and not all of them by the same keyword


def has_weights(folder: Path, variant: str) -> bool:
    """Tell whether a network's weights are there in a variant, in one file or in several with an index."""
    whole = [
        f"{stem}{variant}{end}"
        for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
        for end in (".safetensors", ".bin")
    ]
    # diffusers and transformers put the variant at different places in the name of an index.
    parts = [
        f"{name}.index{after}.json"
        for name in (*whole, *(n.replace(variant, "") for n in whole))
        for after in ("", variant)
    ]
    named = [name for name in (*whole, *parts) if not variant or variant in name]
    return any((folder / name).exists() for name in named)
