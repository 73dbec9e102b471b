"""LoRA, LoHa and LoKr: what they adapt, what their files hold, and that diffusers draws the same with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file
from teaching import attach, make_method

from everydream.errors import ConfigError
from everydream.formats import adapters
from everydream.methods.method import ParameterGroup
from everydream.methods.settings import LoraSettings, TextEncoderSettings, UNetSettings
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.sampling.sampler import sample_images
from everydream.seeding import torch_generator

EVERYTHING = ["attention", "feed_forward", "convolution"]
KINDS = ["lora", "loha", "lokr"]


def fresh(folder: Path) -> Any:
    return load(ModelSettings(path=str(folder)))


def pretend_trained(groups: list[ParameterGroup]) -> None:
    """Give every adapter weight a value, so that all of them change the picture."""
    for group in groups:
        for name, parameter in zip(group.names, group.parameters, strict=True):
            generator = torch_generator(len(name))
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)


def latents(family: Any) -> torch.Tensor:
    """What the networks say to a prompt."""
    with torch.no_grad():
        x = torch.randn(2, 4, 8, 8, generator=torch_generator(5))
        return family.predict(x, torch.tensor([7, 700]), family.encode_text(["a cat", "a dog on a chair"]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_changes_nothing_and_the_model_keeps_its_names(model_folder: Path, kind: str) -> None:
    plain, adapted = fresh(model_folder), fresh(model_folder)
    groups = attach(adapted, "lora", lora=LoraSettings(kind=kind, rank=2, targets=EVERYTHING))
    for module in adapted.modules().values():
        module.eval()
    assert torch.equal(latents(plain), latents(adapted))
    before, after = plain.single_file(), adapted.single_file()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    trained = {id(parameter) for group in groups for parameter in group.parameters}
    requires = {id(p) for m in adapted.modules().values() for p in m.parameters() if p.requires_grad}
    assert trained == requires
    again = attach(fresh(model_folder), "lora", lora=LoraSettings(kind=kind, rank=2, targets=EVERYTHING))
    for one, other in zip(groups, again, strict=True):
        assert one.names == other.names
        assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["attention"], {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "self_attn.q_proj"}),
        (["feed_forward"], {"ff.net.0.proj", "ff.net.2", "mlp.fc1", "mlp.fc2", "proj_in", "proj_out"}),
        (["convolution"], {"conv1", "conv2", "time_emb_proj", "conv_shortcut", "conv"}),
    ],
)
def test_targets(model_folder: Path, targets: Any, expected: set[str]) -> None:
    family = fresh(model_folder)
    groups = attach(family, "lora", lora=LoraSettings(rank=2, targets=targets))
    wrapped = {n for m in family.modules().values() for n, x in m.named_modules() if isinstance(x, BaseTunerLayer)}
    assert wrapped and all(any(name.endswith("." + end) for name in wrapped) for end in expected)
    others = {"attention": ".attn", "feed_forward": ".ff.", "convolution": ".resnets."}
    for other, mark in others.items():
        assert any(mark in name for name in wrapped) is (other in targets)
    assert [group.part for group in groups] == (["unet"] if targets == ["convolution"] else ["unet", "text_encoder"])


def test_parts_of_the_networks_may_be_left_out(model_folder: Path) -> None:
    unet, text = UNetSettings(only=["mid_block"]), TextEncoderSettings(train_last_layers=1)
    groups = attach(fresh(model_folder), "lora", unet=unet, text_encoder=text)
    assert {name.split(".")[1] for name in groups[0].names} == {"mid_block"}
    assert groups[1].names and all(".layers.1." in name for name in groups[1].names)


def test_nothing_to_adapt(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="convolution matches no layer of what trains"):
        attach(fresh(model_folder), "lora", lora=LoraSettings(targets=["convolution"]), unet=UNetSettings(train=False))


@pytest.mark.parametrize(
    ("model", "targets", "format_name"),
    [
        ("model_folder", ["attention"], "safetensors"),
        ("model_folder", EVERYTHING, "safetensors"),
        ("model_folder", EVERYTHING, "diffusers"),
        ("sd2_folder", EVERYTHING, "safetensors"),
    ],
)
def test_diffusers_draws_the_same_picture(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, targets: Any, format_name: str
) -> None:
    folder = request.getfixturevalue(model)
    family = fresh(folder)
    method = make_method("lora", lora=LoraSettings(rank=4, alpha=2.0, targets=targets))
    pretend_trained(method.attach(family, 0, []))
    (path,) = method.export(family, tmp_path / "adapter", format_name, torch.float32)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None)
    padded = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
    ids = pipeline.tokenizer(["a cat", "a dog on a chair"], **padded).input_ids
    with torch.no_grad():
        without = pipeline.text_encoder(ids).last_hidden_state
        place = {"weight_name": path.name} if path.is_file() else {}
        pipeline.load_lora_weights(path.parent if path.is_file() else path, **place)
        tokens = pipeline.text_encoder(ids).last_hidden_state
        x = torch.randn(2, 4, 8, 8, generator=torch_generator(5))
        theirs = pipeline.unet(x, torch.tensor([7, 700]), tokens).sample
    for module in family.modules().values():
        module.eval()
    assert not torch.allclose(without, tokens), "the text encoder's part is loaded too"
    torch.testing.assert_close(latents(family), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_written_matrices_are_the_change_of_the_output(model_folder: Path, tmp_path: Path, kind: str) -> None:
    """By the formulas of the papers, from the file alone."""
    family, base = fresh(model_folder), fresh(model_folder)
    method = make_method("lora", lora=LoraSettings(kind=kind, rank=2, alpha=1.0, targets=EVERYTHING))
    pretend_trained(method.attach(family, 0, []))
    (path,) = method.export(family, tmp_path / "adapter", "safetensors", torch.float32)
    names = {module: theirs for module, (theirs, _) in base.adapter_weights().items()}
    adapter, unknown = adapters.from_file(load_file(path), {}, names)
    assert not unknown and len(adapter) > 30
    layers = base.adapter_weights()
    for module, leaves in adapter.items():
        weight = layers[module][1]
        weight.data += adapters.delta(leaves).reshape(weight.shape)
    for module in family.modules().values():
        module.eval()
    torch.testing.assert_close(latents(family), latents(base), atol=2e-5, rtol=1e-5)


def test_kohya_names_and_metadata(model_folder: Path, tmp_path: Path) -> None:
    family = fresh(model_folder)
    method = make_method("lora", lora=LoraSettings(rank=4, alpha=2.0, targets=["attention", "feed_forward"]))
    method.attach(family, 0, [])
    (path,) = method.export(family, tmp_path / "adapter", "safetensors", torch.float16)
    with safe_open(path, "pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
        assert file.get_tensor("lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha").item() == 2.0
        down = file.get_tensor("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight")
    assert down.shape == (4, 64) and down.dtype == torch.float16
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("4", "2.0")
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in keys
    assert "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight" in keys
    assert {key.split(".")[0].split("_")[1] for key in keys} == {"unet", "te"}


def test_pictures_with_an_adapter_are_sampled_while_it_trains(model_folder: Path) -> None:
    family = fresh(model_folder)
    groups = attach(family, "lora", lora=LoraSettings(rank=4))
    size = {"width": 64, "height": 64, "steps": 2, "guidance": 3.0}
    before = sample_images(family, ["a cat"], [1], **size)[0]
    pretend_trained(groups)
    assert (sample_images(family, ["a cat"], [1], **size)[0] != before).any()
    assert all(p.dtype == torch.float32 for g in groups for p in g.parameters)
