"""`everydream prune`: a checkpoint without what only its trainer needs.

Lightning's checkpoints (EveryDream, JoePenna, imaginAIry) hold the optimizer, callbacks and, under `model_ema.`, an
average of the UNet whose names have lost their dots. Ours hold the optimizer, the average by parameter name, and
the run. Only `state_dict` is kept, and only floating tensors are ever cast.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from everydream.errors import ConfigError, FormatError
from everydream.formats.atomic import format_bytes
from everydream.formats.files import (
    METADATA_KEY,
    StateDict,
    cast_floating,
    json_metadata,
    read_file,
    write_pickle,
    write_safetensors,
)
from everydream.models.load import restore
from everydream.tools.models.files import FORMAT_OF, describe_contents, require_new, size_of

Average = Literal["keep", "use", "drop"]
_AVERAGE, _LIVE = "model_ema.", "model."
_WORDS = {"keep": "average kept if there was one", "use": "average in place of the weights", "drop": "no average"}
_NOT_WEIGHTS = ("decay", "num_updates")


def prune(source: Path, out: Path, average: Average, half: bool, overwrite: bool) -> list[str]:
    """Write the weights of `source` alone to `out`; return what to tell.

    `average`: keep it beside the weights, use it in their place, or drop it. Raises FormatError if it is to be used
    and there is none, ConfigError if `out` is taken or has an ending that no single file has.
    """
    if out.suffix not in FORMAT_OF:
        raise ConfigError(f"{out}: a pruned checkpoint is a single file; end its name in {' or '.join(FORMAT_OF)}.")
    require_new(out, overwrite, source)
    file = read_file(source)
    if odd := [key for key, tensor in file.tensors.items() if tensor.layout != torch.strided]:
        raise FormatError(f"{source}: {odd[0]} is a sparse tensor, which no model holds. Nothing was written.")
    told = [describe_contents(source, file.tensors, file.metadata, file.skipped)]
    tensors, metadata = file.tensors, file.metadata
    ours = metadata.get(METADATA_KEY)
    if isinstance(ours, Mapping) and isinstance(metadata.get("added"), Mapping) and metadata["added"]:
        raise FormatError(
            f"{source} is from a run that trains something beside the model ({_first(metadata['added'])}, ...), and "
            "pruning would leave the untrained model. Its results are the exports beside it."
        )
    if isinstance(ours, Mapping) and isinstance(metadata.get("ema"), Mapping) and metadata["ema"] and average != "drop":
        if average == "keep":
            raise ConfigError(
                f"{source} is a last.ckpt of ours, whose average goes by other names than a model's; "
                "it cannot be kept beside the weights. Say --ema use or --ema drop."
            )
        tensors = _with_our_average(tensors, ours["model"], metadata["ema"], source)
    else:
        tensors = _with_average(tensors, average, source)
    if half:
        tensors = _halved(tensors, source)
    _write(out, tensors, _model_of(ours))
    sizes = f"{format_bytes(size_of(source))} -> {format_bytes(size_of(out))}"
    return [*told, f"{sizes}: {out} ({len(tensors):,} of {len(file.tensors):,} tensors, {_WORDS[average]})."]


def _halved(tensors: StateDict, source: Path) -> StateDict:
    """Return the tensors in half precision. Raises FormatError for numbers that it cannot hold (beyond 65,504)."""
    halved = cast_floating(tensors, torch.float16)
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.equal(tensor.isfinite(), halved[key].isfinite()):
            raise FormatError(f"{source}: {key} holds numbers too large for half precision. Leave --half out.")
    return halved


def _with_average(tensors: StateDict, average: Average, source: Path) -> StateDict:
    """Treat Lightning's average, `model_ema.` + a name of `model.` without its dots."""
    if average == "keep":
        return tensors
    live = {key: tensor for key, tensor in tensors.items() if not key.startswith(_AVERAGE)}
    if average == "drop":
        return live
    squeezed = {_AVERAGE + key.removeprefix(_LIVE).replace(".", ""): key for key in live if key.startswith(_LIVE)}
    averages = {squeezed[key]: tensor for key, tensor in tensors.items() if key in squeezed}
    unknown = [
        key
        for key in tensors
        if key.startswith(_AVERAGE) and key not in squeezed and key.removeprefix(_AVERAGE) not in _NOT_WEIGHTS
    ]
    lacking = [
        key
        for key in squeezed.values()
        if live[key].is_floating_point() and (key not in averages or averages[key].shape != live[key].shape)
    ]
    if not averages:
        held = "it has none"
    elif unknown:
        held = f"{len(unknown)} of its averages belong to no weight, {unknown[0]} for one"
    elif lacking:
        held = f"{len(lacking)} of {len(squeezed)} weights have no average of their shape, {lacking[0]} for one"
    else:
        return {key: averages[key].to(tensor.dtype) if key in averages else tensor for key, tensor in live.items()}
    raise FormatError(f"{source}: --ema use, but {held}. Say --ema drop for the weights themselves.")


def _with_our_average(tensors: StateDict, model: dict[str, Any], average: StateDict, source: Path) -> StateDict:
    """Put a last.ckpt's average, which goes by the networks' parameter names, in the place of the weights."""
    family = restore(tensors, model, source)
    for part, network in family.modules().items():
        for name, parameter in network.named_parameters():
            found = average.get(f"{part}.{name}")
            if found is not None and found.shape != parameter.shape:
                raise FormatError(f"{source}: the average of {part}.{name} has another shape than the weight.")
            if found is not None:
                parameter.data.copy_(found)
    return family.single_file()


def _model_of(ours: Any) -> dict[str, Any]:
    """Return the description of the model that our own files carry, {} for others."""
    return {METADATA_KEY: {"model": ours["model"]}} if isinstance(ours, Mapping) and "model" in ours else {}


def _write(out: Path, tensors: StateDict, described: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".ckpt":
        write_pickle(out, {"state_dict": tensors, **described})
    else:
        write_safetensors(out, tensors, {key: json_metadata(value) for key, value in described.items()})


def _first(names: Mapping[str, Any]) -> str:
    return next(iter(names))
