"""Full fine-tuning: the networks' own weights train, whole or in part."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import nn

from everydream.errors import ConfigError
from everydream.formats.files import StateDict
from everydream.formats.provenance import About
from everydream.methods.method import MethodSettings, ParameterGroup, freeze, group_of, text_settings
from everydream.methods.settings import TextEncoderSettings, UNetSettings
from everydream.models.family import Family
from everydream.models.write import write_model

_SHORTHANDS = {"attention": ("*.attn1", "*.attn2", "*.attn"), "cross_attention": ("*.attn2",)}


class Full:
    """`method: full`, and `method: dreambooth`, whose class images are a matter of the data."""

    def __init__(self, settings: MethodSettings) -> None:
        self._settings, self._unet = settings, settings.unet

    def attach(self, family: Family, seed: int, captions: Sequence[str]) -> list[ParameterGroup]:
        """Let the chosen weights train; see `Method.attach`."""
        freeze(family)
        texts = text_settings(family, self._settings)
        _require_layers(family, self._settings.text_encoder)
        groups = []
        if self._unet.train:
            for module in unet_modules(family, self._unet):
                module.requires_grad_(True)
            groups.append(group_of(family, family.denoiser, self._unet.lr or 0.0, self._unet.epochs))
        for part, section in texts.items():
            for module in text_modules(family, part, section):
                module.requires_grad_(True)
            for module in family.unused_text_modules(part):
                module.requires_grad_(False)
            rate = section.lr if section.lr is not None else self._settings.text_encoder.lr
            groups.append(group_of(family, part, rate or 0.0, section.epochs))
        return groups

    def exported(self, family: Family) -> StateDict:
        """Return the whole model."""
        return family.single_file()

    def export(
        self, family: Family, stem: Path, format_name: str, dtype: torch.dtype, about: About | None = None
    ) -> list[Path]:
        """Write the whole model."""
        return [write_model(family, stem, format_name, dtype, about)]


def _require_layers(family: Family, settings: TextEncoderSettings) -> None:
    if not all(family.text_layers(part) for part in family.text_parts):
        raise ConfigError(
            f"text_encoder.clip_skip is {settings.clip_skip}, which leaves out every layer of this text encoder. "
            "Use what the base model was trained with: 0, or 1 for most drawn-style models."
        )


def unet_modules(family: Family, settings: UNetSettings) -> Iterator[nn.Module]:
    """Yield what trains of the denoiser. Raises ConfigError for a pattern that matches no module of it."""
    unet = family.modules()[family.denoiser]
    if settings.only is None:
        yield unet
        return
    for pattern in settings.only:
        wanted = _SHORTHANDS.get(pattern, (pattern,))
        found = [module for name, module in unet.named_modules() if any(fnmatch(name, glob) for glob in wanted)]
        if not found:
            top = ", ".join(name for name, _ in unet.named_children())
            raise ConfigError(
                f"unet.only: {pattern!r} matches no module of this {family.denoiser}. Use attention, cross_attention, "
                f"or patterns over module names such as up_blocks.* or down_blocks.0.*; at the top it has {top}."
            )
        yield from found


def text_modules(family: Family, part: str, settings: TextEncoderSettings) -> Iterator[nn.Module]:
    """Yield what trains of a text encoder, without the layers that clip_skip leaves out."""
    layers = list(family.text_layers(part))
    num = settings.train_last_layers
    if num is None and settings.train_embeddings:
        yield family.modules()[part]
        return
    if num is not None and num > len(layers):
        raise ConfigError(
            f"{part}.train_last_layers is {num}, but only {len(layers)} layers of this "
            f"text encoder are in use. Give 1 to {len(layers)}, or null for all of it."
        )
    yield from layers[-num:] if num is not None else layers
    yield family.final_norm(part)
