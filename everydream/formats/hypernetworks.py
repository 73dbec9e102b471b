"""AUTOMATIC1111's hypernetwork files: how the small networks are built, and their weights by width.

{320: (keys' state dict, values' state dict), 640: ..., "layer_structure": [1, 2, 1], "activation_func": ..., ...}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from everydream.errors import FormatError
from everydream.formats.files import StateDict, is_safetensors, write_pickle
from everydream.formats.kinds import kind_of
from everydream.formats.pickles import load_pickle
from everydream.formats.provenance import About, own_metadata

_OLD_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}
"""The layers' names before layer structures could be chosen."""


@dataclass(frozen=True)
class HypernetworkFile:
    """What a file holds."""

    layer_structure: tuple[float, ...]
    activation: str
    activate_output: bool
    layer_norm: bool
    dropout: tuple[float, ...] | None
    weights: Mapping[int, tuple[StateDict, StateDict]]
    """Width of an attention's input -> (before its keys, before its values), each a state dict of `linear.*`."""


def read_hypernetwork(path: Path) -> HypernetworkFile:
    """Read a hypernetwork. Raises FormatError for anything else."""
    if not path.is_file():
        raise FormatError(f"There is no hypernetwork file at {path.absolute()}.")
    if is_safetensors(path):
        raise FormatError(f"{path} is no hypernetwork, which would be a .pt.{kind_of(path)}")
    contents, _ = load_pickle(path)
    weights = {k: v for k, v in contents.items() if isinstance(k, int)} if isinstance(contents, Mapping) else {}
    pairs = {width: (_tensors(pair, 0), _tensors(pair, 1)) for width, pair in weights.items()}
    if not pairs or not all(keys and values for keys, values in pairs.values()):
        raise FormatError(
            f"{path} is no hypernetwork: it should hold, for each width of attention (320, 640, 768, 1280), a pair of "
            f"networks. Give one that AUTOMATIC1111 or this trainer wrote.{kind_of(path)}"
        )
    try:
        return _file(contents, pairs)
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path}: how its networks are built cannot be read: {error}.") from error


def _file(contents: Mapping[Any, Any], pairs: Mapping[int, tuple[StateDict, StateDict]]) -> HypernetworkFile:
    structure = tuple(map(float, contents.get("layer_structure") or (1, 2, 1)))
    dropout = contents.get("dropout_structure")
    if dropout is None and contents.get("use_dropout"):
        # Before the shares could be chosen it was 30 % between the layers, and after the last only where said so.
        last = 0.3 if contents.get("last_layer_dropout") else 0.0
        dropout = (0.0, *[0.3] * (len(structure) - 3), last, 0.0)
    shares = tuple(map(float, dropout)) if dropout is not None else None
    if shares is not None and (len(shares) != len(structure) or not all(0 <= share < 1 for share in shares)):
        raise ValueError(f"a dropout of {shares} beside a layer structure of {structure}")
    if len(structure) < 2 or not all(size > 0 for size in structure):
        raise ValueError(f"a layer structure of {structure}")
    return HypernetworkFile(
        layer_structure=structure,
        activation=str(contents.get("activation_func") or "linear").lower(),
        activate_output=bool(contents.get("activate_output", True)),
        layer_norm=bool(contents.get("is_layer_norm")),
        dropout=shares,
        weights=pairs,
    )


def _tensors(pair: Any, number: int) -> StateDict:
    """Return one of a pair's state dicts, under today's names."""
    state = pair[number] if isinstance(pair, list | tuple) and len(pair) > number else None
    if not isinstance(state, Mapping):
        return {}
    renamed = {}
    for key, tensor in state.items():
        first, _, rest = str(key).partition(".")
        renamed[f"{_OLD_NAMES.get(first, first)}.{rest}"] = tensor
    return {key: tensor for key, tensor in renamed.items() if isinstance(tensor, torch.Tensor)}


def write_hypernetwork(path: Path, name: str, file: HypernetworkFile, about: About | None = None) -> None:
    """Write the .pt that AUTOMATIC1111 reads."""
    structure = [int(size) if float(size).is_integer() else size for size in file.layer_structure]
    weights: dict[int | str, Any] = {
        width: (dict(keys), dict(values)) for width, (keys, values) in file.weights.items()
    }
    write_pickle(
        path,
        {
            **weights,
            "step": None,
            "name": name,
            "layer_structure": structure,
            "activation_func": file.activation,
            "is_layer_norm": file.layer_norm,
            "weight_initialization": "Normal",
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "activate_output": file.activate_output,
            "use_dropout": file.dropout is not None,
            "dropout_structure": list(file.dropout) if file.dropout is not None else None,
            "last_layer_dropout": file.dropout is not None and file.dropout[-2] > 0,
            "optional_info": None,
            **own_metadata(about),
        },
    )
