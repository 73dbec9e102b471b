"""One training step against the computation of diffusers' train_text_to_image.py, written out here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_here
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from teaching import attach
from torch.nn import functional

from everydream.diffusion.settings import TimestepSettings
from everydream.errors import ConfigError
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.seeding import derive, torch_generator
from everydream.step import LossSettings, training_step
from everydream.types import Batch, Crop

KINDS = ["sd1", "sd2"]
CAPTIONS = ["a cat", "", "a photo of a red house", "tag one, tag two", "dog", "a cat"]


def make_batch(numbers: list[int], scales: list[float] | None = None) -> Batch:
    """Return images, captions and seeds that depend on their number alone."""
    pixels = [torch.randint(0, 256, (3, 32, 48), generator=torch_generator(n), dtype=torch.uint8) for n in numbers]
    return Batch(
        pixels_BCHW=torch.stack(pixels),
        captions=[CAPTIONS[n % len(CAPTIONS)] for n in numbers],
        crops=[Crop((32, 48), 0, 0, (32, 48), False)] * len(numbers),
        loss_scale_B=torch.tensor(scales or [1.0] * len(numbers)),
        seeds=[derive(n, "draw") for n in numbers],
        keys=[str(n) for n in numbers],
        num_real=len(numbers),
        places=[(place, len(numbers)) for place in range(len(numbers))],
    )


@pytest.fixture(scope="module")
def models(model_folder: Path, sd2_folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return (ours, the reference library's pipeline) by kind."""
    made = {}
    for kind, folder in (("sd1", model_folder), ("sd2", sd2_folder)):
        family = load(ModelSettings(path=str(folder)))
        attach(family)
        pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.vae.requires_grad_(False)
        made[kind] = (family, pipeline)
    return made


