"""Samples agree with the reference library's pipeline and leave the training alone."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from everydream.diffusion.noise import gaussian
from everydream.errors import ConfigError
from everydream.evaluation.grids import labelled_grid
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.sampling.prompts import prompts_from_captions, read_prompts
from everydream.sampling.sampler import sample_images
from everydream.sampling.settings import SamplerName


@pytest.mark.parametrize("folder", ["model_folder", "sd2_folder"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_sample_is_what_diffusers_draws(request: pytest.FixtureRequest, folder: str, guidance: float) -> None:
    path: Path = request.getfixturevalue(folder)
    ours = sample_images(
        load(ModelSettings(path=str(path))), ["a cat", "a dog"], [7, 8], width=80, height=64, steps=4, guidance=guidance
    )
    pipeline = StableDiffusionPipeline.from_pretrained(path)
    theirs = pipeline(
        ["a cat", "a dog"], width=80, height=64, num_inference_steps=4, guidance_scale=guidance,
        latents=gaussian([7, 8], "sample", (4, 8, 10)), output_type="np",
    ).images  # fmt: skip
    assert [image.shape for image in ours] == [(64, 80, 3)] * 2
    assert np.abs(np.stack(ours).astype(float) - theirs * 255).max() <= 1.0


def test_a_sample_depends_on_its_own_prompt_and_seed(model_folder: Path) -> None:
    family = load(ModelSettings(path=str(model_folder)))
    options = {"width": 64, "height": 64, "steps": 2, "guidance": 3.0}
    together = sample_images(family, ["a", "b", "c"], [1, 2, 3], **options)
    (alone,) = sample_images(family, ["b"], [2], **options)
    assert np.abs(together[1].astype(int) - alone.astype(int)).max() <= 1
    assert not np.array_equal(together[0], together[1])


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # how diffusers makes arrays of tensors
@pytest.mark.parametrize("name", get_args(SamplerName))
@pytest.mark.parametrize("steps", [20, 101, 501, 1000])
def test_all_noise_is_taken_away_however_many_steps(model_folder: Path, name: str, steps: int) -> None:
    """By a model that knows the one picture there is, and so the noise in whatever it is shown."""
    family = load(ModelSettings(path=str(model_folder)))
    scheduler = family.sampling_scheduler(name, steps, (8, 8), torch.device("cpu"))
    alphas = scheduler.alphas_cumprod
    assert scheduler.timesteps[0] == 999 or steps <= 100
    picture = torch.full((1, 4, 8, 8), 0.5)
    latents_BCHW = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        shown = scheduler.scale_model_input(latents_BCHW, t)
        alpha = torch.as_tensor(np.interp(float(t), np.arange(1000), alphas.numpy()))
        noise = (shown - alpha.sqrt() * picture) / (1 - alpha).sqrt()
        latents_BCHW = scheduler.step(noise.float(), t, latents_BCHW).prev_sample
    assert (latents_BCHW - picture).abs().max() < 0.15


def test_sampling_puts_modes_back_and_draws_from_no_shared_generator(model_folder: Path) -> None:
    family = load(ModelSettings(path=str(model_folder)))
    family.modules()["unet"].train()
    before = torch.get_rng_state()
    sample_images(family, ["a"], [1], width=64, height=64, steps=1, guidance=2.0)
    assert torch.equal(before, torch.get_rng_state())
    assert [family.modules()[part].training for part in ("unet", "text_encoder", "vae")] == [True, False, False]
    with pytest.raises(ValueError, match="multiples of 8"):
        sample_images(family, ["a"], [1], width=60, height=64, steps=1, guidance=2.0)
    assert family.modules()["unet"].training


def test_samples_at_1024_are_of_the_prompts_that_were_asked_for(model_folder: Path) -> None:
    """Defect 23: elsewhere samples at 1024 raise, and other prompts are drawn instead."""
    family = load(ModelSettings(path=str(model_folder)))
    for width, height in ((1024, 64), (64, 1024)):
        options = {"width": width, "height": height, "steps": 1, "guidance": 1.0}
        first, second = (sample_images(family, [prompt], [1], **options)[0] for prompt in ("a red barn", "a dog"))
        assert first.shape == second.shape == (height, width, 3) and not np.array_equal(first, second)


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa cat\n\n  # a comment\n  a dog  \n日本語\n", encoding="utf-8")
    assert read_prompts(path) == ["a cat", "a dog", "日本語"]
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_prompts(path)
    path.write_bytes("ünï".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_prompts(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")


def test_prompts_from_captions_are_spread_over_the_set() -> None:
    assert prompts_from_captions(["b", "a", "", "a"]) == ["a", "b"]
    assert prompts_from_captions([f"{i:03d}" for i in range(100)]) == ["000", "025", "050", "075"]


def test_a_grid_holds_every_picture_in_its_place() -> None:
    rows = [[np.full((32, 48, 3), 10 * (2 * r + c + 1), np.uint8) for c in range(2)] for r in range(3)]
    grid = labelled_grid(rows, ["one", "two", "a very long prompt " * 10], ["g 1", "g 7"], "title")
    for row in rows:
        for image in row:
            ys = np.nonzero((grid == image[0, 0]).all(-1))[0]
            assert len(ys) >= 32 * 48 and np.ptp(ys[-32 * 48 :]) >= 31
    assert grid.dtype == np.uint8 and (grid == 255).any()
