"""Inpainting and depth models: what they are shown besides noised latents, and their files."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import metrics_of, train_here
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from teaching import attach
from torch.nn import functional

from everydream.config import load_config
from everydream.diffusion.noise import gaussian
from everydream.errors import FormatError
from everydream.evaluation.measuring import image_loss
from everydream.formats.files import write_safetensors
from everydream.models.common.depth import prepared
from everydream.models.common.inpainting import drawn_mask
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.models.write import write_model
from everydream.preflight import preflight
from everydream.sampling.sampler import sample_images
from everydream.seeding import derive, torch_generator
from everydream.step import LossSettings, training_step
from everydream.types import Batch, Crop

MADE = {"inpainting": ("sd1", 9), "depth": ("sd2", 5)}
KINDS = list(MADE)
Folders = dict[str, Path]


def loaded(path: Path, **settings: Any) -> Any:
    return load(ModelSettings(path=str(path), **settings))


def opened(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers' own making
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folder = tmp_path_factory.mktemp("models")
    for name, (kind, channels) in MADE.items():
        tiny.save_pipeline(folder / name, kind, channels=channels)
    return {name: folder / name for name in MADE}


@pytest.fixture(scope="module")
def models(folders: Folders) -> dict[str, tuple[Any, Any]]:
    """Return (ours, the reference library's pipeline) by kind."""
    made = {}
    for name, folder in folders.items():
        family, pipeline = loaded(folder), opened(folder)
        attach(family)
        for part in {"vae", "depth_estimator"} & family.modules().keys():
            getattr(pipeline, part).requires_grad_(False)
        made[name] = (family, pipeline)
    return made


def make_batch(numbers: list[int], size: int = 64) -> Batch:
    shape, generators = (3, size // 8, size // 8), [torch_generator(n) for n in numbers]
    coarse = [torch.randint(0, 256, shape, generator=g, dtype=torch.uint8) for g in generators]
    pixels = torch.stack(coarse).repeat_interleave(8, 2).repeat_interleave(8, 3)
    num = len(numbers)
    return Batch(
        pixels, ["a cat"] * num, [Crop((size, size), 0, 0, (size, size), False)] * num, torch.ones(num),
        [derive(n, "draw") for n in numbers], [str(n) for n in numbers], num, [(n, num) for n in range(num)],
    )  # fmt: skip


def pillow(batch: Batch) -> list[Image.Image]:
    return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in batch.pixels_BCHW]


def reference_inputs(kind: str, pipeline: Any, batch: Batch) -> torch.Tensor:
    """Return what the pipeline concatenates behind the latents, of images and masks as their users give them."""
    if kind == "depth":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autocast to float32 on CPUs is no autocast
            return pipeline.prepare_depth_map(
                pillow(batch), None, len(batch.seeds), False, torch.float32, torch.device("cpu")
            )
    assert batch.mask_B1HW is not None
    masks = [Image.fromarray((mask[0] * 255).byte().numpy()) for mask in batch.mask_B1HW]
    image = pipeline.image_processor.preprocess(pillow(batch), height=64, width=64)
    mask = pipeline.mask_processor.preprocess(masks, height=64, width=64)
    generators = [torch_generator(derive(seed, "masked_posterior")) for seed in batch.seeds]
    told = pipeline.prepare_mask_latents(
        mask, image * (mask < 0.5), len(masks), 64, 64, torch.float32, torch.device("cpu"), generators, False
    )
    return torch.cat(told, 1)


def own_masks() -> torch.Tensor:
    masks = torch.zeros(2, 1, 64, 64)
    masks[0, :, 8:30, 16:] = 1.0
    masks[1, :, :, :33] = 0.7
    masks[1, :, :8, 33:] = 0.3
    return masks


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_diffusers_inputs(models: dict[str, Any], kind: str) -> None:
    family, pipeline = models[kind]
    batch = make_batch([3, 4])
    if kind == "inpainting":
        batch = replace(batch, mask_B1HW=own_masks())
    shown = family.image_inputs(batch.pixels_BCHW, batch.seeds, batch.mask_B1HW)
    expected = reference_inputs(kind, pipeline, batch)
    assert shown.shape == (2, MADE[kind][1] - 4, 8, 8) and not shown.requires_grad and expected.std() > 0.1
    torch.testing.assert_close(shown, expected, atol=1e-5, rtol=1e-5)

    loss = training_step(batch, family, LossSettings(unmasked_weight=1.0), 2).loss
    loss.backward()
    reference = reference_loss(pipeline, batch, expected)
    reference.backward()
    torch.testing.assert_close(loss, reference, atol=1e-5, rtol=1e-5)
    for part in ("unet", "text_encoder"):
        found, theirs = (dict(net.named_parameters()) for net in (family.modules()[part], getattr(pipeline, part)))
        for name, parameter in theirs.items():
            torch.testing.assert_close(found[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)
    assert float(family.unet.conv_in.weight.grad[:, 4:].abs().max()) > 1e-3


def reference_loss(pipeline: Any, batch: Batch, shown: torch.Tensor) -> torch.Tensor:
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    posterior = pipeline.vae.encode(batch.pixels_BCHW / 127.5 - 1.0).latent_dist
    latents = posterior.mean + posterior.std * gaussian(batch.seeds, "posterior", (4, 8, 8))
    latents, noise = latents * pipeline.vae.config.scaling_factor, gaussian(batch.seeds, "noise", (4, 8, 8))
    t = torch.tensor([derive(seed, "timestep") % 1000 for seed in batch.seeds])
    tokens = pipeline.tokenizer(batch.captions, max_length=77, padding="max_length", return_tensors="pt").input_ids
    x = torch.cat([scheduler.add_noise(latents, noise, t), shown], 1)
    v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, t) if v else noise
    return functional.mse_loss(pipeline.unet(x, t, pipeline.text_encoder(tokens)[0]).sample, target)


def test_depth_sees_images_of_other_sizes_as_the_processor_makes_them(models: dict[str, Any]) -> None:
    family, pipeline = models["depth"]
    for size, resample in ((96, 3), (48, 3), (96, 2)):
        batch = make_batch([1, 2], size)
        theirs = pipeline.feature_extractor(pillow(batch), return_tensors="pt", resample=resample).pixel_values
        ours = prepared(batch.pixels_BCHW, {**family.extractor, "resample": resample}, torch.float32)
        assert float((ours - theirs).abs().max()) <= 1.01 * 2 / 255, "a grey level"
    flat = family.image_inputs(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [1], None)
    assert not family.blank_inputs([1, 2], (64, 32)).any() and family.blank_inputs([1], (64, 32)).shape == (1, 1, 8, 4)
    assert flat.isfinite().all()


def test_masks_are_the_draw_s_own_and_a_quarter_hide_everything(models: dict[str, Any]) -> None:
    masks = torch.stack([drawn_mask(derive(n, "draw"), (64, 96)) for n in range(2000)])
    everything = masks.flatten(1).all(1)
    assert 0.22 < everything.float().mean() < 0.28
    rest = masks[~everything].flatten(1).mean(1)
    assert rest.min() > 0.01 and rest.max() < 1.0 and 0.2 < rest.mean() < 0.6
    family, batch = models["inpainting"][0], make_batch([3, 4, 5])
    together = family.image_inputs(batch.pixels_BCHW, batch.seeds, None)
    alone = family.image_inputs(batch.pixels_BCHW[1:2], batch.seeds[1:2], None)
    torch.testing.assert_close(alone, together[1:2], atol=1e-6, rtol=1e-5)
    assert torch.equal(alone[0, 0], drawn_mask(batch.seeds[1], (64, 64))[0, ::8, ::8])
    # An image without a mask stands as white beside those that have one: it is masked as if it were alone.
    beside = torch.cat([own_masks()[:1], torch.ones(2, 1, 64, 64)])
    mixed = family.image_inputs(batch.pixels_BCHW, batch.seeds, beside)
    assert torch.equal(mixed[1:, 0], together[1:, 0]) and torch.equal(mixed[0, 0], beside[0, 0, ::8, ::8])


def test_the_monitor_of_preservation_shows_them_too(models: dict[str, Any]) -> None:
    for kind in KINDS:
        family = models[kind][0]
        with torch.no_grad():
            first, again = (image_loss(family, make_batch([7]), 6) for _ in range(2))
        assert first == again and 0.0 < first.all < 10.0


def test_a_sample_is_the_pipeline_s_picture_of_an_empty_canvas(models: dict[str, Any]) -> None:
    family, pipeline = models["inpainting"]
    pipeline.set_progress_bar_config(disable=True)
    seeds, prompts = [5, 6], ["a cat", "dogs"]
    shown = family.blank_inputs(seeds, (64, 64))
    with torch.no_grad():
        generators = [torch_generator(derive(seed, "masked_posterior")) for seed in seeds]
        visible = pipeline._encode_vae_image(torch.zeros(2, 3, 64, 64), generators)
    assert bool((shown[:, 0] == 1.0).all())
    torch.testing.assert_close(shown[:, 1:], visible, atol=1e-5, rtol=1e-5)
    ours = sample_images(family, prompts, seeds, width=64, height=64, steps=3, guidance=5.0, sampler="ddim")
    # The latents are given, for this VAE of random weights makes much of roundings where an image is grey all over.
    theirs = pipeline(
        prompts, image=Image.new("RGB", (64, 64)), mask_image=Image.new("L", (64, 64), 255), height=64, width=64,
        strength=1.0, num_inference_steps=3, guidance_scale=5.0, latents=gaussian(seeds, "sample", (4, 8, 8)),
        masked_image_latents=visible, output_type="np",
    ).images  # fmt: skip
    assert abs(theirs * 255 - ours).max() <= 1.0 and theirs.std() > 0.05


# --- files


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_is_read_again(folders: Folders, tmp_path: Path, kind: str) -> None:
    family, reference = loaded(folders[kind]), opened(folders[kind])
    assert (family.name, family.channels) == MADE[kind]
    paths = [write_model(family, tmp_path / "m", name, torch.float32) for name in family.formats]
    for path in paths:
        again = loaded(path)
        assert again.description() == {**family.description(), **({} if path.is_file() else _sizes(again))}
        for part, module in again.modules().items():
            expected = getattr(reference, part).state_dict()
            assert module.state_dict().keys() == expected.keys()
            assert all(torch.equal(tensor, expected[key]) for key, tensor in module.state_dict().items())
    pipeline = opened(tmp_path / "m")
    assert type(pipeline) is type(reference)
    assert pipeline.unet.config.in_channels == MADE[kind][1]
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["_class_name"] == json.loads((folders[kind] / "model_index.json").read_text())["_class_name"]
    if kind == "depth":
        ours, theirs = (p.feature_extractor(pillow(make_batch([1])))["pixel_values"] for p in (pipeline, reference))
        assert (ours[0] == theirs[0]).all()


def _sizes(family: Any) -> dict[str, Any]:
    return {"text_encoder": family.description()["text_encoder"]}


def test_diffusers_opens_an_inpainting_file_and_we_one_without_our_description(
    folders: Folders, tmp_path: Path
) -> None:
    family, path = loaded(folders["inpainting"]), tmp_path / "m.safetensors"
    write_safetensors(path, family.single_file())
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = StableDiffusionInpaintPipeline.from_single_file(
        path, config=str(folders["inpainting"]), local_files_only=True, **options
    )
    again = loaded(path)
    for unet in (pipeline.unet, again.unet):
        assert torch.equal(unet.conv_in.weight, family.unet.conv_in.weight) and unet.config.in_channels == 9


def test_a_depth_file_of_others_wants_an_estimator(folders: Folders, tmp_path: Path) -> None:
    family, path = loaded(folders["depth"]), tmp_path / "m.safetensors"
    tensors = {k: v for k, v in family.single_file().items() if not k.startswith("depth_estimator.")}
    save_file({**tensors, "depth_model.model.scratch.x": torch.ones(2)}, path)
    with pytest.raises(FormatError, match=r"is a depth model without a depth estimator .* Give the diffusers folder"):
        loaded(path)
    again = loaded(path, config=str(folders["depth"]))
    expected = family.single_file()
    state = again.single_file()
    assert torch.equal(state.pop("depth_model.model.scratch.x"), torch.ones(2)), "what it had travels along"
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)
    own = write_model(again, tmp_path / "own", "safetensors", torch.float32)
    assert loaded(own).extractor == again.extractor, "our own file needs no folder"


