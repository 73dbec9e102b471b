"""convert, prune, merge, sample: what they write is what other tools and ours open."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import train_here
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from teaching import make_method
from tool_app import run

from everydream.formats.embeddings import write_for_diffusers
from everydream.formats.files import read_file
from everydream.formats.pngs import settings_in
from everydream.methods.settings import HypernetworkSettings, LoraSettings
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.sampling.sampler import sample_images
from everydream.seeding import torch_generator


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load(ModelSettings(path=str(path))).single_file()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_all_around_and_back(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = request.getfixturevalue("model_folder" if kind == "sd1" else "sd2_folder")
    told = run("convert", folder, tmp_path / "v1.5.safetensors").stdout
    assert f"v1.5.safetensors, a {kind} model that predicts {'epsilon' if kind == 'sd1' else 'v'}, in fp32." in told
    run("convert", tmp_path / "v1.5.safetensors", tmp_path / "b.ckpt")
    run("convert", tmp_path / "b.ckpt", tmp_path / "again")
    expected = tensors(folder)
    for name in ("v1.5.safetensors", "b.ckpt", "again"):
        assert same(tensors(tmp_path / name), expected)
    StableDiffusionPipeline.from_pretrained(tmp_path / "again", local_files_only=True, safety_checker=None)


def test_the_models_own_precision_is_kept_unless_told(model_folder: Path, tmp_path: Path) -> None:
    run("convert", model_folder, tmp_path / "half.safetensors", "--dtype", "fp16")
    assert "in fp16." in run("convert", tmp_path / "half.safetensors", tmp_path / "folder").stdout
    assert (
        load_file(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.bias"].dtype
        == torch.float16
    )
    run("convert", tmp_path / "folder", tmp_path / "back.ckpt")
    assert read_file(tmp_path / "back.ckpt").tensors["model.diffusion_model.out.2.bias"].dtype == torch.float16


class Callback:
    """Something that a Lightning checkpoint names."""


def lightning(folder: Path, path: Path) -> dict[str, torch.Tensor]:
    """Write weights, an average without dots, optimizer and callbacks, as Lightning leaves them; return the weights."""
    positions = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    state = {**tensors(folder), **positions}
    unet = {key: tensor for key, tensor in state.items() if key.startswith("model.")}
    average = {"model_ema." + key.removeprefix("model.").replace(".", ""): tensor + 1 for key, tensor in unet.items()}
    counts = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    contents = {
        "state_dict": {**state, **average, **counts},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(100_000)}}}],
        "callbacks": {"saver": Callback()},
        "global_step": 500,
    }
    torch.save(contents, path)
    return state


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_pruning_a_lightning_checkpoint(model_folder: Path, tmp_path: Path, ending: str) -> None:
    """Defect 26: elsewhere the trainer's own files end in a KeyError, and integer tensors are halved."""
    state = lightning(model_folder, tmp_path / "big.ckpt")
    told = run("prune", tmp_path / "big.ckpt", tmp_path / f"small.{ending}", "--half").stdout
    assert "beside them: callbacks, global_step, optimizer_states" in told
    assert "it names code, none of which was run: test_model_tools.Callback" in told
    sizes = [(tmp_path / name).stat().st_size for name in (f"small.{ending}", "big.ckpt")]
    assert f"{sizes[1] / 1e6:.1f} MB -> {sizes[0] / 1e6:.1f} MB" in told and sizes[0] < sizes[1] / 2
    kept = read_file(tmp_path / f"small.{ending}").tensors
    assert kept.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(kept[key], tensor.half() if tensor.is_floating_point() else tensor)
        assert kept[key].dtype == (torch.float16 if tensor.is_floating_point() else torch.int64)
    if ending == "ckpt":
        assert set(torch.load(tmp_path / "small.ckpt", weights_only=True)) == {"state_dict"}


