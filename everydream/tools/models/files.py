"""What the model commands have in common: where a model goes by its name, in which precision, what a pickle holds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from everydream.errors import ConfigError
from everydream.formats.files import DTYPES, StateDict, is_safetensors, read_file
from everydream.models.family import Family
from everydream.models.write import write_model

FORMAT_OF = {".safetensors": "safetensors", ".ckpt": "ckpt"}
_FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_SHOWN = 6
_MODEL_PARTS = {
    "model_index.json", "README.md", "everydream.json", "unet", "transformer", "vae", "scheduler",
    *(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")),
}  # fmt: skip
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


def to_fastest_device(family: Family) -> None:
    """Move the networks to the accelerator, where there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    for module in family.modules().values():
        module.to(device)


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def precision_of(path: Path) -> str:
    """Return the precision that most floating tensors of a model have, by its name in `DTYPES`; fp32 for others."""
    if path.is_file() and not is_safetensors(path):
        return precision_of_tensors(read_file(path).tensors)
    files = [path] if path.is_file() else sorted(path.glob("[ut][nr]*/diffusion_pytorch_model*.safetensors"))
    return _most_common([name for file in files for name in _dtypes_in_header(file)])


def precision_of_tensors(tensors: StateDict) -> str:
    """Return the precision that most floating tensors have, by its name in `DTYPES`; fp32 for others."""
    return _most_common([str(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point()])


def _dtypes_in_header(path: Path) -> list[str]:
    """Return the types of a .safetensors file's floating tensors by PyTorch's names, without reading the tensors."""
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
    with safe_open(path, framework="pt") as file:
        found = [file.get_slice(key).get_dtype() for key in file.keys()]  # noqa: SIM118 - no mapping
    return [str(names[dtype]) for dtype in found if dtype in names]


def _most_common(dtypes: Sequence[str]) -> str:
    names = {str(dtype): name for name, dtype in DTYPES.items()}
    return names.get(Counter(dtypes).most_common(1)[0][0], "fp32") if dtypes else "fp32"


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
