"""LoRA, LoHa and LoKr: what they adapt, what their files hold, and that diffusers draws the same with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
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
        return family.predict(x, torch.tensor([7, 700]), family.encode_text(["a cat", "a dog on a chair"], []))


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
        weight.data += adapters.delta(leaves, weight.shape)
    for module in family.modules().values():
        module.eval()
    torch.testing.assert_close(latents(family), latents(base), atol=2e-5, rtol=1e-5)


def adapted_by(folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> torch.Tensor:
    """Return what the networks say with an adapter from a file."""
    base = fresh(folder)
    weights = base.adapter_weights()
    adapter, unknown = adapters.from_file(
        tensors, metadata, {module: theirs for module, (theirs, _) in weights.items()}
    )
    assert not unknown and adapter
    for module, leaves in adapter.items():
        weights[module][1].data += adapters.delta(leaves, weights[module][1].shape)
    return latents(base)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"alpha_pattern": {"attn2.to_q": 9.0}}])
def test_files_by_diffusers_own_writer(model_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Scales that its metadata tells, and the same without a part's name or under peft's."""
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, local_files_only=True, safety_checker=None)
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False, **options)
    pipeline.unet.add_adapter(config)
    layers = get_peft_model_state_dict(pipeline.unet)
    described = {
        "unet_lora_adapter_metadata": _collate_lora_metadata({"unet": pipeline.unet})["unet_lora_adapter_metadata"]
    }
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **described)
    ids = pipeline.tokenizer(["a cat", "a dog on a chair"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        x = torch.randn(2, 4, 8, 8, generator=torch_generator(5))
        theirs = pipeline.unet(x, torch.tensor([7, 700]), pipeline.text_encoder(ids).last_hidden_state).sample
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    torch.testing.assert_close(adapted_by(model_folder, tensors, metadata), theirs, atol=2e-5, rtol=1e-5)
    bare = {key.removeprefix("unet."): tensor for key, tensor in tensors.items()}
    by_peft = {f"base_model.model.{key}": tensor for key, tensor in bare.items()}
    for spelled in (bare, by_peft):
        torch.testing.assert_close(adapted_by(model_folder, spelled, metadata), theirs, atol=2e-5, rtol=1e-5)


def test_what_is_no_matrix_of_ours_is_not_passed_over(model_folder: Path) -> None:
    weights = fresh(model_folder).adapter_weights()
    names = {module: theirs for module, (theirs, _) in weights.items()}
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    plain = {"lora_down.weight": torch.zeros(2, 64), "lora_up.weight": torch.zeros(64, 2)}
    kohya = {f"{names[module]}.{leaf}": tensor for leaf, tensor in plain.items()}
    for leaf in ("diff_b", "scalar", "dora_scale"):
        assert adapters.from_file({**kohya, f"{names[module]}.{leaf}": torch.ones(1)}, {}, names)[1]
    odd = {
        "another shape of as many": {"lora_down.weight": torch.zeros(2, 32), "lora_up.weight": torch.zeros(128, 2)},
        "alpha of two": {**plain, "alpha": torch.ones(2)},
        "rank 0": {
            "lora_down.weight": torch.zeros(0, 64),
            "lora_up.weight": torch.zeros(64, 0),
            "alpha": torch.ones(()),
        },
        "a row": {**plain, "lora_down.weight": torch.zeros(64)},
        "half of it": {"lora_down.weight": torch.zeros(2, 64)},
    }
    for leaves in odd.values():
        with pytest.raises(ValueError, match=r"."):
            adapters.delta(leaves, (64, 64))
    assert adapters.delta(plain, (64, 64)).shape == (64, 64)
    for metadata in ("[]", "not JSON", '{"unet.lora_alpha": null}', '{"unet.alpha_pattern": [1]}'):
        assert not adapters.from_file(kohya, {"lora_adapter_metadata": metadata}, names)[1]


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
