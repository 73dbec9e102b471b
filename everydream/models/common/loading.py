"""From a path in the settings to the parts of a model: diffusers folder, single file, or hub id.

Nothing is decided by a name: a folder by its model_index.json, a single file by its tensors.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from everydream.errors import ConfigError, FormatError
from everydream.formats.files import METADATA_KEY, StateDict, read_file
from everydream.models.common import depth, flow, infer, schedules, tokenizer_files
from everydream.models.common.building import build_parts
from everydream.models.common.flow import FlowKind, FlowParts, folder_parts
from everydream.models.common.kinds import DEPTH, INPAINTING, Config, Kind, Parts
from everydream.models.common.layout import UNET_PREFIX
from everydream.models.common.reading import pretrained, read_json
from everydream.models.settings import is_hub_id

_FETCHED = ("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors")
_KNOWN = "Stable Diffusion 1.x, 2.x and XL"
_FOLDERS = "Stable Diffusion 1.x, 2.x, XL and 3, and Flux.1"
_REFINER = "is SDXL's refiner, which has one text encoder and is trained on little noise only; use the base model."
Families = Mapping[str, ModuleType]


def load_folder(folder: Path, families: Families) -> tuple[str, Parts | FlowParts]:
    """Return (family name, parts) of a diffusers folder. Raises FormatError for any that is no family's."""
    index = read_json(folder / "model_index.json")
    name = _family_of_folder(folder, index, families)
    kind: Kind | FlowKind = families[name].KIND
    try:
        if isinstance(kind, FlowKind):
            return name, folder_parts(kind, folder, index, pretrained)
        parts = ("unet", *(text.part for text in kind.texts), "vae")
        classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, **{t.part: t.network for t in kind.texts}}
        networks = {part: pretrained(classes[part], folder / part) for part in parts}
        channels = int(networks["unet"].config.in_channels)
        _require_known_inputs(channels, kind, folder)
        extractor: Config = {}
        if channels == DEPTH:
            networks[depth.PART], extractor = depth.load(folder)
    except FormatError:
        raise
    except Exception as error:  # three libraries read here what others wrote, and each has errors of its own
        raise FormatError(f"The model folder {folder} cannot be loaded: {error}") from error
    tokenizers = {text.part: _folder_tokenizer(folder / text.tokenizer) for text in kind.texts}
    scheduler = _folder_scheduler(folder)
    empty_prompt = kind.empty_prompt
    if index.get("force_zeros_for_empty_prompt") is False:
        empty_prompt = "encode"
    return name, Parts(networks, tokenizers, scheduler, empty_prompt, extractor)


def _family_of_folder(folder: Path, index: Config, families: Families) -> str:
    pipeline = index.get("_class_name")
    fitting = {name: module for name, module in families.items() if pipeline in module.PIPELINES}
    if not fitting:
        raise FormatError(
            f"{folder} is a {pipeline}, and the families that can be trained so far are {_FOLDERS}. "
            "Point model.path at one of those."
        )
    module = next(iter(fitting.values()))
    if isinstance(module.KIND, FlowKind):
        return next(iter(fitting))
    if any(index.get(text.part) == [None, None] for text in module.KIND.texts):
        raise FormatError(f"{folder} {_REFINER}")
    unet = read_json(folder / "unet" / "config.json")
    return next(name for name, module in fitting.items() if module.owns(unet))


def load_single(path: Path, families: Families, config_folder: Path | None) -> tuple[str, Parts | FlowParts]:
    """Return (family name, parts) of a single-file model."""
    file = read_file(path)
    if file.metadata.get("added"):
        raise FormatError(
            f"{path} is from a run that trains something beside the model, and would give the untrained model. Take "
            "the run's base model, with the adapter among its exports."
        )
    ours = _own_description(file.metadata)
    if isinstance(getattr(families.get(str(ours.get("family"))), "KIND", None), FlowKind):
        return ours["family"], parts_of(file.tensors, ours, families[ours["family"]], path)
    family = _recognise(file.tensors, families, path)
    module = families[family]
    described = _described(file.metadata, module.KIND)
    if config_folder is not None:
        configs = folder_configs(config_folder, module.KIND)
    elif described is not None:
        configs = described
    else:
        try:
            configs = _inferred(file.tensors, module.KIND)
        except (KeyError, IndexError, ValueError) as error:
            raise FormatError(f"{path} looks like {family}, but its networks cannot be made out: {error!r}.") from error
        predicted = _predicted(file.metadata, module, file.tensors)
        configs["scheduler"]["prediction_type"] = schedules.PREDICTION_TYPE[predicted]
        if module.KIND.markers and "ztsnr" in file.tensors:
            configs["scheduler"][schedules.ZERO_SNR] = True
    tensors = file.tensors
    if _input_channels(tensors) == DEPTH:
        tensors, configs = depth.with_estimator(tensors, configs, described or {}, config_folder, path)
    return family, parts_of(tensors, configs, module, path)


def parts_of(tensors: StateDict, configs: Config, module: ModuleType, path: Path) -> Parts | FlowParts:
    """Build the networks; `path` is for the message when the tensors do not fit."""
    try:
        if isinstance(module.KIND, FlowKind):
            return flow.build_parts(module.KIND, tensors, configs)
        return build_parts(module.KIND, tensors, configs)
    except Exception as error:  # the configurations come from the file, so any error can come out of them
        lines = str(error).splitlines()
        shown = "\n".join(lines[:6])
        raise FormatError(
            f"{path} does not hold a whole model of the family {module.KIND.name}:\n{shown}\n"
            "If its layout is unusual, point model.config at a diffusers folder with its configuration files."
        ) from error