def test_what_becomes_of_the_average(model_folder: Path, tmp_path: Path) -> None:
    state = lightning(model_folder, tmp_path / "big.ckpt")
    run("prune", tmp_path / "big.ckpt", tmp_path / "use.safetensors", "--ema", "use")
    run("prune", tmp_path / "big.ckpt", tmp_path / "keep.safetensors", "--ema", "keep")
    used, kept = load_file(tmp_path / "use.safetensors"), load_file(tmp_path / "keep.safetensors")
    assert used.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(used[key], tensor + 1 if key.startswith("model.") else tensor)
        assert torch.equal(kept[key], tensor)
    assert len(kept) > len(state) and same({k: v for k, v in kept.items() if k in state}, state)
    run("convert", model_folder, tmp_path / "plain.ckpt")
    told = run("prune", tmp_path / "plain.ckpt", tmp_path / "no.ckpt", "--ema", "use", check=2).stderr
    assert "--ema use, but it has none" in told and not (tmp_path / "no.ckpt").exists()


def test_averages_that_are_not_whole(model_folder: Path, tmp_path: Path) -> None:
    lightning(model_folder, tmp_path / "big.ckpt")
    contents = read_file(tmp_path / "big.ckpt").tensors
    averages = [key for key in contents if key.startswith("model_ema.diff")]
    some = {key: tensor for key, tensor in contents.items() if key not in averages[10:]}
    torch.save({"state_dict": some}, tmp_path / "some.ckpt")
    told = run("prune", tmp_path / "some.ckpt", tmp_path / "x.ckpt", "--ema", "use", check=2).stderr
    assert f"{len(averages) - 10} of {len(averages)} weights have no average of their shape" in told
    torch.save({"state_dict": {**contents, averages[0]: torch.zeros(1)}}, tmp_path / "odd.ckpt")
    told = run("prune", tmp_path / "odd.ckpt", tmp_path / "x.ckpt", "--ema", "use", check=2).stderr
    assert "1 of" in told and not (tmp_path / "x.ckpt").exists()
    large = {**contents, "model.diffusion_model.out.2.bias": torch.full((4,), 1e6)}
    torch.save({"state_dict": large}, tmp_path / "large.ckpt")
    told = run("prune", tmp_path / "large.ckpt", tmp_path / "x.ckpt", "--half", check=2).stderr
    assert "model.diffusion_model.out.2.bias holds numbers too large for half precision" in told


def test_pruning_our_own_last_ckpt(project: Any, tmp_path: Path) -> None:
    folder = train_here(
        project(ema={"decay": 0.5}, train={"max_steps": 4}, checkpoints={"formats": ["safetensors"], "dtype": "fp32"})
    )
    last = folder / "checkpoints" / "last.ckpt"
    (export,) = (folder / "checkpoints").glob("*.safetensors")
    run("prune", last, tmp_path / "used.safetensors", "--ema", "use")
    run("prune", last, tmp_path / "live.ckpt")
    assert same(tensors(tmp_path / "used.safetensors"), tensors(export)), "the export is the average"
    assert same(tensors(tmp_path / "live.ckpt"), tensors(last))
    assert not same(tensors(tmp_path / "live.ckpt"), tensors(export))
    assert (
        "say --ema use or --ema drop"
        in run("prune", last, tmp_path / "x.ckpt", "--ema", "keep", check=2).stderr.lower()
    )


def test_a_last_ckpt_of_an_adapter_is_no_model(project: Any, tmp_path: Path) -> None:
    folder = train_here(project(method="lora", train={"max_steps": 1}))
    last = folder / "checkpoints" / "last.ckpt"
    assert "would leave the untrained model" in run("prune", last, tmp_path / "x.ckpt", check=2).stderr
    assert "would give the untrained model" in run("convert", last, tmp_path / "x.safetensors", check=2).stderr


