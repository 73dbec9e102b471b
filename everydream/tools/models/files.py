"""What the model commands have in common: where a model goes by its name, in which precision, what a pickle holds."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from everydream.errors import ConfigError
from everydream.formats.files import DTYPES, StateDict, read_file
from everydream.models.family import Family
from everydream.models.write import write_model

FORMAT_OF = {".safetensors": "safetensors", ".ckpt": "ckpt"}
_FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_SHOWN = 6
_MODEL_PARTS = {"model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler"}
"""What a diffusers folder of ours holds, and nothing else: only such a one is replaced."""


def write_as(family: Family, out: Path, dtype: torch.dtype) -> Path:
    """Write the model in the format that `out`'s ending names: none is a diffusers folder."""
    name = format_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return write_model(family, out if name == "diffusers" else out.with_name(out.stem), name, dtype)


def format_of(out: Path) -> str:
    """Return the format that a path's ending names. Raises ConfigError for endings that no format has."""
    if out.suffix in FORMAT_OF:
        return FORMAT_OF[out.suffix]
    if out.suffix.lower() in (*_FILE_ENDINGS, ".onnx", ".gguf", ".zip", ".yaml", ".json"):
        raise ConfigError(
            f"{out}: models are written as {', '.join(FORMAT_OF)}, or as a diffusers folder by a name without ending."
        )
    return "diffusers"


def require_new(out: Path, overwrite: bool, *sources: Path) -> None:
    """Raise ConfigError if something would be lost: `out` exists already, or is one of the sources."""
    for source in sources:
        if out.exists() and source.exists() and out.samefile(source):
            raise ConfigError(f"{out} is the file that is read. Give the result another name.")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already, and it was left as it is. Give another name, or --overwrite.")
    if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - _MODEL_PARTS)):
        raise ConfigError(f"{out} holds other things than a model, {others[0]} for one. Give another name.")


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def precision_of(path: Path) -> str:
    """Return the precision that most floating tensors of a model have, by its name in `DTYPES`; fp32 for others."""
    if path.is_file():
        return precision_of_tensors(read_file(path).tensors)
    files = sorted((path / "unet").glob("*.safetensors"))
    return precision_of_tensors({f"{n}.{k}": t for n, f in enumerate(files) for k, t in read_file(f).tensors.items()})


def precision_of_tensors(tensors: StateDict) -> str:
    """Return the precision that most floating tensors have, by its name in `DTYPES`; fp32 for others."""
    counts = Counter(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(counts.most_common(1)[0][0], "fp32") if counts else "fp32"


def describe_contents(path: Path, tensors: StateDict, beside: Mapping[str, Any], skipped: list[str]) -> str:
    """Return what a file holds, for the user to read before anything is made of it."""
    lines = [f"{path.name} holds {len(tensors):,} tensors"]
    if beside:
        lines.append("beside them: " + _some([str(key) for key in beside]))
    if skipped:
        lines.append(f"it names code, none of which was run: {_some(skipped)}")
    return "; ".join(lines) + "."


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(sorted(names)[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
