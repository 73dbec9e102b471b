"""What is written is opened by diffusers, with the same tensors and the same pictures."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from teaching import make_method

from everydream.formats.files import DTYPES, METADATA_KEY, cast_floating, read_file, write_safetensors
from everydream.models.common import text_keys
from everydream.models.load import load, restore
from everydream.models.settings import ModelSettings
from everydream.sampling.sampler import sample_images
from everydream.training import export as exporting
from everydream.training.settings import CheckpointSettings
from everydream.types import Progress

KINDS = ["sd1", "sd2", "sdxl"]
POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def export(family: Any, folder: Path, project: str, progress: Progress, settings: CheckpointSettings) -> list[Path]:
    """Export a whole model."""
    return exporting.export(make_method(), family, folder, project, progress, settings)


def loaded(path: Path, **settings: Any) -> Any:
    return load(ModelSettings(path=str(path), **settings))


@pytest.fixture(scope="module")
def folders(model_folder: Path, sd2_folder: Path, sdxl_folder: Path) -> dict[str, Path]:
    return {"sd1": model_folder, "sd2": sd2_folder, "sdxl": sdxl_folder}


def parts_of(kind: str) -> list[str]:
    return ["unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "sdxl" else [])]


@pytest.fixture(scope="module")
def exported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[Path]]:
    """Return a function that gives a model in all three formats: .safetensors, .ckpt, folder."""
    done: dict[tuple[str, str], list[Path]] = {}

    def write(kind: str, dtype: str) -> list[Path]:
        if (kind, dtype) not in done:
            folder = tmp_path_factory.mktemp(f"{kind}-{dtype}")
            settings = CheckpointSettings(formats=["safetensors", "ckpt", "diffusers"], dtype=dtype)
            done[kind, dtype] = export(loaded(folders[kind]), folder, "trial", Progress(step=12, epoch=3), settings)
        return done[kind, dtype]

    return write


def picture(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(5)
    return pipeline(
        "a cat", num_inference_steps=3, height=64, width=64, generator=generator, output_type="np"
    ).images  # fmt: skip


def opened(path: Path, config: Path) -> Any:
    if path.is_dir():
        return DiffusionPipeline.from_pretrained(path, local_files_only=True)
    if (config / "tokenizer_2").exists():
        return StableDiffusionXLPipeline.from_single_file(path, config=str(config), local_files_only=True)
    # Without it diffusers gives every single file a safety checker, which it would download.
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline.from_single_file(path, config=str(config), local_files_only=True, **options)


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, tuple[Any, Any]]:
    """Return (pipeline, its picture) as the reference library has them."""
    pipelines = {kind: opened(folder, folder) for kind, folder in folders.items()}
    return {kind: (pipeline, picture(pipeline)) for kind, pipeline in pipelines.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number", range(3), ids=["safetensors", "ckpt", "folder"])
def test_diffusers_opens_every_format(
    folders: dict[str, Path],
    references: dict[str, tuple[Any, Any]],
    exported: Callable[[str, str], list[Path]],
    kind: str,
    dtype: str,
    number: int,
) -> None:
    path = exported(kind, dtype)[number]
    assert path.name == "trial-e0003-s000012" + [".safetensors", ".ckpt", ""][number]
    reference, expected_picture = references[kind]
    pipeline = opened(path, folders[kind]).to(torch.float32)
    for part in parts_of(kind):
        expected, found = getattr(reference, part).state_dict(), getattr(pipeline, part).state_dict()
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(found[key], tensor.to(DTYPES[dtype]).float()), f"{part}.{key}"
    if dtype == "fp32":
        np.testing.assert_allclose(picture(pipeline), expected_picture, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", range(3), ids=["safetensors", "ckpt", "folder"])
def test_every_format_comes_back(
    folders: dict[str, Path], exported: Callable[[str, str], list[Path]], kind: str, number: int
) -> None:
    original, again = loaded(folders[kind]), loaded(exported(kind, "fp32")[number])
    assert again.name == kind and again.objective.prediction == original.objective.prediction
    ours, theirs = again.single_file(), original.single_file()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for part in (*parts_of(kind), "scheduler"):
        assert again.description()[part] == original.description()[part]
    options: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance": 5.0}
    np.testing.assert_array_equal(
        sample_images(again, ["a cat"], [1], **options), sample_images(original, ["a cat"], [1], **options)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_our_sampler_draws_what_the_pipeline_draws(folders: dict[str, Path], kind: str) -> None:
    from everydream.diffusion.noise import gaussian

    pipeline = opened(folders[kind], folders[kind])
    pipeline.set_progress_bar_config(disable=True)
    latents = gaussian([7], "sample", (4, 8, 8))
    theirs = pipeline("a cat", num_inference_steps=4, guidance_scale=5.0, latents=latents, output_type="np").images[0]
    ours = sample_images(loaded(folders[kind]), ["a cat"], [7], width=64, height=64, steps=4, guidance=5.0)[0]
    assert np.abs(ours.astype(float) - theirs * 255).max() <= 0.51


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_written_folder_suits_old_readers(exported: Callable[[str, str], list[Path]], kind: str, dtype: str) -> None:
    """Defect 27: transformers before 5.6 reads `text_model.` names, tokenizers before 5 vocab.json and merges.txt."""
    folder = exported(kind, dtype)[2]
    for part in parts_of(kind)[2:]:
        text = load_file(folder / part / "model.safetensors")
        assert text and all(key.startswith(("text_model.", "text_projection.weight")) for key in text)
        assert ("text_projection.weight" in text) == (part == "text_encoder_2")
        assert {t.dtype for t in text.values()} == {DTYPES[dtype]}
        tokenizer = folder / part.replace("text_encoder", "tokenizer")
        assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= {p.name for p in tokenizer.iterdir()}
        merges = (tokenizer / "merges.txt").read_text(encoding="utf-8").splitlines()
        assert merges[0].startswith("#version") and merges[1] == "i n" and len(merges) == 48895


@pytest.mark.parametrize("kind", KINDS)
def test_single_files_carry_their_description(exported: Callable[[str, str], list[Path]], kind: str) -> None:
    safetensors, ckpt, _ = exported(kind, "fp16")
    metadata = read_file(safetensors).metadata
    expected = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2", "sdxl": "stable-diffusion-xl-v1-base"}
    assert metadata["modelspec.architecture"] == expected[kind]
    assert metadata["modelspec.prediction_type"] == ("v" if kind == "sd2" else "epsilon")
    assert {t.dtype for t in read_file(ckpt).tensors.values()} == {torch.float16}
    assert read_file(ckpt).metadata[METADATA_KEY]["model"]["family"] == kind
    assert torch.load(ckpt, weights_only=True).keys() == {"state_dict", METADATA_KEY}


@pytest.mark.parametrize("kind", KINDS)
def test_exports_are_repeatable(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    settings = CheckpointSettings(formats=["safetensors", "ckpt", "diffusers"])
    family = loaded(folders[kind])
    restored = restore(family.single_file(), family.description(), Path("last.ckpt"))
    for name, source in (("a", family), ("b", loaded(folders[kind])), ("c", restored)):
        (tmp_path / name).mkdir()
        export(source, tmp_path / name, "p", Progress(step=1), settings)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) > 8
    for file in files:
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes() == (tmp_path / "c" / file).read_bytes(), file


def test_what_an_original_sd1_file_holds_besides(folders: dict[str, Path], tmp_path: Path) -> None:
    family = loaded(folders["sd1"])
    extras = {
        POSITION_IDS: torch.arange(77).unsqueeze(0),
        "alphas_cumprod": torch.linspace(1, 0, 1000),
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(5, dtype=torch.int32),
        "model_ema.diffusion_modelout2bias": torch.ones(4),
        "some.other": torch.tensor([70_000]),
    }
    torch.save({"state_dict": {**family.single_file(), **extras}, "global_step": 470_000}, tmp_path / "v1-5.ckpt")
    again = loaded(tmp_path / "v1-5.ckpt")
    assert set(again.extras) == {POSITION_IDS, "alphas_cumprod", "some.other"}
    for dtype in DTYPES:
        paths = export(
            again, tmp_path, "p", Progress(), CheckpointSettings(formats=["safetensors", "ckpt"], dtype=dtype)
        )
        for path in paths:
            state = read_file(path).tensors
            assert state[POSITION_IDS].dtype == torch.int64 and state[POSITION_IDS].tolist() == [list(range(77))]
            assert state["some.other"].item() == 70_000
            assert state["alphas_cumprod"].dtype == DTYPES[dtype]
            assert not any(key.startswith("model_ema.") for key in state)
            assert state.keys() == {**family.single_file(), **again.extras}.keys()
            assert loaded(path).extras.keys() == again.extras.keys()
    np.testing.assert_array_equal(
        picture(opened(tmp_path / "v1-5.ckpt", folders["sd1"])), picture(opened(folders["sd1"], folders["sd1"]))
    )


@pytest.mark.parametrize("form", ["plain", "described"])
def test_what_an_original_sd2_file_holds_besides(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    """OpenCLIP's last layer and projection are there in the released files, and never used."""
    family = loaded(folders["sd2"])
    state = family.single_file()
    layer = text_keys.SD2_PREFIX + "transformer.resblocks."
    extras = {
        k.replace(".1.", ".2.", 1): torch.full_like(v, 9.0) for k, v in state.items() if k.startswith(f"{layer}1.")
    }
    extras[text_keys.SD2_PREFIX + "text_projection"] = torch.randn(64, 64)
    extras[text_keys.SD2_PREFIX + "logit_scale"] = torch.tensor(100.0)
    extras[text_keys.SD2_PREFIX + "attn_mask"] = torch.zeros(77, 77)
    assert len(extras) == 15
    write_safetensors(tmp_path / "v2-1.safetensors", {**state, **extras})
    again = loaded(tmp_path / "v2-1.safetensors", prediction="v")
    if form == "described":
        [path] = export(again, tmp_path, "p", Progress(), CheckpointSettings(formats=["safetensors"], dtype="fp32"))
        again = loaded(path)
    assert again.extras.keys() == extras.keys()
    assert len(again.text_layers("text_encoder")) == 2
    assert again.single_file().keys() == {**state, **extras}.keys()
    for key, tensor in {**state, **extras}.items():
        assert torch.equal(again.single_file()[key], tensor)
    with torch.no_grad():
        assert torch.equal(again.encode_text(["x"], []).tokens_BLD, family.encode_text(["x"], []).tokens_BLD)


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_precision_file_trains_in_full_precision(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    state = cast_floating(loaded(folders[kind]).single_file(), torch.float16)
    save_file(state, tmp_path / "m.safetensors")
    family = loaded(tmp_path / "m.safetensors")
    assert {p.dtype for module in family.modules().values() for p in module.parameters()} == {torch.float32}
    assert all(torch.equal(family.single_file()[key], tensor.float()) for key, tensor in state.items())


def test_what_trains_is_what_is_written(folders: dict[str, Path], tmp_path: Path) -> None:
    """Exports are taken from the live networks, not from the tensors that were read."""
    family = loaded(folders["sd2"])
    before = {key: tensor.clone() for key, tensor in family.single_file().items()}
    with torch.no_grad():
        for module in family.modules().values():
            for parameter in module.parameters():
                parameter.add_(1.0)
    [path] = export(family, tmp_path, "p", Progress(), CheckpointSettings(formats=["safetensors"], dtype="fp32"))
    after = read_file(path).tensors
    assert all(torch.equal(after[key], before[key] + 1.0) for key in before)


def test_the_newest_exports_are_kept_and_nothing_else_is_touched(folders: dict[str, Path], tmp_path: Path) -> None:
    family = loaded(folders["sd1"])
    others = ["last.ckpt", "p-e0001-s000001.txt", "q-e0001-s000001.safetensors", "p-e1-s1.safetensors", "p-extra"]
    for name in others:
        (tmp_path / name).touch()
    settings = CheckpointSettings(formats=["safetensors", "diffusers"], keep=2, dtype="fp16")
    for step in (1, 2, 10, 1_000_000):
        export(family, tmp_path, "p", Progress(step=step, epoch=step), settings)
        exporting.delete(exporting.old_exports(tmp_path, "p", settings.keep, step, lambda steps: None))
    kept = {"p-e0010-s000010", "p-e1000000-s1000000"}
    written = kept | {f"{name}.safetensors" for name in kept}
    assert {path.name for path in tmp_path.iterdir()} == written | set(others)


def test_tiny_pipelines_are_not_all_alike(tmp_path: Path) -> None:
    """The comparisons above could not fail otherwise."""
    first, second = tiny.make_pipeline("sd1", seed=0), tiny.make_pipeline("sd1", seed=1)
    assert not np.allclose(picture(first), picture(second), atol=1e-2)
    shutil.rmtree(tmp_path)