def test_nothing_is_lost_by_a_slip(model_folder: Path, tmp_path: Path) -> None:
    a, photos = tmp_path / "a.ckpt", tmp_path / "photos"
    run("convert", model_folder, a)
    before = a.read_bytes()
    assert "exists already" in run("convert", model_folder, a, check=2).stderr
    assert "is the file that is read" in run("prune", a, a, "--overwrite", check=2).stderr
    assert a.read_bytes() == before
    run("convert", model_folder, photos)
    (photos / "me.jpg").write_bytes(b"x")
    told = run("convert", model_folder, photos, "--overwrite", check=2).stderr
    assert "holds other things than a model, me.jpg for one" in told and (photos / "me.jpg").exists()
    assert "models are written as .safetensors, .ckpt" in run("convert", model_folder, "a.pt", check=2).stderr
    assert "end its name in" in run("prune", a, tmp_path / "b.zip", check=2).stderr
    assert "--dtype is 'fp8'" in run("convert", model_folder, tmp_path / "b.ckpt", "--dtype", "fp8", check=2).stderr


def adapter_of(folder: Path, out: Path, kind: str = "lora") -> tuple[Any, Path]:
    """Return a model with a random adapter, and the adapter's file."""
    family = load(ModelSettings(path=str(folder)))
    method = make_method("lora", lora=LoraSettings(kind=kind, rank=2, targets=["attention", "convolution"]))
    for group in method.attach(family, 0, []):
        for parameter in group.parameters:
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch_generator(parameter.numel())) * 0.1)
    (path,) = method.export(family, out / kind, "safetensors", torch.float32)
    for module in family.modules().values():
        module.eval()
    return family, path


def drawn(family: Any) -> torch.Tensor:
    with torch.no_grad():
        x = torch.randn(1, 4, 8, 8, generator=torch_generator(5))
        return family.predict(x, torch.tensor([500]), family.encode_text(["a cat"], []))


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_a_merged_model_is_the_adapted_one(model_folder: Path, tmp_path: Path, kind: str) -> None:
    adapted, path = adapter_of(model_folder, tmp_path, kind)
    told = run("merge", model_folder, path, tmp_path / "merged.safetensors").stdout
    assert f"Added {kind}.safetensors at 1 to " in told
    merged = load(ModelSettings(path=str(tmp_path / "merged.safetensors")))
    torch.testing.assert_close(drawn(merged), drawn(adapted), atol=2e-5, rtol=1e-5)


def test_strengths_add_up(model_folder: Path, tmp_path: Path) -> None:
    _, path = adapter_of(model_folder, tmp_path)
    run("merge", model_folder, f"{path}:0.25", f"{path}:-0.75", tmp_path / "two")
    run("merge", model_folder, f"{path}:-0.5", tmp_path / "one.safetensors")
    one, two, base = (tensors(p) for p in (tmp_path / "one.safetensors", tmp_path / "two", model_folder))
    for key, tensor in one.items():
        torch.testing.assert_close(tensor, two[key], atol=1e-6, rtol=1e-5)
    assert not same(one, base)


def test_adapters_that_do_not_fit(model_folder: Path, tmp_path: Path) -> None:
    _, path = adapter_of(model_folder, tmp_path)
    state, one = load_file(path), torch.zeros(1)
    other = {key.replace("lora_unet_", "lora_unet_x_").replace("te_text", "te_x_text"): t for key, t in state.items()}
    files = {
        "wide": {key: torch.cat([t, t], -1) if "down" in key and t.dim() == 2 else t for key, t in state.items()},
        "more": {**state, "lora_unet_other_layer.lora_down.weight": one},
        "none": other,
        "dora": {**state, "lora_unet_mid_block_resnets_0_conv1.dora_scale": one},
    }
    messages = {
        "wide": "is for another architecture: lora_",
        "more": "1 of its",
        "none": "is no adapter for this sd1 model",
        "dora": "is a DoRA",
    }
    for name, tensors_of in files.items():
        save_file(tensors_of, tmp_path / f"{name}.safetensors")
        told = run("merge", model_folder, tmp_path / f"{name}.safetensors", tmp_path / "out.ckpt", check=2).stderr
        assert messages[name] in told
    out = tmp_path / "out.ckpt"
    assert "There is no adapter at" in run("merge", model_folder, tmp_path / "gone.pt", out, check=2).stderr
    assert "'strong' is no strength" in run("merge", model_folder, f"{path}:strong", out, check=2).stderr
    assert "Say which adapters to add" in run("merge", model_folder, out, check=2).stderr
    assert not out.exists()


