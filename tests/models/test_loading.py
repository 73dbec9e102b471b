"""What is loaded: folders and single files, their names, their configurations, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from everydream.errors import ConfigError, FormatError
from everydream.formats.files import write_safetensors
from everydream.models import sd1, sd2
from everydream.models.common import infer, layout, text_keys, tokenizer_files
from everydream.models.common.reading import has_weights
from everydream.models.load import load, restore
from everydream.models.settings import ModelSettings

KINDS = ["sd1", "sd2"]


def loaded(path: Path | str, **settings: Any) -> Any:
    return load(ModelSettings(path=str(path), **settings))


@pytest.fixture(scope="module")
def folders(model_folder: Path, sd2_folder: Path) -> dict[str, Path]:
    return {"sd1": model_folder, "sd2": sd2_folder}


@pytest.fixture(scope="module")
def singles(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Single files as others write them: without our metadata."""
    folder = tmp_path_factory.mktemp("singles")
    paths = {}
    for kind in KINDS:
        paths[kind] = folder / f"{kind}.safetensors"
        write_safetensors(paths[kind], loaded(folders[kind]).single_file())
    return paths


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind="sd1": Path(shutil.copytree(folders[kind], tmp_path / f"model_{kind}"))


def assert_same_networks(ours: Any, theirs: Any) -> None:
    for name, module in ours.modules().items():
        reference = theirs.modules()[name] if hasattr(theirs, "modules") else getattr(theirs, name)
        expected = reference.state_dict()
        state = module.state_dict()
        assert state.keys() == expected.keys()
        for key, tensor in state.items():
            assert tensor.dtype == torch.float32 and torch.equal(tensor, expected[key].float()), key


class Pipeline:
    """A diffusers pipeline's networks, by part."""

    def __init__(self, pipeline: Any) -> None:
        self.parts = {name: getattr(pipeline, name) for name in ("unet", "text_encoder", "vae")}

    def modules(self) -> dict[str, Any]:
        return self.parts


# --- folders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("old_names", [True, False])
def test_a_folder_is_what_diffusers_loads(tmp_path: Path, kind: str, old_names: bool) -> None:
    """Defect 27: text encoders come with and without the `text_model.` level; both are read."""
    tiny.save_pipeline(tmp_path / "m", kind, seed=3, old_names=old_names)
    weights = load_file(tmp_path / "m" / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in weights) is old_names
    family = loaded(tmp_path / "m")
    assert_same_networks(family, Pipeline(StableDiffusionPipeline.from_pretrained(tmp_path / "m")))
    text = family.modules()["text_encoder"].state_dict()
    level = "text_model." if old_names else ""
    assert torch.equal(text[min(text)], weights[level + min(text).removeprefix("text_model.")])
    assert family.name == kind
    assert family.objective.prediction == {"sd1": "epsilon", "sd2": "v"}[kind]
    assert (family.spatial_factor, family.max_tokens) == (8, 77)
    assert not any(module.training for module in family.modules().values())


@pytest.mark.parametrize("variant", ["bin", "fp16", "fp16 bin"])
def test_other_weight_files_of_a_folder(copied: Callable[..., Path], folders: dict[str, Path], variant: str) -> None:
    folder = copied()
    for path in list(folder.glob("*/*.safetensors")):
        state = load_file(path)
        path.unlink()
        middle = ".fp16" if "fp16" in variant else ""
        state = {k: v.half() if middle else v for k, v in state.items()}
        if "bin" in variant:
            stem = "pytorch_model" if path.stem == "model" else path.stem
            torch.save(state, path.with_name(f"{stem}{middle}.bin"))
        else:
            save_file(state, path.with_name(f"{path.stem}{middle}.safetensors"), {"format": "pt"})
    family, original = loaded(folder), loaded(folders["sd1"])
    for name, module in original.modules().items():
        state = family.modules()[name].state_dict()
        for key, tensor in module.state_dict().items():
            expected = tensor.half().float() if "fp16" in variant else tensor
            assert state[key].dtype == torch.float32 and torch.equal(state[key], expected)


