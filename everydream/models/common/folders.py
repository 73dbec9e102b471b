"""Writes diffusers folders, part by part; each writer returns the part's entry of model_index.json."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from transformers import CLIPTextConfig, DPTConfig, T5Config

from everydream.formats.files import StateDict, cast_floating, write_safetensors
from everydream.models.common import text_keys, tokenizer_files
from everydream.models.common.additions import own_state
from everydream.models.common.kinds import Config

_VERSION = "0.35.0"
Entry = list[str]

# A model of three parts is loaded in a second or two; three bars for that hide what matters.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


def write_network(folder: Path, network: Any, dtype: torch.dtype) -> Entry:
    """Write a network of diffusers."""
    _save(folder / "diffusion_pytorch_model.safetensors", own_state(network), dtype)
    # Not the library's own, which names the folder that the model was read from: a resumed run,
    # whose model comes from a description, has none and would write another file.
    notes = {"_class_name": type(network).__name__, "_diffusers_version": _VERSION}
    _write_json(folder / "config.json", {**notes, **plain_config(network.config)})
    return ["diffusers", type(network).__name__]


def write_clip(folder: Path, encoder: Any, dtype: torch.dtype) -> Entry:
    """Write a CLIP text encoder, with the `text_model.` level."""
    config = CLIPTextConfig(**plain_config(encoder.config.to_diff_dict()))
    config.architectures = [type(encoder).__name__]
    config.save_pretrained(folder)
    _save(folder / "model.safetensors", text_keys.with_level(own_state(encoder)), dtype)
    return ["transformers", type(encoder).__name__]


def write_t5(folder: Path, encoder: Any, state: StateDict, dtype: torch.dtype) -> Entry:
    """Write a T5 text encoder."""
    config = T5Config(**plain_config(encoder.config.to_diff_dict()))
    config.architectures = [type(encoder).__name__]
    config.save_pretrained(folder)
    _save(folder / "model.safetensors", state, dtype)
    return ["transformers", type(encoder).__name__]


def write_depth_estimator(folder: Path, network: Any, dtype: torch.dtype) -> Entry:
    """Write a depth model's estimator."""
    config = DPTConfig(**plain_config(network.config.to_diff_dict()))
    config.architectures = [type(network).__name__]
    config.save_pretrained(folder)
    _save(folder / "model.safetensors", own_state(network), dtype)
    return ["transformers", type(network).__name__]


def write_extractor(folder: Path, extractor: Config) -> Entry:
    """Write how images are prepared for a depth estimator."""
    _write_json(folder / "preprocessor_config.json", extractor)
    return ["transformers", "DPTImageProcessor"]


def write_tokenizer(folder: Path, files: tokenizer_files.Files) -> Entry:
    """Write a CLIP tokenizer."""
    tokenizer_files.write_files(folder, files)
    return ["transformers", "CLIPTokenizer"]


def write_scheduler(folder: Path, scheduler: Any) -> Entry:
    """Write a scheduler into its place below `folder`."""
    scheduler.save_pretrained(folder / "scheduler")
    return ["diffusers", type(scheduler).__name__]


def write_index(folder: Path, index: Config) -> None:
    """Write model_index.json."""
    _write_json(folder / "model_index.json", {"_diffusers_version": _VERSION, **index})


def plain_config(config: Any) -> Config:
    """Return a configuration as plain JSON data, without the libraries' notes on where it was saved from."""
    notes = ("architectures", "dtype", "torch_dtype", "transformers_version")
    plain: Config = json.loads(json.dumps({k: v for k, v in dict(config).items() if k[0] != "_" and k not in notes}))
    return plain


def _write_json(path: Path, value: Config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save(path: Path, state: StateDict, dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, cast_floating(state, dtype))
