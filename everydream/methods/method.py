"""The seam for methods: what trains, at which rate, and what is written of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from everydream.errors import ConfigError
from everydream.formats.files import StateDict
from everydream.formats.provenance import About
from everydream.methods.settings import (
    HypernetworkSettings,
    LoraSettings,
    MethodName,
    TextEncoderSettings,
    TextualInversionSettings,
    UNetSettings,
)
from everydream.models.family import Family


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    part: str
    names: list[str]
    parameters: list[nn.Parameter]
    lr: float
    epochs: int | None = None
    """They train in so many first epochs only; None: in all."""

    def trains_in(self, epoch: int) -> bool:
        """Tell whether they train in this epoch, from 0."""
        return self.epochs is None or epoch < self.epochs


class MethodSettings(Protocol):
    """The sections of a run's settings that a method may look at."""

    @property
    def project(self) -> str: ...  # noqa: D102
    @property
    def method(self) -> MethodName: ...  # noqa: D102
    @property
    def unet(self) -> UNetSettings: ...  # noqa: D102
    @property
    def text_encoder(self) -> TextEncoderSettings: ...  # noqa: D102
    @property
    def text_encoder_2(self) -> TextEncoderSettings | None: ...  # noqa: D102
    @property
    def text_encoder_3(self) -> TextEncoderSettings | None: ...  # noqa: D102
    @property
    def lora(self) -> LoraSettings: ...  # noqa: D102
    @property
    def textual_inversion(self) -> TextualInversionSettings: ...  # noqa: D102
    @property
    def hypernetwork(self) -> HypernetworkSettings: ...  # noqa: D102


class Method(Protocol):
    """A way of teaching."""

    def attach(self, family: Family, seed: int, captions: Sequence[str]) -> list[ParameterGroup]:
        """Freeze the family but for what trains, put in what the method adds, and return the parameter groups.

        `captions` are those of the images that will train. Frozen parameters neither require nor hold gradients.
        Raises ConfigError for settings that do not fit the model.
        """

    def exported(self, family: Family) -> StateDict:
        """Return the tensors of an export, before they are cast."""

    def export(
        self, family: Family, stem: Path, format_name: str, dtype: torch.dtype, about: About | None = None
    ) -> list[Path]:
        """Write `stem` plus an ending in one of the method's formats; return the paths.

        `about`: how it was made, which the file says where its format can.
        """


def text_settings(family: Family, settings: MethodSettings) -> dict[str, TextEncoderSettings]:
    """Return the settings of each text part that trains: its own section, or else the first one's.

    Raises ConfigError for the section of a part that the model does not have.
    """
    own = {"text_encoder_2": settings.text_encoder_2, "text_encoder_3": settings.text_encoder_3}
    if strangers := [part for part, section in own.items() if section is not None and part not in family.text_parts]:
        raise ConfigError(
            f"{', '.join(strangers)}: this {family.name} model has no such part; its text encoders are "
            f"{', '.join(family.text_parts)}. Take the section out."
        )
    chosen: dict[str, TextEncoderSettings] = {}
    for part in family.text_parts:
        section = own.get(part) or (None if part in family.usually_frozen else settings.text_encoder)
        if section is not None and section.train:
            chosen[part] = section
    return chosen


def freeze(family: Family) -> None:
    """Freeze every network, in evaluation mode."""
    for module in family.modules().values():
        module.requires_grad_(False)
        module.eval()


def group_of(family: Family, part: str, lr: float, epochs: int | None = None) -> ParameterGroup:
    """Return what requires gradients in one part, in the order of its names; its network goes to training mode."""
    network = family.modules()[part]
    network.train()
    trained = [(f"{part}.{name}", p) for name, p in network.named_parameters() if p.requires_grad]
    return ParameterGroup(part, [name for name, _ in trained], [p for _, p in trained], lr, epochs)