def test_pictures_of_every_prompt_seed_and_guidance(model_folder: Path, tmp_path: Path) -> None:
    family, lora = adapter_of(model_folder, tmp_path)
    out = tmp_path / "out"
    arguments = ("sample", model_folder, "a cat", "a dog", "--seeds", "3,7-8", "--guidance", "1", "--guidance", "5")
    size = ("--steps", "2", "--width", "64", "--height", "48", "--lora", lora, "--out", out, "--batch-size", "6")
    assert "12 pictures in" in run(*arguments, *size).stdout
    names = sorted(path.name for path in out.glob("p*.png"))
    assert names == sorted(f"p{p:02d}-s{s}-g{g}.png" for p in (0, 1) for s in (3, 7, 8) for g in (1, 5))
    expected = sample_images(
        family, ["a cat"] * 3 + ["a dog"] * 3, [3, 7, 8] * 2, width=64, height=48, steps=2, guidance=5.0
    )
    found = np.asarray(Image.open(out / "p01-s7-g5.png")).astype(int)
    assert np.abs(found - expected[4]).max() <= 1
    said = settings_in(out / "p01-s7-g5.png")
    assert (said["prompt"], said["seed"], said["guidance"], said["loras"]) == ("a dog", 7, 5.0, [lora.name])
    assert str(tmp_path) not in str(said) and settings_in(out / "grid.png")["seeds"] == [3, 7, 8]
    with Image.open(out / "grid.png") as grid:
        assert grid.width > 6 * 64 and grid.height > 2 * 48
    assert "holds p00-s3-g1.png already" in run(*arguments, *size, check=2).stderr
    run(*arguments, *size, "--overwrite")


# diffusers' solvers and NumPy 2
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_words_and_hypernetworks_change_the_picture(model_folder: Path, tmp_path: Path) -> None:
    family = load(ModelSettings(path=str(model_folder)))
    write_for_diffusers(tmp_path / "rex.safetensors", "<rex>", torch.randn(2, 64, generator=torch_generator(1)))
    write_for_diffusers(tmp_path / "wide.safetensors", "<wide>", torch.zeros(2, 768))
    method = make_method("hypernetwork", hypernetwork=HypernetworkSettings())
    for group in method.attach(family, 0, []):
        for parameter in group.parameters:
            parameter.data.fill_(0.02)
    (hyper,) = method.export(family, tmp_path / "hyper", "pt", torch.float32)
    common = ("sample", model_folder, "a photo of <rex>", "--steps", "5", "--width", "64", "--height", "64")
    options = {
        "plain": (), "word": ("--embedding", tmp_path / "rex.safetensors"), "hyper": ("--hypernetwork", hyper),
        "half": ("--hypernetwork", f"{hyper}:0.5"), "euler": ("--sampler", "euler"), "unipc": ("--sampler", "unipc"),
        "dpm": ("--sampler", "dpmpp_2m"),
    }  # fmt: skip
    pictures = {}
    for name, chosen in options.items():
        run(*common, *chosen, "--out", tmp_path / name)
        pictures[name] = (tmp_path / name / "p00-s555-g7.png").read_bytes()
    assert len(set(pictures.values())) == len(options)
    told = run(*common, "--embedding", tmp_path / "wide.safetensors", "--out", tmp_path / "x", check=2).stderr
    assert "'<wide>' has vectors of 768 numbers, and the words of this sd1 model have 64" in told
    assert "counts downwards" in run(*common, "--seeds", "13-10", check=2).stderr
    assert "--width is 65; this model's sides are multiples of 8" in run(*common, "--width", "65", check=2).stderr
    assert "neither a number nor a range" in run(*common, "--seeds", "1,x", check=2).stderr
    assert "--sampler is 'ddmi'; known are ddim" in run(*common, "--sampler", "ddmi", check=2).stderr
    assert "Say what to draw" in run("sample", model_folder, check=2).stderr
