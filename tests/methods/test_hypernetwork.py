"""Hypernetworks: AUTOMATIC1111's structure, file and place in attention."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from teaching import attach, make_method
from torch import nn
from torch.nn import functional

from everydream.errors import ConfigError, FormatError
from everydream.formats.embeddings import read_embedding, write_for_webui
from everydream.formats.hypernetworks import read_hypernetwork
from everydream.methods.hypernetwork import load_into
from everydream.methods.merging import merge_adapter
from everydream.methods.settings import HypernetworkSettings
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.models.write import write_model
from everydream.seeding import torch_generator


def fresh(folder: Path) -> Any:
    return load(ModelSettings(path=str(folder)))


def prediction(family: Any) -> torch.Tensor:
    for module in family.modules().values():
        module.eval()
    with torch.no_grad():
        x = torch.randn(2, 4, 8, 8, generator=torch_generator(5))
        return family.predict(x, torch.tensor([7, 700]), family.encode_text(["a cat", "a dog"], []))


def exported(folder: Path, out: Path, **settings: Any) -> tuple[Any, Path]:
    """Return a family whose hypernetwork has random weights, and its file."""
    family = fresh(folder)
    method = make_method("hypernetwork", hypernetwork=HypernetworkSettings(**settings))
    for group in method.attach(family, 0, []):
        for parameter in group.parameters:
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch_generator(parameter.numel())) * 0.1)
    (path,) = method.export(family, out / "hyper", "pt", torch.float32)
    return family, path


class ByTheFile:
    """Attention as the web UI computes it with a hypernetwork, written out from the file's contents."""

    def __init__(self, contents: dict[Any, Any], activation: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.contents, self.activation = contents, activation

    def residual(self, x: torch.Tensor, number: int) -> torch.Tensor:
        pair = self.contents.get(x.shape[2])
        if pair is None:
            return x
        state, y = pair[number], x
        layers = sorted({int(key.split(".")[1]) for key in state})
        for layer in layers:
            weight, bias = state[f"linear.{layer}.weight"], state[f"linear.{layer}.bias"]
            if weight.dim() == 1:
                y = functional.layer_norm(y, weight.shape, weight, bias)
            else:
                y = functional.linear(y, weight, bias)
                more = any(state[f"linear.{later}.weight"].dim() == 2 for later in layers if later > layer)
                y = self.activation(y) if more or self.contents["activate_output"] else y
        return x + y

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **_: Any) -> Any:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(self.residual(context, 0)))
        value = attn.head_to_batch_dim(attn.to_v(self.residual(context, 1)))
        out = attn.batch_to_head_dim((query @ key.transpose(1, 2) * attn.scale).softmax(-1) @ value)
        return attn.to_out[1](attn.to_out[0](out))


@pytest.mark.parametrize(
    ("settings", "activation"),
    [
        ({}, lambda y: y),
        ({"activation": "swish", "layer_structure": [1, 1.5, 2, 1], "dropout": [0, 0.3, 0.3, 0]}, functional.hardswish),
        ({"activation": "relu", "layer_norm": True, "activate_output": True}, functional.relu),
    ],
)
def test_applied_as_in_the_web_ui(model_folder: Path, tmp_path: Path, settings: Any, activation: Any) -> None:
    family, path = exported(model_folder, tmp_path, **settings)
    contents = torch.load(path, weights_only=True)
    assert contents["layer_structure"] == settings.get("layer_structure", [1, 2, 1])
    assert contents["activation_func"] == settings.get("activation", "linear")
    assert contents["name"] == "trial" and contents["is_layer_norm"] is settings.get("layer_norm", False)
    reference = fresh(model_folder)
    plain = prediction(reference)
    reference.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(prediction(reference), plain, atol=1e-5, rtol=1e-5)
    reference.unet.set_attn_processor(ByTheFile(contents, activation))
    found = prediction(family)
    torch.testing.assert_close(found, prediction(reference), atol=2e-5, rtol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)
    loaded = fresh(model_folder)
    load_into(loaded, path, 1.0)
    assert torch.equal(prediction(loaded), found)


def test_another_kind_of_file_is_told_apart(model_folder: Path, tmp_path: Path) -> None:
    _, hyper = exported(model_folder, tmp_path)
    write_for_webui(tmp_path / "word.pt", "<rex>", torch.zeros(2, 64))
    family = fresh(model_folder)
    method = make_method("lora")
    method.attach(family, 0, [])
    (lora,) = method.export(family, tmp_path / "lora", "safetensors", torch.float32)
    model = write_model(family, tmp_path / "model", "safetensors", torch.float16)
    kinds = {hyper: "a hypernetwork", tmp_path / "word.pt": "a textual-inversion embedding", lora: "an adapter",
             model: "a whole model"}  # fmt: skip
    readers = {
        hyper: read_hypernetwork, tmp_path / "word.pt": read_embedding,
        lora: lambda path: merge_adapter(fresh(model_folder), path),
    }  # fmt: skip
    for own, read in readers.items():
        read(own)
        for other, kind in kinds.items():
            if other != own:
                with pytest.raises(FormatError, match=f"{other.name}.* It is {kind}"):
                    read(other)


def test_strength(model_folder: Path, tmp_path: Path) -> None:
    _, path = exported(model_folder, tmp_path)
    plain, off = fresh(model_folder), fresh(model_folder)
    load_into(off, path, 0.0)
    assert torch.equal(prediction(off), prediction(plain))
    half, whole = fresh(model_folder), fresh(model_folder)
    load_into(half, path, 0.5)
    load_into(whole, path, 1.0)
    to_half, to_whole = ((prediction(f) - prediction(plain)).norm() for f in (half, whole))
    assert 0 < to_half < to_whole