@pytest.mark.parametrize(("change", "said"), [
    ({"keep_aspect_ratio": True}, "asks for keep_aspect_ratio True, which is not done here"),
    ({"resample": 1}, "asks for resample 1"),
    ({"size": {"shortest_edge": 8}}, 'asks for size {"shortest_edge": 8}'),
    ("estimator", "lacks 1 tensors of its DPTForDepthEstimation"),
    ("gone", "preprocessor_config.json is missing"),
])  # fmt: skip
def test_estimators_that_are_refused(folders: Folders, tmp_path: Path, change: Any, said: str) -> None:
    folder = Path(shutil.copytree(folders["depth"], tmp_path / "m"))
    path, weights = folder / "feature_extractor" / "preprocessor_config.json", folder / "depth_estimator"
    if change == "gone":
        path.unlink()
    elif change == "estimator":
        state = load_file(weights / "model.safetensors")
        del state["head.head.0.weight"]
        save_file(state, weights / "model.safetensors", {"format": "pt"})
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=said):
        loaded(folder)


def test_what_released_estimators_lack_is_zero(folders: Folders, tmp_path: Path) -> None:
    """The first fusion's residual layer, which nothing passes through."""
    folder = Path(shutil.copytree(folders["depth"], tmp_path / "m"))
    weights, begin = folder / "depth_estimator" / "model.safetensors", "neck.fusion_stage.layers.0.residual_layer1."
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if not k.startswith(begin)}, weights, {"format": "pt"})
    family, whole, batch = loaded(folder), loaded(folders["depth"]), make_batch([1])
    unused = {k: v for k, v in family.depth_estimator.state_dict().items() if k.startswith(begin)}
    assert unused and not any(tensor.any() for tensor in unused.values())
    assert torch.equal(*(m.image_inputs(batch.pixels_BCHW, batch.seeds, None) for m in (family, whole)))