def test_the_prediction_can_be_set(folders: dict[str, Path], singles: dict[str, Path]) -> None:
    assert loaded(folders["sd1"], prediction="v").objective.prediction == "v"
    assert loaded(singles["sd1"], prediction="v").objective.prediction == "v"
    assert loaded(folders["sd2"], prediction="epsilon").objective.prediction == "epsilon"
    assert (
        loaded(singles["sd2"], prediction="epsilon")
        .sampling_scheduler("ddim", 1, (8, 8), torch.device("cpu"))
        .config.prediction_type
        == "epsilon"
    )


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_without_a_component(copied: Callable[..., Path], part: str) -> None:
    folder = copied()
    shutil.rmtree(folder / part)
    with pytest.raises(FormatError, match=re.escape(str(folder))) as error:
        loaded(folder)
    assert part in str(error.value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("how", ["weights", "config", "tensor", "shape", "truncated", "empty"])
def test_a_folder_that_is_not_whole_is_an_error_and_not_random_weights(
    copied: Callable[..., Path], part: str, how: str
) -> None:
    folder = copied()
    weights = next((folder / part).glob("*.safetensors"))
    state = load_file(weights)
    key = sorted(state)[-1]
    if how == "weights":
        weights.unlink()
    elif how == "config":
        (folder / part / "config.json").unlink()
    elif how == "tensor":
        save_file({k: v for k, v in state.items() if k != key}, weights, {"format": "pt"})
    elif how == "shape":
        save_file({**state, key: torch.zeros(3)}, weights, {"format": "pt"})
    else:
        weights.write_bytes(weights.read_bytes()[: 2000 if how == "truncated" else 0])
    with pytest.raises(FormatError, match=re.escape(str(folder))) as error:
        loaded(folder)
    if how == "tensor":
        assert key.removeprefix("text_model.") in str(error.value) and "lacks 1 tensors" in str(error.value)


def test_a_hostile_weight_file_in_a_folder_does_not_run(copied: Callable[..., Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "marker",))

    folder = copied()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Evil()}, folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(FormatError, match=re.escape(str(folder))):
        loaded(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ({"_class_name": "PixArtAlphaPipeline"}, "is a PixArtAlphaPipeline"),
        ({"_class_name": None}, "is a None"),
        ({}, "is a None"),
    ],
)
def test_a_folder_of_another_pipeline(copied: Callable[..., Path], index: dict[str, Any], said: str) -> None:
    folder = copied()
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=f"{said}, and the families .* are Stable Diffusion 1.x, 2.x, XL and 3"):
        loaded(folder)


@pytest.mark.parametrize(("content", "said"), [("{", "is not valid JSON"), ("[]", "should hold a JSON object")])
def test_a_broken_index(copied: Callable[..., Path], content: str, said: str) -> None:
    folder = copied()
    (folder / "model_index.json").write_text(content)
    with pytest.raises(FormatError, match=f"model_index.json {said}"):
        loaded(folder)


@pytest.mark.parametrize(
    "odd",
    [
        {"prediction_type": "sample"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": [0.1, 0.2]},
    ],
)
def test_a_schedule_that_would_be_trained_wrongly_is_refused(copied: Callable[..., Path], odd: dict[str, Any]) -> None:
    folder = copied()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    with pytest.raises(FormatError, match=f"scheduler_config.json asks for {next(iter(odd))}"):
        loaded(folder)


def test_a_folder_with_inputs_that_nobody_knows(copied: Callable[..., Path]) -> None:
    folder = copied()
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 8}))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    save_file({**state, "conv_in.weight": torch.zeros(32, 8, 3, 3)}, weights)
    with pytest.raises(FormatError, match="is an unusual model: its UNet takes 8 channels.*4 or 5 or 9 can be trained"):
        loaded(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "lacks merges.txt and vocab.json"),
        ({"vocab.json": "{}"}, "lacks merges.txt, and has no tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer cannot be read"),
        ({"tokenizer.json": '{"model": {}}'}, "tokenizer cannot be read"),
    ],
)
def test_a_tokenizer_folder_that_is_not_whole(copied: Callable[..., Path], content: dict[str, str], said: str) -> None:
    folder = copied()
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    for name, text in content.items():
        (folder / "tokenizer" / name).write_text(text)
    with pytest.raises(FormatError, match=said):
        loaded(folder)


