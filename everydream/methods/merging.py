"""Adapters baked into the weights of a model, for sampling and for files that need no adapter."""

from collections.abc import Sequence
from pathlib import Path

import torch

from everydream.errors import FormatError
from everydream.formats import adapters
from everydream.formats.files import TensorFile, read_file
from everydream.formats.kinds import ADAPTER, kind_of
from everydream.models.family import Family

_SHOWN = 3


@torch.no_grad()
def merge_adapter(family: Family, path: Path, strength: float = 1.0) -> int:
    """Add strength * the adapter's change to the weights; return how many modules it changed.

    Takes LoRA, LoCon, LoHa and LoKr, kohya's and diffusers' names. Raises FormatError, with nothing changed, for an
    adapter of another architecture and for kinds that are not known.
    """
    file = _read(path)
    layers = family.adapter_weights()
    names = {module: theirs for module, (theirs, _) in layers.items()}
    adapter, unknown = adapters.from_file(file.tensors, file.metadata, names)
    odd = [key for key in file.tensors if "dora_scale" in key or "magnitude" in key]
    if not adapter:
        _refuse_other_kinds(path)
        raise FormatError(_none_fits(path, unknown, family.name))
    if odd:
        raise FormatError(f"{path} is a DoRA (it holds {odd[0]}), which cannot be merged so far; LoRA, LoHa, LoKr can.")
    if unknown:
        raise FormatError(_some_do_not_fit(path, unknown, len(file.tensors), family.name))
    changes = {}
    for module, leaves in adapter.items():
        shape = layers[module][1].shape
        try:
            changes[module] = adapters.delta(leaves, shape)
        except ValueError as error:
            raise FormatError(
                f"{path} is for another architecture: {names[module]} does not fit a weight of {tuple(shape)} in this "
                f"{family.name} model ({error}). Take the base model that it was trained on."
            ) from error
    for module, change in changes.items():
        weight = layers[module][1]
        weight.data += strength * change.to(weight)
    return len(changes)


def _read(path: Path) -> TensorFile:
    try:
        return read_file(path)
    except FormatError:
        if path.is_file():
            _refuse_other_kinds(path)
        raise


def _refuse_other_kinds(path: Path) -> None:
    """Raise FormatError if a file that is of no use here is seen to be something else; that reads it once more."""
    kind = kind_of(path)
    if kind not in (ADAPTER, ""):
        raise FormatError(f"{path} is no LoRA, LoCon, LoHa or LoKr.{kind}")


def _none_fits(path: Path, keys: Sequence[str], family: str) -> str:
    return (
        f"{path} is no adapter for this {family} model: none of its {len(keys)} tensors belongs to one of its layers "
        f"(it has {', '.join(keys[:_SHOWN])}). Take the base model that it was trained on."
    )


def _some_do_not_fit(path: Path, unknown: Sequence[str], num: int, family: str) -> str:
    return (
        f"{path} is for another architecture, or of another kind than LoRA, LoHa and LoKr: {len(unknown)} of its {num} "
        f"tensors are nothing that a layer of this {family} model can take, {', '.join(unknown[:_SHOWN])} among them. "
        "Take the base model that it was trained on."
    )
