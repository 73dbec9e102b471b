"""Low-rank adapters beside the frozen layers of UNet and text encoder, through peft."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everydream.errors import ConfigError
from everydream.formats import adapters
from everydream.formats.adapters import Adapter
from everydream.formats.atomic import atomic_folder
from everydream.formats.files import StateDict, cast_floating, write_safetensors
from everydream.formats.provenance import About, kohya, modelspec, own_metadata
from everydream.methods.full import text_modules, unet_modules
from everydream.methods.method import MethodSettings, ParameterGroup, freeze, group_of, text_settings
from everydream.methods.settings import LoraSettings
from everydream.models.family import Family
from everydream.models.kohya import base_version
from everydream.seeding import derive

_OF_TARGET = {
    "attention": (".attn1.", ".attn2.", ".attn.", ".self_attn."),
    "feed_forward": (".ff.", ".ff_context.", ".mlp.", ".proj_mlp.", ".proj_in.", ".proj_out."),
    "convolution": (".resnets.", ".downsamplers.", ".upsamplers."),
}
"""What the name of a layer holds, by target; the same modules that kohya's and LyCORIS's networks choose."""
_DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


class Lora:
    """`method: lora`, of all three kinds."""

    def __init__(self, settings: MethodSettings) -> None:
        self._settings, self._lora, self._unet = settings, settings.lora, settings.unet

    def attach(self, family: Family, seed: int, captions: Sequence[str]) -> list[ParameterGroup]:
        """Put an adapter beside every target; see `Method.attach`. The model's own output stays as it is at first."""
        freeze(family)
        unet, texts = self._unet, text_settings(family, self._settings)
        chosen: list[tuple[str, float | None, int | None, Iterator[nn.Module]]] = []
        if unet.train:
            chosen.append((family.denoiser, unet.lr, unet.epochs, unet_modules(family, unet)))
        for part, section in texts.items():
            rate = section.lr if section.lr is not None else self._settings.text_encoder.lr
            chosen.append((part, rate, section.epochs, text_modules(family, part, section)))
        if deaf := [part for part in texts if part in family.usually_frozen]:
            raise ConfigError(
                f"{deaf[0]}: no tool reads an adapter of this {family.name} model's T5, so it cannot train under "
                "method: lora. Take the section out."
            )
        skipped = [module for part in family.text_parts for module in family.unused_text_modules(part)]
        unused = {id(module) for outer in skipped for module in outer.modules()}
        groups = []
        for part, lr, epochs, within in chosen:
            inside = {id(module) for outer in within for module in outer.modules()} - unused
            names = list(_targets(family.modules()[part], inside, self._lora.targets))
            if names:
                _inject(family.modules()[part], names, self._lora, derive(seed, "adapter", part))
                groups.append(group_of(family, part, lr or 0.0, epochs))
        if not groups:
            raise ConfigError(
                f"lora.targets: {', '.join(self._lora.targets)} matches no layer of what trains. The text encoder has "
                "no convolutions; add attention, or train the UNet."
            )
        return groups

    def exported(self, family: Family) -> StateDict:
        """Return the adapter under the names that other tools expect of the family: kohya's or diffusers'."""
        if family.adapter_names == "diffusers":
            return adapters.to_diffusers(_adapter(family))
        names = {module: theirs for module, (theirs, _) in family.adapter_weights().items()}
        return adapters.to_kohya(_adapter(family), names)

    def export(
        self, family: Family, stem: Path, format_name: str, dtype: torch.dtype, about: About | None = None
    ) -> list[Path]:
        """Write the adapter as one kohya-named file, or as the folder that diffusers' load_lora_weights takes."""
        if format_name == "diffusers":
            with atomic_folder(stem) as folder:
                tensors = cast_floating(adapters.to_diffusers(_adapter(family)), dtype)
                write_safetensors(folder / _DIFFUSERS_NAME, tensors, own_metadata(about))
            return [stem]
        path = stem.with_name(stem.name + ".safetensors")
        exported = self.exported(family)
        # A rank above 256 has no exact bf16.
        alphas = {key: tensor for key, tensor in exported.items() if key.endswith(".alpha")}
        write_safetensors(path, {**cast_floating(exported, dtype), **alphas}, self._metadata(family, about))
        return [path]

    def _metadata(self, family: Family, about: About | None) -> dict[str, str]:
        """Return what kohya's files say of themselves and other tools show."""
        lora = self._lora
        is_plain = lora.kind == "lora"
        return {
            "ss_network_module": "networks.lora" if is_plain else "lycoris.kohya",
            **({} if is_plain else {"ss_network_args": f'{{"algo": "{lora.kind}"}}'}),
            "ss_network_dim": str(lora.rank),
            "ss_network_alpha": str(alpha_of(lora)),
            **base_version(family),
            **kohya(about),
            **modelspec(f"{family.architecture}/lora", family.objective.prediction, about),
            **own_metadata(about),
        }


def alpha_of(settings: LoraSettings) -> float:
    """Return the alpha that counts, after the default."""
    return settings.alpha if settings.alpha is not None else float(settings.rank)


def _targets(network: nn.Module, inside: set[int], targets: Sequence[str]) -> Iterator[str]:
    """Yield the names of the layers that get an adapter; `inside`: the ids of all modules that may."""
    marks = tuple(mark for target in targets for mark in _OF_TARGET[target])
    for name, module in network.named_modules():
        is_layer = isinstance(module, nn.Linear | nn.Conv2d) and id(module) in inside
        if is_layer and any(mark in f".{name}." for mark in marks):
            yield name


def _inject(network: nn.Module, names: list[str], settings: LoraSettings, seed: int) -> None:
    """Wrap the named layers; the new weights are the seed's, the network's own are not touched."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - seconds

    rank, alpha, dropout = settings.rank, alpha_of(settings), settings.dropout
    config: Any = {
        "lora": lambda: LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names),
        "loha": lambda: LoHaConfig(r=rank, alpha=alpha, rank_dropout=dropout, target_modules=names),
        "lokr": lambda: LoKrConfig(r=rank, alpha=alpha, rank_dropout=dropout, target_modules=names),
    }[settings.kind]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)


def _adapter(family: Family) -> Adapter:
    """Return the trained matrices by module."""
    found: Adapter = {}
    for part in (family.denoiser, *family.text_parts):
        for name, module in family.modules()[part].named_modules():
            scaling = getattr(module, "scaling", None)  # attention has a number of that name
            if isinstance(scaling, dict) and "default" in scaling:
                found[f"{part}.{name.removeprefix('text_model.')}"] = _leaves(module)
    return found


def _leaves(layer: Any) -> StateDict:
    """Return one wrapped layer's matrices under LyCORIS's names; peft's are the same but for LoRA's."""
    renamed = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}
    leaves: StateDict = {}
    for attribute in layer.adapter_layer_names:
        held = getattr(layer, attribute)
        if "default" in held:
            tensor = held["default"].weight if attribute in renamed else held["default"]
            leaves[renamed.get(attribute, attribute)] = tensor.detach()
    rank, scale = adapters.rank_of(leaves), layer.scaling["default"]
    if rank is None:
        # Two full matrices: readers take no rank from them, and so no scale.
        return {**leaves, "lokr_w1": leaves["lokr_w1"] * scale}
    return {**leaves, "alpha": torch.tensor(scale * rank)}