# --- single files


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_gives_the_folder_s_networks(
    folders: dict[str, Path], singles: dict[str, Path], kind: str
) -> None:
    whole, single = loaded(folders[kind]), loaded(singles[kind], prediction={"sd1": "epsilon", "sd2": "v"}[kind])
    assert_same_networks(single, whole)
    assert single.name == kind and not single.extras
    ours, theirs = single.description(), whole.description()
    assert ours["tokenizer"] == {}
    assert ours["scheduler"] == theirs["scheduler"]
    for part in ("unet", "vae", "text_encoder"):
        different = {key for key, value in theirs[part].items() if ours[part].get(key) != value}
        # Sizes that the weights do not depend on, and special tokens that the text encoder itself never uses.
        assert different <= {"sample_size", "bos_token_id", "eos_token_id", "pad_token_id", "architectures"}, part
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 800])
    with torch.no_grad():
        torch.testing.assert_close(
            single.predict(x, t, single.encode_text(["a cat", ""], [])),
            whole.predict(x, t, whole.encode_text(["a cat", ""], [])),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["v2-768.ckpt", "sd_xl_base.pt", "no ending"])
def test_the_file_s_name_decides_nothing(tmp_path: Path, singles: dict[str, Path], kind: str, name: str) -> None:
    shutil.copy(singles[kind], tmp_path / name)
    assert loaded(tmp_path / name).name == kind
    torch.save({"state_dict": load_file(singles[kind])}, tmp_path / name)
    assert loaded(tmp_path / name).name == kind


def test_an_sd1_file_without_the_level_in_its_text_encoder(tmp_path: Path, singles: dict[str, Path]) -> None:
    state = {key.replace(".text_model.", "."): tensor for key, tensor in load_file(singles["sd1"]).items()}
    save_file(state, tmp_path / "m.safetensors")
    assert_same_networks(loaded(tmp_path / "m.safetensors"), loaded(singles["sd1"]))


def test_the_prediction_of_sd2_from_the_telltale_or_the_metadata(tmp_path: Path) -> None:
    key = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    assert sd2.prediction_of({key: torch.tensor([-0.1, 0.1])}) == "v"
    assert sd2.prediction_of({key: torch.tensor([-0.08, 0.08]).half()}) == "epsilon"
    assert sd2.prediction_of({}) == "epsilon"
    assert sd1.prediction_of({key: torch.tensor([-0.1, 0.1])}) == "epsilon"


@pytest.mark.parametrize("said", ["v", "epsilon"])
def test_the_prediction_from_modelspec(tmp_path: Path, singles: dict[str, Path], said: str) -> None:
    write_safetensors(tmp_path / "m.safetensors", load_file(singles["sd2"]), {"modelspec.prediction_type": said})
    assert loaded(tmp_path / "m.safetensors").objective.prediction == said


