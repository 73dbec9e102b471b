"""What trains, what does not, and at which rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_step_against_diffusers import make_batch
from teaching import attach
from torch import nn
from transformers import CLIPTextModel

from everydream.errors import ConfigError
from everydream.methods.method import ParameterGroup
from everydream.methods.settings import TextEncoderSettings, UNetSettings
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.step import LossSettings, training_step
from everydream.training.launch import Launch
from everydream.training.settings import TrainSettings

OFF = {"unet": UNetSettings(train=False), "text_encoder": TextEncoderSettings(train=False)}


@pytest.fixture(scope="module")
def family(model_folder: Path) -> Any:
    return load(ModelSettings(path=str(model_folder)))


@pytest.fixture(scope="module")
def skipping(model_folder: Path) -> Any:
    return load(ModelSettings(path=str(model_folder)), clip_skip=1)


def step(family: Any) -> None:
    """One backward pass over everything."""
    training_step(make_batch([0, 1]), family, LossSettings(), 2).loss.backward()


def with_gradients(family: Any) -> set[str]:
    """Return the names of the parameters that hold a gradient, and take the gradients off."""
    found = set()
    for part, module in family.modules().items():
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found.add(f"{part}.{name}")
                parameter.grad = None
    return found


def names(groups: Sequence[ParameterGroup]) -> set[str]:
    return {name for group in groups for name in group.names}


def all_of(family: Any, part: str) -> set[str]:
    return {f"{part}.{name}" for name, _ in family.modules()[part].named_parameters()}


@pytest.mark.parametrize("parts", [{"unet"}, {"text_encoder"}, {"unet", "text_encoder"}])
def test_frozen_parts_hold_no_gradients(family: Any, parts: set[str]) -> None:
    """Defect 6: elsewhere frozen text encoders still collect gradients."""
    groups = attach(family, **{part: off for part, off in OFF.items() if part not in parts})
    assert [group.part for group in groups] == [part for part in ("unet", "text_encoder") if part in parts]
    expected = set().union(*(all_of(family, part) for part in parts))
    assert names(groups) == expected
    step(family)
    assert with_gradients(family) == expected
    for part, module in family.modules().items():
        assert module.training is (part in parts)
        assert {p.requires_grad for p in module.parameters()} == {part in parts}


def test_names_belong_to_their_parameters(family: Any) -> None:
    for group in attach(family):
        live = dict(family.modules()[group.part].named_parameters())
        assert len(group.names) == len(set(group.names)) == len(group.parameters)
        for name, parameter in zip(group.names, group.parameters, strict=True):
            assert live[name.removeprefix(f"{group.part}.")] is parameter


def test_only_the_last_layers_of_the_text_encoder(family: Any) -> None:
    groups = attach(family, unet=OFF["unet"], text_encoder=TextEncoderSettings(train_last_layers=1))
    expected = {n for n in all_of(family, "text_encoder") if ".layers.1." in n or "final_layer_norm" in n}
    assert names(groups) == expected and len(expected) == 18
    step(family)
    assert with_gradients(family) == expected
    everything = attach(family, unet=OFF["unet"], text_encoder=TextEncoderSettings(train_last_layers=2))
    assert all_of(family, "text_encoder") - names(everything) == {
        n for n in all_of(family, "text_encoder") if "embedding" in n
    }


def test_more_layers_than_there_are(family: Any, skipping: Any) -> None:
    with pytest.raises(ConfigError, match=r"train_last_layers is 3, but only 2 layers .* Give 1 to 2, or null"):
        attach(family, text_encoder=TextEncoderSettings(train_last_layers=3))
    with pytest.raises(ConfigError, match=r"train_last_layers is 2, but only 1 layers"):
        attach(skipping, text_encoder=TextEncoderSettings(train_last_layers=2))


def test_a_clip_skip_that_leaves_no_layer_is_refused(model_folder: Path) -> None:
    family = load(ModelSettings(path=str(model_folder)), clip_skip=2)
    with pytest.raises(ConfigError, match="clip_skip is 2, which leaves out every layer"):
        attach(family, text_encoder=TextEncoderSettings(clip_skip=2))


@pytest.mark.parametrize("last", [None, 1])
def test_layers_that_clip_skip_leaves_out_are_frozen(skipping: Any, last: int | None) -> None:
    groups = attach(skipping, unet=OFF["unet"], text_encoder=TextEncoderSettings(train_last_layers=last, clip_skip=1))
    assert not any(".layers.1." in name for name in names(groups))
    assert any(".layers.0." in name for name in names(groups)) and any("final_layer_norm" in n for n in names(groups))
    step(skipping)
    assert with_gradients(skipping) == names(groups)
    assert any("embeddings" in name for name in names(groups)) is (last is None)


def test_clip_skip_is_the_output_of_a_shorter_encoder(skipping: Any, family: Any) -> None:
    """As A1111: the layers before the last, then the final norm; `Clip skip: 2` there is 1 here."""
    shorter = CLIPTextModel(type(family.modules()["text_encoder"].config).from_dict({
        **family.modules()["text_encoder"].config.to_dict(), "num_hidden_layers": 1
    })).eval()  # fmt: skip
    missing, unexpected = shorter.load_state_dict(skipping.modules()["text_encoder"].state_dict(), strict=False)
    assert not missing and all(".layers.1." in key for key in unexpected)
    captions = ["a cat", "", "a dog on a red chair"]
    with torch.no_grad():
        expected = shorter(skipping.clips["text_encoder"].tokenize(captions)).last_hidden_state
        found = skipping.encode_text(captions, []).tokens_BLD
        hidden = family.modules()["text_encoder"](
            family.clips["text_encoder"].tokenize(captions), output_hidden_states=True
        ).hidden_states
        torch.testing.assert_close(found, family.final_norm("text_encoder")(hidden[-2]), atol=1e-6, rtol=1e-6)
        whole = family.encode_text(captions, []).tokens_BLD
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(found, whole, atol=1e-2)


def test_rates(family: Any) -> None:
    unet, text = UNetSettings(lr=3e-5), TextEncoderSettings(lr=2e-6)
    assert [group.lr for group in attach(family, unet=unet, text_encoder=text)] == [3e-5, 2e-6]


@pytest.mark.parametrize(
    ("only", "marks"),
    [
        (["attention"], ("attn1.", "attn2.")),
        (["cross_attention"], ("attn2.",)),
        (["mid_block", "up_blocks.1.*"], ("mid_block.", "up_blocks.1.")),
    ],
)
def test_parts_of_the_unet(family: Any, only: list[str], marks: tuple[str, ...]) -> None:
    groups = attach(family, unet=UNetSettings(only=only), text_encoder=OFF["text_encoder"])
    expected = {name for name in all_of(family, "unet") if any(mark in name for mark in marks)}
    assert names(groups) == expected and expected
    step(family)
    assert with_gradients(family) == expected


def test_a_pattern_that_matches_nothing(family: Any) -> None:
    with pytest.raises(ConfigError, match=r"unet.only: 'up_block\..*' matches no module .* it has conv_in, "):
        attach(family, unet=UNetSettings(only=["attention", "up_block.*"]))


def test_embeddings_may_stay_frozen(family: Any) -> None:
    groups = attach(family, unet=OFF["unet"], text_encoder=TextEncoderSettings(train_embeddings=False))
    assert all_of(family, "text_encoder") - names(groups) == {
        n for n in all_of(family, "text_encoder") if "embedding" in n
    }


def test_clipping_covers_both_parts(family: Any) -> None:
    """Defect 6: elsewhere the text encoder's norm is never clipped."""
    groups = attach(family)
    parameters = [parameter for group in groups for parameter in group.parameters]
    step(family)
    parts = [torch.stack([p.grad.norm() for p in group.parameters]).norm() for group in groups]
    norm = float(torch.stack(parts).norm())
    assert min(parts) > 0
    launch = Launch(TrainSettings(precision="fp32"), [], seed=1)
    assert float(launch.clip(parameters, None)) == pytest.approx(norm, rel=1e-5)
    limit = 0.1 * float(min(parts))
    assert float(launch.clip(parameters, limit)) == pytest.approx(norm, rel=1e-5)
    after = [torch.stack([p.grad.norm() for p in group.parameters]).norm() for group in groups]
    for before, now in zip(parts, after, strict=True):
        assert float(now) == pytest.approx(float(before) * limit / norm, rel=1e-3)
    with_gradients(family)


def test_a_second_attach_forgets_the_first(family: Any) -> None:
    attach(family)
    groups = attach(family, text_encoder=OFF["text_encoder"])
    assert {g.part for g in groups} == {"unet"}
    assert not any(p.requires_grad for p in family.modules()["text_encoder"].parameters())
    assert isinstance(family.final_norm("text_encoder"), nn.LayerNorm)
