"""Textual-inversion files: learned words and their vectors, in every form that is about.

diffusers, fast-DreamBooth     {"<word>": tensor}, .bin or .safetensors
AUTOMATIC1111                  {"string_to_param": {"*": tensor}, "name": ...}, .pt
rinongal (the original)        the same, with PyTorch's parameter dictionary inside
kohya, OneTrainer              {"emb_params": tensor}, .safetensors
SDXL, everywhere               {"clip_l": tensor, "clip_g": tensor}, .safetensors
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from everydream.errors import FormatError
from everydream.formats.files import StateDict, is_safetensors, read_file, write_pickle, write_safetensors
from everydream.formats.kinds import kind_of
from everydream.formats.pickles import load_pickle
from everydream.formats.provenance import About, own_metadata

_WORD = "word"
"""Where the metadata of our files for two text encoders says it."""


def read_embedding(path: Path) -> StateDict:
    """Return {word: vectors (V, D)} of a file; where it names no word, its own name is one.

    Raises FormatError for anything but such a file.
    """
    if not path.is_file():
        raise FormatError(f"There is no embedding file at {path.absolute()}.")
    contents: Any = read_file(path).tensors if is_safetensors(path) else load_pickle(path)[0]
    found = _words(contents, path.stem) if isinstance(contents, Mapping) else {}
    vectors = {
        word: t.detach().float().reshape(-1, t.shape[-1])
        for word, t in found.items()
        if t.dim() in (1, 2) and t.numel()
    }
    if not vectors or len(vectors) < len(found):
        held = ", ".join(map(str, list(contents)[:4])) if isinstance(contents, Mapping) else type(contents).__name__
        raise FormatError(
            f"{path} is no textual-inversion embedding: it holds {held or 'nothing'}. Give a file with one tensor per "
            f"word, or AUTOMATIC1111's or the original's `string_to_param`.{kind_of(path)}"
        )
    return vectors


def _words(contents: Mapping[Any, Any], name: str) -> StateDict:
    if "clip_g" in contents:
        raise FormatError(f"{name} is an embedding for SDXL (it holds clip_g and clip_l), not for one text encoder.")
    if isinstance(inner := contents.get("string_to_param"), Mapping):
        said = contents.get("name")
        word = said if isinstance(said, str) and said.strip() else name
        vectors = [
            t.reshape(-1, t.shape[-1]) for t in inner.values() if isinstance(t, torch.Tensor) and t.dim() in (1, 2)
        ]
        alike = len({t.shape[-1] for t in vectors}) == 1
        return {word: torch.cat(vectors)} if alike else {}
    if isinstance(tensor := contents.get("emb_params"), torch.Tensor):
        return {name: tensor}
    return {word: t for word, t in contents.items() if isinstance(word, str) and isinstance(t, torch.Tensor)}


def read_for_several(path: Path) -> tuple[str, StateDict]:
    """Return (word, {clip_l or clip_g: vectors (V, D)}) of a file for two text encoders.

    The word is what our own files say, or else the file's name. Raises FormatError for any other file.
    """
    if not path.is_file():
        raise FormatError(f"There is no embedding file at {path.absolute()}.")
    file = read_file(path)
    if not {"clip_l", "clip_g"} & file.tensors.keys():
        raise FormatError(
            f"{path} is no embedding for a model with two text encoders, which holds clip_l and clip_g.{kind_of(path)}"
        )
    word = file.metadata.get(_WORD, path.stem)
    return str(word), {key: t.float().reshape(-1, t.shape[-1]) for key, t in file.tensors.items()}


def write_for_several(path: Path, word: str, vectors: StateDict, about: About | None = None) -> None:
    """Write the .safetensors of a word for two text encoders, by the keys clip_l and clip_g.

    There the word to type is the file's name; diffusers' load_textual_inversion is given each tensor with its encoder.
    """
    write_safetensors(path, vectors, {_WORD: word, **own_metadata(about)})


def write_for_diffusers(path: Path, word: str, vectors_VD: torch.Tensor, about: About | None = None) -> None:
    """Write the .safetensors that diffusers' load_textual_inversion and AUTOMATIC1111 open."""
    write_safetensors(path, {word: vectors_VD}, own_metadata(about))


def write_for_webui(path: Path, word: str, vectors_VD: torch.Tensor, about: About | None = None) -> None:
    """Write AUTOMATIC1111's .pt; there the word to type is the file's name."""
    placeholder = "*"
    write_pickle(
        path,
        {
            "string_to_token": {placeholder: 265},  # the id of `*`, which every reader expects and none uses
            "string_to_param": {placeholder: vectors_VD},
            "name": word,
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            **own_metadata(about),
        },
    )