def test_the_configuration_may_come_from_a_folder_without_weights(
    tmp_path: Path, folders: dict[str, Path], singles: dict[str, Path]
) -> None:
    shutil.copytree(folders["sd2"], tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    family = loaded(singles["sd2"], config=str(tmp_path / "config"))
    assert family.objective.prediction == "v"
    assert_same_networks(family, loaded(folders["sd2"]))
    with pytest.raises(FormatError, match="does not hold a whole model of the family sd1") as error:
        loaded(singles["sd1"], config=str(tmp_path / "config"))
    assert "model.config" in str(error.value)


@pytest.mark.parametrize(
    "metadata",
    ["not json", "[1]", "{}", '{"model": 5}', '{"model": {"unet": {}}}', '{"model": {"unet": 1, "vae": 1}}'],
)
def test_metadata_under_our_name_that_is_not_ours(tmp_path: Path, singles: dict[str, Path], metadata: str) -> None:
    write_safetensors(tmp_path / "m.safetensors", load_file(singles["sd1"]), {"everydream": metadata})
    assert loaded(tmp_path / "m.safetensors").name == "sd1"


@pytest.mark.parametrize("change", ["unet", "text_encoder", "scheduler", "empty"])
def test_a_description_that_does_not_fit(tmp_path: Path, singles: dict[str, Path], change: str) -> None:
    model = loaded(singles["sd1"]).description()
    model["unet"] |= {"block_out_channels": "many"} if change == "unet" else {}
    model["text_encoder"] |= {"num_hidden_layers": "two"} if change == "text_encoder" else {}
    model["scheduler"] |= {"beta_schedule": "unheard of"} if change == "scheduler" else {}
    model |= {"scheduler": {}} if change == "empty" else {}
    write_safetensors(
        tmp_path / "m.safetensors", load_file(singles["sd1"]), {"everydream": json.dumps({"model": model})}
    )
    with pytest.raises(FormatError, match="m.safetensors does not hold a whole model"):
        loaded(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "name", ["../../escaped.json", "/{tmp}/escaped.txt", "..", "a/b.json", "C:\\evil.json", "x.py"]
)
def test_a_tokenizer_in_a_file_cannot_be_written_elsewhere(tmp_path: Path, singles: dict[str, Path], name: str) -> None:
    """Our own files carry a custom tokenizer; a downloaded one could name any path."""
    model = loaded(singles["sd1"]).description()
    model["tokenizer"] = {name.replace("{tmp}", str(tmp_path)): "{}"}
    write_safetensors(
        tmp_path / "m.safetensors", load_file(singles["sd1"]), {"everydream": json.dumps({"model": model})}
    )
    with pytest.raises(FormatError, match="is not the name of a tokenizer file"):
        loaded(tmp_path / "m.safetensors")
    assert not (tmp_path / "escaped.txt").exists()


def refiner(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "conditioner.embedders.0.model.positional_embedding": torch.ones(1)}


def with_channels(count: int) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    key = "model.diffusion_model.input_blocks.0.0.weight"
    return lambda state: {**state, key: torch.zeros(32, count, 3, 3)}


REFUSED = {
    "refiner": (refiner, "is SDXL's refiner, which has one text encoder"),
    "depth": (with_channels(5), "is a depth model without a depth estimator that can be read here"),
    "upscaler": (with_channels(7), "is an unusual model: its UNet takes 7 channels"),
    "LoRA": (lambda state: {"lora_unet_mid_block.lora_up.weight": torch.ones(1)}, r"\(it has lora_unet.*A LoRA"),
    "VAE": (lambda state: {k: v for k, v in state.items() if k.startswith("first_stage")}, "A LoRA, a VAE or"),
    "no UNet": (
        lambda state: {k: v for k, v in state.items() if "diffusion_model" not in k},
        "is not a checkpoint of Stable",
    ),
    "no VAE": (lambda state: {k: v for k, v in state.items() if "first_stage" not in k}, "cannot be made out"),
    "a tensor": (lambda state: {k: v for k, v in state.items() if not k.endswith("out.2.bias")}, "conv_out.bias"),
    "a shape": (
        lambda state: {**state, "model.diffusion_model.time_embed.0.bias": torch.ones(3)},
        "time_embedding.linear_1.bias",
    ),
    "half a UNet": (lambda state: {k: v for k, v in state.items() if "middle_block" not in k}, "cannot be made out"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", REFUSED)
def test_single_files_that_are_refused(tmp_path: Path, singles: dict[str, Path], kind: str, what: str) -> None:
    change, said = REFUSED[what]
    save_file(change(load_file(singles[kind])), tmp_path / "m.safetensors")
    with pytest.raises(FormatError, match=said) as error:
        loaded(tmp_path / "m.safetensors")
    assert str(tmp_path / "m.safetensors") in str(error.value)


# --- nothing there


@pytest.mark.parametrize("path", ["models/sd.safetensors", "./org/name", "/no/where", "one/two/three", "name"])
def test_a_missing_path(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"model\.path: there is nothing at .*Give a diffusers folder") as error:
        loaded(path)
    assert str(Path(path).absolute()) in str(error.value)


@pytest.mark.parametrize("problem", [ConnectionError("no route\nlong"), OSError(""), ValueError("bad id")])
def test_a_hub_id_that_cannot_be_downloaded(
    problem: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise problem

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"as a hub id 'org/name' could not be downloaded") as error:
        loaded("org/name")
    assert "\n" not in str(error.value) and "network" in str(error.value)


def test_a_hub_id_is_its_snapshot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folders: dict[str, Path]) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kwargs: str(folders["sd1"]))
    assert loaded("org/name").name == "sd1"


# --- tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["folders", "singles"])
def test_tokens(kind: str, source: str, request: pytest.FixtureRequest) -> None:
    family = loaded(request.getfixturevalue(source)[kind])
    tokens = family.clips["text_encoder"].tokenize(["a photo of a cat"])[0].tolist()
    assert tokens[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(tokens[7:]) == {0 if kind == "sd2" else 49407} and len(tokens) == 77
    assert family.clips["text_encoder"].tokenize(["cat " * 100]).shape == (1, 77)
    count = tokenizer_files.token_counter()
    assert count("a photo of a cat") == 7 and count("cat " * 100) == 102


@pytest.mark.parametrize("kind", KINDS)
def test_a_custom_tokenizer_survives(copied: Callable[..., Path], kind: str) -> None:
    folder = copied(kind)
    shutil.rmtree(folder / "tokenizer")
    tokenizer = tiny.tokenizer(kind)
    tokenizer.add_tokens(["<zwx>"])
    tokenizer.save_pretrained(folder / "tokenizer")
    family = loaded(folder)
    token = family.clips["text_encoder"].tokenize(["a <zwx>"])[0, 2].item()
    assert token == 49408
    plain = json.loads(json.dumps(family.description()))
    again = restore(family.single_file(), plain, Path("last.ckpt"))
    assert (
        again.clips["text_encoder"].tokenize(["a <zwx>"]).tolist()
        == family.clips["text_encoder"].tokenize(["a <zwx>"]).tolist()
    )
    assert {"vocab.json", "merges.txt"} <= set(plain["tokenizer"])
    assert_same_networks(again, family)


# --- the released models' shapes


UNET = {"block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "sample_size": 64}
TEXT = {"max_position_embeddings": 77, "vocab_size": 49408}
RELEASED: dict[str, dict[str, Any]] = {
    "sd1": {
        "unet": {**UNET, "cross_attention_dim": 768, "attention_head_dim": 8},
        "text": {**TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
                 "num_attention_heads": 12, "projection_dim": 768, "hidden_act": "quick_gelu"},
        "counts": (859_520_964, 123_060_480, 83_653_863),
        "tensors": (686, 196, 248),
        "module": sd1,
    },
    "sd2": {
        "unet": {**UNET, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
                 "use_linear_projection": True},
        "text": {**TEXT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
                 "num_attention_heads": 16, "projection_dim": 512, "hidden_act": "gelu"},
        "counts": (865_910_724, 340_387_840, 83_653_863),
        "tensors": (686, 4 + 12 * 23, 248),
        "module": sd2,
    },
}  # fmt: skip
KNOWN = {
    "sd1": [
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.2.1.conv.bias",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        "first_stage_model.decoder.up.3.block.2.conv2.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
        "first_stage_model.quant_conv.weight",
    ],
    "sd2": [
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight",
        "cond_stage_model.model.transformer.resblocks.0.mlp.c_fc.bias",
        "cond_stage_model.model.positional_embedding",
        "cond_stage_model.model.ln_final.weight",
        "cond_stage_model.model.token_embedding.weight",
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias",
    ],
}
VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip


def shapes(state: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_released_shapes_are_named_and_recognised(kind: str) -> None:
    released = RELEASED[kind]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**released["unet"])
        vae = AutoencoderKL(**VAE)
        text = CLIPTextModel(CLIPTextConfig(**released["text"]))
    networks = (unet, text, vae)
    assert tuple(sum(p.numel() for p in network.parameters()) for network in networks) == released["counts"]
    parts = (
        layout.to_single(unet.state_dict(), layout.unet_pairs(unet.config), layout.UNET_PREFIX),
        released["module"].KIND.texts[0].to_single(text_keys.without_level(text.state_dict())),
        layout.to_single(vae.state_dict(), layout.vae_pairs(vae.config), layout.VAE_PREFIX),
    )
    assert tuple(len(part) for part in parts) == released["tensors"]
    single = {**parts[0], **parts[1], **parts[2]}
    assert set(KNOWN[kind]) <= single.keys()
    assert shapes(single)["first_stage_model.encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    if kind == "sd1":
        assert shapes(single)[KNOWN["sd1"][0]] == (320, 768)
    else:
        # As released: OpenCLIP's 24th layer and projection lie beside what is used.
        layer = "cond_stage_model.model.transformer.resblocks."
        single |= {k.replace(".22.", ".23."): v for k, v in single.items() if k.startswith(f"{layer}22.")}
        single["cond_stage_model.model.text_projection"] = torch.empty(1024, 1024, device="meta")
    module = released["module"]
    assert [m.matches(single) for m in (sd1, sd2)] == [kind == "sd1", kind == "sd2"]
    with torch.device("meta"):
        again = (
            UNet2DConditionModel(**infer.unet_config(single, 64)),
            CLIPTextModel(CLIPTextConfig(**module.KIND.texts[0].config_of(single))),
            AutoencoderKL(**infer.vae_config(single, 0.18215)),
        )
    for network, inferred in zip(networks, again, strict=True):
        assert shapes(network.state_dict()) == shapes(inferred.state_dict())
    heads = {m[0]: m[1].heads for m in unet.named_modules() if hasattr(m[1], "heads")}
    assert heads == {m[0]: m[1].heads for m in again[0].named_modules() if hasattr(m[1], "heads")}
    config = released["module"].KIND.texts[0].config_of(single)
    for key in ("num_attention_heads", "num_hidden_layers", "hidden_act", "intermediate_size"):
        assert config[key] == released["text"][key]
    if kind == "sd2":
        converted = {k: v for k, v in single.items() if ".resblocks.23." not in k and "text_projection" not in k}
        assert module.KIND.texts[0].config_of(converted)["num_hidden_layers"] == 23
        back = text_keys.open_clip_from_single(single, 23)
        assert shapes(back) == shapes(text_keys.without_level(text.state_dict()))


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_the_usual_vocabulary_is_not_carried_along_whoever_saved_it(copied: Callable[..., Path], kind: str) -> None:
    """transformers saves it as one tokenizer.json; checkpoints would grow by megabytes of it."""
    family = load(ModelSettings(path=str(copied(kind))))
    assert family.description()["tokenizer"] == {}


@pytest.mark.parametrize(("files", "whole", "half"), [
    (["model.safetensors"], True, False),
    (["model.safetensors.index.json", "model.fp16.safetensors"], True, True),
    (["diffusion_pytorch_model.safetensors.index.fp16.json"], False, True),
    (["model.fp16.safetensors.index.json"], False, True),
    (["pytorch_model.bin.index.json"], True, False),
    (["config.json"], False, False),
])  # fmt: skip
def test_weights_in_several_files_are_seen_beside_half_precision(
    tmp_path: Path, files: list[str], whole: bool, half: bool
) -> None:
    """Half-precision weights are taken only where there are no others."""
    for name in files:
        (tmp_path / name).touch()
    assert (has_weights(tmp_path, ""), has_weights(tmp_path, ".fp16")) == (whole, half)