def _recognise(state: StateDict, families: Families, path: Path) -> str:
    """Return the family of single-file tensors."""
    if "conditioner.embedders.0.model.positional_embedding" in state:
        raise FormatError(f"{path} {_REFINER}")
    singles = {name: module for name, module in families.items() if isinstance(module.KIND, Kind)}
    for name, module in singles.items():
        if module.matches(state) and any(key.startswith(UNET_PREFIX) for key in state):
            _require_known_inputs(_input_channels(state), module.KIND, path)
            return name
    sample = ", ".join(sorted(state)[:3])
    raise FormatError(
        f"{path} is not a checkpoint of {_KNOWN}: of its {len(state)} tensors none is named as their "
        f"UNet and text encoders are (it has {sample}, ...). A LoRA, a VAE or an embedding alone is no model."
    )


def _input_channels(state: StateDict) -> int:
    return int(state[UNET_PREFIX + "input_blocks.0.0.weight"].shape[1])


def _require_known_inputs(channels: int, kind: Kind, path: Path) -> None:
    if channels not in kind.folders:
        what = {DEPTH: "a depth", INPAINTING: "an inpainting"}.get(channels, "an unusual")
        known = " or ".join(map(str, sorted(kind.folders)))
        raise FormatError(
            f"{path} is {what} model: its UNet takes {channels} channels, and what the further ones are for is not "
            f"known here. Of the family {kind.name}, models with {known} can be trained so far."
        )


def _described(metadata: dict[str, Any], kind: Kind) -> Config | None:
    """Return the configurations that our own files carry, or None where there are none or they are not whole."""
    model = _own_description(metadata)
    parts = ("unet", "vae", "scheduler", *(text.part for text in kind.texts))
    return model if all(isinstance(model.get(part), dict) for part in parts) else None


def _own_description(metadata: dict[str, Any]) -> Config:
    """Return what our own files say of the model, {} for others."""
    found = metadata.get(METADATA_KEY)
    if isinstance(found, str):
        with suppress(ValueError):
            found = json.loads(found)
    model = found.get("model") if isinstance(found, dict) else None
    return dict(model) if isinstance(model, dict) else {}


def _inferred(state: StateDict, kind: Kind) -> Config:
    return {
        "unet": infer.unet_config(state, kind.sample_size),
        "vae": infer.vae_config(state, kind.scaling_factor),
        **{text.part: text.config_of(state) for text in kind.texts},
        "scheduler": dict(schedules.DEFAULT),
    }


def _predicted(metadata: dict[str, Any], module: ModuleType, state: StateDict) -> str:
    """Return the prediction type: from modelspec metadata (Stability's convention) if there, else from the tensors."""
    said = str(metadata.get("modelspec.prediction_type", ""))
    if said in ("v", "epsilon"):
        return said
    return str(module.prediction_of(state))


def folder_configs(folder: Path, kind: Kind) -> Config:
    """Return the configurations in a diffusers folder, which needs no weights for this."""
    parts = ("unet", "vae", *(text.part for text in kind.texts))
    configs = {part: read_json(folder / part / "config.json") for part in parts}
    configs["scheduler"] = _folder_scheduler(folder)
    for text in kind.texts:
        if (folder / text.tokenizer).is_dir():
            files = _folder_tokenizer(folder / text.tokenizer)
            configs[text.tokenizer] = {name: content.decode() for name, content in files.items()}
    return configs


def _folder_tokenizer(folder: Path) -> tokenizer_files.Files:
    """Return the tokenizer's files. Raises FormatError if they are not enough for a tokenizer."""
    try:
        files = tokenizer_files.folder_files(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{folder} cannot be read: {error}.") from error
    if lacking := {"vocab.json", "merges.txt"} - files.keys():
        raise FormatError(f"{folder} lacks {' and '.join(sorted(lacking))}, and has no tokenizer.json.")
    return files


def _folder_scheduler(folder: Path) -> Config:
    """Return the training schedule of a diffusers folder. Raises FormatError for one that would be trained wrongly."""
    path = folder / "scheduler" / "scheduler_config.json"
    saved = read_json(path)
    scheduler = {name: saved.get(name, default) for name, default in schedules.DEFAULT.items()}
    scheduler["prediction_type"] = saved.get("prediction_type", "epsilon")
    unknown = [
        f"{name} {value}"
        for name, value, known in (
            ("prediction_type", scheduler["prediction_type"], tuple(schedules.PREDICTION_TYPE.values())),
            ("beta_schedule", scheduler["beta_schedule"], ("scaled_linear", "linear")),
            ("trained_betas", saved.get("trained_betas"), (None,)),
        )
        if value not in known
    ]
    if unknown:
        raise FormatError(f"{path} asks for {', '.join(unknown)}, which cannot be trained so far.")
    if saved.get(schedules.ZERO_SNR):
        scheduler[schedules.ZERO_SNR] = True
    return scheduler


def find(path: str) -> Path:
    """Return the local path of a model: itself, or a hub id's snapshot (downloaded when it is not there yet)."""
    local = Path(path)
    if local.exists():
        return local
    if not is_hub_id(path):
        raise ConfigError(
            f"model.path: there is nothing at {local.absolute()}. "
            "Give a diffusers folder, a .safetensors or a .ckpt file."
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        return Path(snapshot_download(path, allow_patterns=list(_FETCHED), ignore_patterns=["safety_checker/*"]))
    except (OSError, HFValidationError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"model.path: there is no {local.absolute()}, and as a hub id {path!r} could not be downloaded ({reason}). "
            "Check the spelling and the network, or download the model and give its path."
        ) from error
