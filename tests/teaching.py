"""A method put to a family as a run would, without a run."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from everydream.methods import METHODS
from everydream.methods.method import Method, ParameterGroup
from everydream.methods.settings import (
    USUAL_RATES,
    HypernetworkSettings,
    LoraSettings,
    TextEncoderSettings,
    TextualInversionSettings,
    UNetSettings,
)


def make_method(name: str = "full", **sections: Any) -> Method:
    """Return a method; sections that are not given have their defaults."""
    usual = {
        "unet": UNetSettings(),
        "text_encoder": TextEncoderSettings(),
        "text_encoder_2": None,
        "text_encoder_3": None,
        "lora": LoraSettings(rank=4),
        "textual_inversion": TextualInversionSettings(),
        "hypernetwork": HypernetworkSettings(),
    }
    chosen = {**usual, **sections}
    for part, rate in zip(("unet", "text_encoder"), USUAL_RATES.get(name, (None, None)), strict=True):
        if chosen[part].lr is None:
            chosen[part] = chosen[part].model_copy(update={"lr": rate})
    return METHODS[name](SimpleNamespace(project="trial", **chosen))


def attach(
    family: Any, name: str = "full", captions: Sequence[str] = ("a photo",), seed: int = 0, **sections: Any
) -> list[ParameterGroup]:
    """Attach a method and return its groups."""
    return make_method(name, **sections).attach(family, seed, captions)
