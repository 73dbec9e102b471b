"""Full fine-tuning: the networks' own weights train, whole or in part."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from everydream.errors import ConfigError
from everydream.models.family import Family
from everydream.settings import Settings


class UNetSettings(Settings):
    """What happens to the UNet."""

    train: bool = True
    """Train the UNet."""
    lr: Annotated[float, Field(ge=0.0)] = 1.0e-6
    """Peak learning rate; 1e-6 suits a few hundred images and batches of about 6."""


class TextEncoderSettings(Settings):
    """What happens to the text encoder."""

    train: bool = True
    """Train the text encoder along with the UNet."""
    lr: Annotated[float, Field(ge=0.0)] = 5.0e-7
    """Peak learning rate; lower than the UNet's, since words move faster than pictures."""
    train_last_layers: Annotated[int, Field(ge=1)] | None = None
    """Train only this many of the last layers (and the final norm); null: all, with the embeddings."""
    clip_skip: Annotated[int, Field(ge=0, le=8)] = 0
    """Take the text encoder's output this many layers before the last; use the base model's own habit."""


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    part: str
    names: list[str]
    parameters: list[nn.Parameter]
    lr: float


def attach(
    family: Family, unet: UNetSettings, text_encoder: TextEncoderSettings, lr: float | None = None
) -> list[ParameterGroup]:
    """Mark what trains, freeze the rest, and return the parameter groups; `lr`, if given, counts for every part.

    Frozen parameters neither require nor hold gradients. Trained networks go to training mode, frozen
    ones to evaluation mode. Raises ConfigError if nothing is left to train.
    """
    for module in family.modules().values():
        module.requires_grad_(False)
        module.eval()
    if not family.text_layers():
        raise ConfigError(
            f"text_encoder.clip_skip is {text_encoder.clip_skip}, which leaves out every layer of this text encoder. "
            "Use what the base model was trained with: 0, or 1 for most drawn-style models."
        )
    groups = []
    if unet.train:
        groups.append(_group(family, "unet", [family.modules()["unet"]], unet.lr if lr is None else lr))
    if text_encoder.train:
        trained = list(_text_modules(family, text_encoder))
        groups.append(_group(family, "text_encoder", trained, text_encoder.lr if lr is None else lr))
    if not groups:
        raise ConfigError("Nothing would train: set unet.train or text_encoder.train to true.")
    return groups


def _text_modules(family: Family, settings: TextEncoderSettings) -> Iterator[nn.Module]:
    """Yield what trains of the text encoder, without the layers that clip_skip leaves out."""
    layers = list(family.text_layers())
    if settings.train_last_layers is None:
        yield family.modules()["text_encoder"]
        return
    if settings.train_last_layers > len(layers):
        raise ConfigError(
            f"text_encoder.train_last_layers is {settings.train_last_layers}, but only {len(layers)} layers of this "
            f"text encoder are in use. Give 1 to {len(layers)}, or null for all of it."
        )
    yield from layers[-settings.train_last_layers :]
    yield family.final_norm()


def _group(family: Family, part: str, modules: list[nn.Module], lr: float) -> ParameterGroup:
    """Let the modules' parameters train and return them in the order of the network's own names."""
    for module in modules:
        module.requires_grad_(True)
    for module in family.unused_text_modules():
        module.requires_grad_(False)
    network = family.modules()[part]
    network.train()
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    return ParameterGroup(part, [f"{part}.{name}" for name, _ in trained], [p for _, p in trained], lr)