def test_only_the_networks_train_and_the_model_keeps_its_tensors(model_folder: Path) -> None:
    plain, family = fresh(model_folder), fresh(model_folder)
    (group,) = attach(family, "hypernetwork", hypernetwork=HypernetworkSettings(layer_structure=[1, 2, 1]))
    before, after = plain.single_file(), family.single_file()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(".hypernetwork." in f".{name}" for name in group.names)
    # Widths 32 (the first level) and 64 (the middle, and the prompt); keys and values; two layers with biases.
    expected = 2 * sum(w * 2 * w + 2 * w + 2 * w * w + w for w in (32, 64))
    assert sum(parameter.numel() for parameter in group.parameters) == expected
    weights = torch.cat([p.flatten() for n, p in zip(group.names, group.parameters, strict=True) if "weight" in n])
    assert float(weights.detach().std()) == pytest.approx(0.01, rel=0.05)
    (one,) = attach(fresh(model_folder), "hypernetwork", hypernetwork=HypernetworkSettings(widths=[64]))
    assert {name.split(".")[3] for name in one.names} == {"64"}


def test_each_way_of_starting_is_another(model_folder: Path) -> None:
    def first_weights(init: str) -> torch.Tensor:
        settings = HypernetworkSettings(init=init, widths=[64])
        (group,) = attach(fresh(model_folder), "hypernetwork", hypernetwork=settings)
        named = dict(zip(group.names, group.parameters, strict=True))
        assert all(not parameter.any() for name, parameter in named.items() if name.endswith("bias"))
        return named["unet.hypernetwork.keys.64.linear.0.weight"].detach()

    # Of a layer from 64 to 128: Xavier's variance is 2 / (64 + 128), Kaiming's 2 / 64.
    expected = {"normal": 0.01, "xavier_uniform": (2 / 192) ** 0.5, "xavier_normal": (2 / 192) ** 0.5,
                "kaiming_uniform": (2 / 64) ** 0.5, "kaiming_normal": (2 / 64) ** 0.5}  # fmt: skip
    found = {init: first_weights(init) for init in expected}
    for init, deviation in expected.items():
        assert float(found[init].std()) == pytest.approx(deviation, rel=0.05)
        is_bounded = float(found[init].abs().max()) <= 3**0.5 * deviation + 1e-6
        assert is_bounded is init.endswith("uniform")


def test_old_files_are_read(tmp_path: Path, model_folder: Path) -> None:
    """Before layer structures: linear1, linear2, and nothing said of how it is built."""

    def old(width: int) -> dict[str, torch.Tensor]:
        made = nn.Sequential(nn.Linear(width, 2 * width), nn.Linear(2 * width, width))
        return {f"linear{int(k[0]) + 1}.{k[2:]}": tensor for k, tensor in made.state_dict().items()}

    torch.save({width: (old(width), old(width)) for width in (32, 64)}, tmp_path / "old.pt")
    file = read_hypernetwork(tmp_path / "old.pt")
    assert file.layer_structure == (1, 2, 1) and file.activation == "linear"
    assert set(file.weights[32][0]) == {f"linear.{i}.{part}" for i in (0, 1) for part in ("weight", "bias")}
    family = fresh(model_folder)
    load_into(family, tmp_path / "old.pt", 1.0)
    assert not torch.allclose(prediction(family), prediction(fresh(model_folder)), atol=1e-3)


def test_dropout_of_before_its_shares_could_be_chosen(tmp_path: Path) -> None:
    state = {"linear.0.weight": torch.zeros(1)}
    common = {32: (state, state), "layer_structure": [1, 2, 2, 2, 1], "use_dropout": True}
    torch.save(common, tmp_path / "a.pt")
    torch.save({**common, "last_layer_dropout": True}, tmp_path / "b.pt")
    assert read_hypernetwork(tmp_path / "a.pt").dropout == (0, 0.3, 0.3, 0, 0)
    assert read_hypernetwork(tmp_path / "b.pt").dropout == (0, 0.3, 0.3, 0.3, 0)


@pytest.mark.parametrize(
    "damage",
    [{"layer_structure": "abc"}, {"layer_structure": 5}, {"layer_structure": [1]}, {"dropout_structure": [0, 0.5]},
     {"dropout_structure": [0, 1.5, 0]}, {"activation_func": "glu"}],
)  # fmt: skip
def test_damaged_files(model_folder: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    _, path = exported(model_folder, tmp_path)
    torch.save({**torch.load(path, weights_only=True), **damage}, path)
    with pytest.raises(FormatError, match=r"hyper.pt"):
        load_into(fresh(model_folder), path, 1.0)


def test_what_does_not_fit(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="widths: 320: this model's attention has the widths 32, 64"):
        attach(fresh(model_folder), "hypernetwork", hypernetwork=HypernetworkSettings(widths=[64, 320]))
    with pytest.raises(ConfigError, match="the activation 'gelo' is not known; known are celu, elu, gelu"):
        attach(fresh(model_folder), "hypernetwork", hypernetwork=HypernetworkSettings(activation="gelo"))
    state = {"linear.0.weight": torch.zeros(320, 320), "linear.0.bias": torch.zeros(320)}
    torch.save({320: (state, state), "layer_structure": [1, 1]}, tmp_path / "sd.pt")
    with pytest.raises(FormatError, match=r"another architecture: its networks have the widths \[320\]"):
        load_into(fresh(model_folder), tmp_path / "sd.pt", 1.0)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "model.ckpt")
    with pytest.raises(FormatError, match="model.ckpt is no hypernetwork"):
        load_into(fresh(model_folder), tmp_path / "model.ckpt", 1.0)
    with pytest.raises(ValueError, match="must begin and end with 1"):
        HypernetworkSettings(layer_structure=[1, 2])