# --- runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_samples_and_resumes_to_the_bit(project: Callable[..., Path], folders: Folders, kind: str) -> None:
    config = project(
        model={"path": str(folders[kind])}, lr_schedule={"name": "constant"},
        samples={"every_steps": 2, "steps": 1, "batch_size": 8},
        train={"epochs": 1, "max_steps": 2}, checkpoints={"formats": ["diffusers"]},
    )  # fmt: skip
    whole = train_here(config)
    half = train_here(config, "train.max_steps=1")
    last = Path("checkpoints") / "last.ckpt"
    resumed = train_here(config, "memory.offload_frozen=true", resume=half / last, allow_changes=True)
    first, second = (torch.load(run / last, weights_only=True)["state_dict"] for run in (whole, resumed))
    assert first.keys() == second.keys()
    assert [key for key, tensor in first.items() if not torch.equal(tensor, second[key])] == []
    assert metrics_of(whole) == metrics_of(resumed)
    before = loaded(folders[kind]).single_file()
    moved = {key.split(".")[0] for key, tensor in first.items() if not torch.equal(tensor, before[key])}
    assert moved == {"model", "cond_stage_model"}, "neither VAE nor estimator"
    assert list((whole / "samples").rglob("*.jpg")) or list((whole / "samples").rglob("*.png"))
    if kind == "depth":
        estimate, measured = (preflight(load_config(config), measure)[1].split(" MB")[0] for measure in (False, True))
        assert estimate == measured and "peak" in estimate, "its estimator is counted from shapes alone"
    [export] = [path for path in (whole / "checkpoints").iterdir() if path.is_dir()]
    assert opened(export).unet.config.in_channels == MADE[kind][1]