def draw(seeds: list[int], purpose: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([torch.randn(*shape, generator=torch_generator(derive(seed, purpose))) for seed in seeds])


def reference_loss(
    pipeline: Any, batch: Batch, gamma: float | None, offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss as train_text_to_image.py computes it, weighted loss per image)."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    posterior = pipeline.vae.encode(batch.pixels_BCHW / 255.0 * 2.0 - 1.0).latent_dist
    latents = posterior.mean + posterior.std * draw(batch.seeds, "posterior", posterior.mean.shape[1:])
    latents = latents * pipeline.vae.config.scaling_factor
    noise = draw(batch.seeds, "noise", latents.shape[1:])
    noise = noise + offset * draw(batch.seeds, "offset_noise", (4, 1, 1))
    timesteps = torch.tensor([derive(seed, "timestep") % 1000 for seed in batch.seeds])
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)
    tokens = pipeline.tokenizer(
        batch.captions, max_length=77, padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids  # fmt: skip
    encoder_hidden_states = pipeline.text_encoder(tokens, return_dict=False)[0]
    v = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if v else noise
    model_pred = pipeline.unet(noisy_latents, timesteps, encoder_hidden_states, return_dict=False)[0]
    per_image = functional.mse_loss(model_pred.float(), target.float(), reduction="none").mean(dim=[1, 2, 3])
    if gamma is None:
        return functional.mse_loss(model_pred.float(), target.float(), reduction="mean"), per_image
    snr = compute_snr(scheduler, timesteps)
    weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    weights = weights / (snr + 1) if v else weights / snr
    return (per_image * weights).mean(), per_image * weights


def gradients(modules: Any) -> dict[str, torch.Tensor]:
    """Take the gradients off the networks."""
    found = {}
    for name in ("unet", "text_encoder"):
        for key, parameter in modules[name].named_parameters():
            assert parameter.grad is not None, f"{name}.{key}"
            found[f"{name}.{key}"] = parameter.grad
            parameter.grad = None
    return found


def ours(
    family: Any, batches: list[Batch], images_per_step: int, **settings: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    total = 0.0
    for batch in batches:
        result = training_step(batch, family, LossSettings(**settings), images_per_step)
        result.loss.backward()
        total += float(result.loss.detach())
    return total, gradients(family.modules())


def theirs(pipeline: Any, loss: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    loss.backward()
    return float(loss.detach()), gradients({"unet": pipeline.unet, "text_encoder": pipeline.text_encoder})


def assert_same(a: tuple[float, dict[str, torch.Tensor]], b: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert a[0] == pytest.approx(b[0], abs=1e-5, rel=1e-5)
    assert a[1].keys() == b[1].keys()
    assert max(float(g.abs().max()) for g in b[1].values()) > 1e-3, "gradients this small would prove nothing"
    for key, gradient in b[1].items():
        torch.testing.assert_close(
            a[1][key], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_a_step_is_diffusers_step(models: dict[str, Any], kind: str, gamma: float | None, offset: float) -> None:
    """Defects 8 and 10: min-SNR in the form of the prediction, one value per image."""
    family, pipeline = models[kind]
    batch = make_batch([0, 11, 2, 13])
    timesteps = [derive(seed, "timestep") % 1000 for seed in batch.seeds]
    assert min(timesteps) < 146 < max(timesteps), "min-SNR-5 has to make a difference"
    result = ours(family, [batch], 4, min_snr_gamma=gamma, offset_noise=offset)
    assert_same(result, theirs(pipeline, reference_loss(pipeline, batch, gamma, offset)[0]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_scales_weigh_each_image(models: dict[str, Any], kind: str, gamma: float | None) -> None:
    family, pipeline = models[kind]
    scales = [1.0, 0.0, 2.5]
    batch = make_batch([27, 5, 6], scales)
    _, per_image = reference_loss(pipeline, batch, gamma, 0.0)
    expected = theirs(pipeline, (per_image * torch.tensor(scales)).sum() / 3)
    assert_same(ours(family, [batch], 3, min_snr_gamma=gamma), expected)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_prior_loss_of_dreambooth(models: dict[str, Any], weight: float) -> None:
    """Defect 4: with equal halves, the instance's mean plus `weight` times the prior's is a weight per image."""
    family, pipeline = models["sd1"]
    batch = make_batch([0, 1, 2, 3], [1.0, 1.0, weight, weight])
    _, per_image = reference_loss(pipeline, batch, None, 0.0)
    loss = per_image[:2].mean() + weight * per_image[2:].mean()
    assert_same(ours(family, [batch], 2), theirs(pipeline, loss))


def test_an_image_s_loss_does_not_depend_on_its_batch(models: dict[str, Any]) -> None:
    family, _ = models["sd2"]
    with torch.no_grad():
        together = training_step(make_batch([0, 1, 2, 3, 4]), family, LossSettings(), 5)
        alone = [training_step(make_batch([n]), family, LossSettings(), 1) for n in range(5)]
        turned = training_step(make_batch([4, 2, 0]), family, LossSettings(), 3)
    torch.testing.assert_close(
        together.per_image_B, torch.cat([one.per_image_B for one in alone]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(turned.per_image_B, together.per_image_B[[4, 2, 0]], atol=1e-5, rtol=1e-5)
    assert together.t_B.tolist() == [int(one.t_B) for one in alone] and together.keys == ["0", "1", "2", "3", "4"]
    assert len(set(together.per_image_B.tolist())) == 5


def test_the_reported_losses_are_not_weighted(models: dict[str, Any]) -> None:
    family, _ = models["sd1"]
    with torch.no_grad():
        plain = training_step(make_batch([0, 1]), family, LossSettings(), 2)
        weighted = training_step(make_batch([0, 1], [0.0, 3.0]), family, LossSettings(min_snr_gamma=5.0), 2)
    assert torch.equal(plain.per_image_B, weighted.per_image_B) and not plain.per_image_B.requires_grad
    assert plain.loss != weighted.loss


def test_accumulation_averages(models: dict[str, Any]) -> None:
    """Defect 7: elsewhere the losses of micro-batches are summed."""
    family, _ = models["sd1"]
    whole = ours(family, [make_batch([0, 1, 2, 3, 4, 5])], 6)
    assert_same(ours(family, [make_batch([0, 1, 2]), make_batch([3, 4, 5])], 6), whole)
    assert_same(ours(family, [make_batch([0]), make_batch([1, 2, 3, 4]), make_batch([5])], 6), whole)


def test_a_left_over_batch_weighs_by_its_size(models: dict[str, Any]) -> None:
    """Defect 7: two images of six weigh two sixths."""
    family, _ = models["sd1"]
    loss, mean = ours(family, [make_batch([0, 1])], 2)
    smaller = ours(family, [make_batch([0, 1])], 6)
    assert smaller[0] == pytest.approx(loss * 2 / 6, rel=1e-5)
    for key, gradient in mean.items():
        torch.testing.assert_close(smaller[1][key], gradient * 2 / 6, atol=1e-6, rtol=1e-4)


def test_fillers_of_scale_zero_change_nothing(models: dict[str, Any]) -> None:
    family, _ = models["sd1"]
    assert_same(ours(family, [make_batch([0, 1, 7], [1.0, 1.0, 0.0])], 2), ours(family, [make_batch([0, 1])], 2))


def test_each_setting_of_loss_and_timesteps_changes_the_loss(models: dict[str, tuple[Any, Any]]) -> None:
    """Defect 3, for what the step itself reads."""
    family = models["sd1"][0]
    mask = torch.zeros(4, 1, 32, 48)
    mask[:, :, :16, :8] = 1.0
    batch = replace(make_batch([0, 1, 2, 3]), mask_B1HW=mask)

    def loss(timesteps: TimestepSettings, **settings: Any) -> float:
        with torch.no_grad():
            return float(training_step(batch, family, LossSettings(**settings), 4, timesteps).loss)

    seen: dict[float, object] = {}
    for settings, laws in (
        ({}, {}),
        ({"kind": "huber"}, {}),
        ({"kind": "huber", "huber_c": 0.5}, {}),
        ({"kind": "huber", "huber_schedule": "constant"}, {}),
        ({"kind": "smooth_l1"}, {}),
        ({"weighting": "min_snr"}, {}),
        ({"weighting": "min_snr", "gamma": 1.0}, {}),
        ({"weighting": "min_snr", "gamma": 0.1, "normalize_weights": False}, {}),
        ({"weighting": "soft_min_snr"}, {}),
        ({"weighting": "debiased"}, {}),
        ({"weighting": "p2"}, {}),
        ({"unmasked_weight": 0.5}, {}),
        ({"unmasked_weight": 1.0}, {}),
        ({"offset_noise": 0.1}, {}),
        ({"offset_noise": 0.1, "offset_noise_random": True}, {}),
        ({"pyramid_noise": 0.4}, {}),
        ({"input_perturbation": 0.1}, {}),
        ({}, {"law": "logit_normal"}),
        ({}, {"law": "logit_normal", "mean": 1.0}),
        ({}, {"law": "logit_normal", "std": 0.5}),
        ({}, {"min": 0.3}),
        ({}, {"max": 0.3}),
        ({}, {"stratified": True}),
    ):
        value = loss(TimestepSettings(**laws), **settings)
        assert value not in seen, f"{settings} {laws} gives what {seen[value]} gives"
        seen[value] = (settings, laws)


def test_a_shift_of_timesteps_is_of_flow_models_alone(project: Callable[..., Path]) -> None:
    with pytest.raises(
        ConfigError, match="timesteps.shift: only flow models have one, and this sd1 model predicts eps"
    ):
        train_here(project(timesteps={"shift": 3.0}))
