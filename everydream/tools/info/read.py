"""Facts about a file or folder, as plain data; no code in it is run, and only pickles are read whole."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from everydream.errors import ConfigError, FormatError
from everydream.formats.files import METADATA_KEY, is_safetensors, read_contents
from everydream.formats.hashes import auto_v1, auto_v3, sha256_of, weights_sha256
from everydream.formats.kinds import kind_in
from everydream.formats.pngs import PARAMETERS, texts_in
from everydream.formats.provenance import FOLDER_FILE, about_in, provenance_in
from everydream.formats.sharded import is_sharded
from everydream.models.recognise import family_of, family_of_folder
from everydream.tools.models.files import size_of
from everydream.tools.models.merge import adapter_file
from everydream.training.runs import MARKER

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}
_SHOWN_KEYS = 8


def info(path: Path) -> dict[str, Any]:
    """Return what is known of a file or folder. Raises ConfigError if it is not there, FormatError if it is neither."""
    if not path.exists():
        raise ConfigError(f"There is nothing at {path.absolute()}. Give a file of weights, a model's folder or a PNG.")
    if path.suffix.lower() in _PICTURES and path.is_file():
        return _picture(path)
    if path.is_dir() and not is_sharded(path) and not adapter_file(path).is_file():
        return _folder(path)
    return _weights(adapter_file(path))


def _picture(path: Path) -> dict[str, Any]:
    texts = texts_in(path)
    facts: dict[str, Any] = {"path": str(path), "kind": "picture", "bytes": size_of(path)}
    if METADATA_KEY in texts:
        facts["settings"] = _parsed(texts[METADATA_KEY])
    if PARAMETERS in texts:
        facts["parameters"] = texts[PARAMETERS]
    return facts | {"other": {key: text for key, text in texts.items() if key not in (METADATA_KEY, PARAMETERS)}}


def _folder(path: Path) -> dict[str, Any]:
    if (path / MARKER).is_file():
        raise FormatError(
            f"{path} is the folder of a run. Give a file in {path / 'checkpoints'}, or see what became of the run: "
            f"everydream review {path}"
        )
    if not (path / "model_index.json").is_file():
        raise FormatError(
            f"{path} has no model_index.json, so it is no diffusers model. Give such a folder, or a file of weights."
        )
    parts = {}
    for part in sorted(item for item in path.iterdir() if item.is_dir()):
        files = sorted(part.glob("*.safetensors"))
        if files:
            parts[part.name] = _tensor_facts({k: v for file in files for k, v in _header(file)[0].items()})
    about = path / FOLDER_FILE
    made = _parsed(about.read_text(encoding="utf-8", errors="replace")) if about.is_file() else {}
    return {
        "path": str(path),
        "kind": "diffusers folder",
        "family": family_of_folder(path),
        "bytes": size_of(path),
        "parts": parts,
        "sha256": weights_sha256(path),
        "provenance": about_in(made),
    }


def _weights(path: Path) -> dict[str, Any]:
    tensors, metadata, skipped, kind = _contents(path)
    known = {name: value for name, value in metadata.items() if name != METADATA_KEY}
    parsed = {name: _parsed(value) for name, value in known.items() if isinstance(value, str | int | float)}
    return {
        "path": str(path),
        "kind": kind,
        "family": family_of(tensors, metadata),
        "bytes": size_of(path),
        **_tensor_facts(tensors),
        "keys": _summary(tensors),
        **_hashes(path),
        "provenance": provenance_in(metadata),
        "metadata": parsed,
        "beside": sorted(str(name) for name in known if name not in parsed),
        "code": skipped,
    }


def _contents(path: Path) -> tuple[dict[Any, Any], Mapping[str, Any], list[str], str]:
    """Return (tensors, what stands beside them, code that was named and not run, kind)."""
    if is_safetensors(path):
        tensors, metadata = _header(path)
        return tensors, metadata, [], kind_in(tensors) or "other weights"
    contents, skipped = read_contents(path)
    if not isinstance(contents, Mapping):
        raise FormatError(f"{path} holds no named tensors, so there is nothing to say of it.")
    inner = contents.get("state_dict")
    held = inner if isinstance(inner, Mapping) else contents
    tensors = dict(_flat(held))
    if not any(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise FormatError(f"{path} holds no tensors, so it is no file of weights.")
    kind = "last.ckpt of a run" if "optimizer" in contents and METADATA_KEY in contents else kind_in(contents)
    beside = {str(name): value for name, value in contents.items() if name not in ("state_dict", *tensors)}
    return tensors, beside, skipped, kind or "other weights"


def _flat(held: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """Return a file's own tensors; of hypernetworks and embeddings, whose tensors lie deeper, these by their places."""
    found: list[tuple[Any, Any]] = []
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            found.append((name, value))
        elif isinstance(name, int) or name == "string_to_param":
            found.append((name, None))  # a hypernetwork's widths are what its family is told by
            parts = value if isinstance(value, list | tuple) else [value]
            for number, part in enumerate(parts):
                inner = part.items() if isinstance(part, Mapping) else ()
                found += [(f"{name}.{number}.{key}", t) for key, t in inner if isinstance(t, torch.Tensor)]
    return found


def _header(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a .safetensors file's tensors without their contents, and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - no mapping
            shapes = {key: (part.get_shape(), _DTYPES.get(part.get_dtype())) for key, part in slices.items()}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(f"{path} is not a whole safetensors file: {error}. Fetch it again.") from error
    return {k: torch.empty(shape, dtype=dtype, device="meta") for k, (shape, dtype) in shapes.items()}, metadata


def _tensor_facts(tensors: Mapping[Any, Any]) -> dict[str, Any]:
    held = [tensor for tensor in tensors.values() if isinstance(tensor, torch.Tensor)]
    counts: Counter[str] = Counter()
    for tensor in held:
        counts[_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))] += tensor.numel()
    return {"tensors": len(held), "parameters": sum(counts.values()), "precision": dict(counts.most_common())}


def _summary(tensors: Mapping[Any, Any]) -> dict[str, Any]:
    """Return how many parameters lie under each first part of the names, and some names."""
    named = {str(key): tensor for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    parts: Counter[str] = Counter()
    for key, tensor in named.items():
        parts[_first_part(key)] += tensor.numel()
    return {"parts": dict(parts.most_common(_SHOWN_KEYS)), "examples": sorted(named)[:_SHOWN_KEYS]}


def _first_part(key: str) -> str:
    return "_".join(key.split("_")[:2]) if key.startswith("lora_") else key.split(".", maxsplit=1)[0]


def _hashes(path: Path) -> dict[str, Any]:
    """Return the names that other tools know a file by; a sharded last.ckpt has one of its own alone."""
    if path.is_dir():
        return {"sha256": weights_sha256(path)}
    whole = sha256_of(path)
    return {"sha256": whole, "short_hash": whole[:10], "auto_v1": auto_v1(path), "auto_v2": whole[:10].upper(),
            "auto_v3": auto_v3(path)}  # fmt: skip


def _parsed(value: Any) -> Any:
    """Return a value of metadata, that which is JSON as what it says."""
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
