"""The monitor's loss against a computation with the reference library, and the comparison with the base."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from teaching import attach

from everydream.config import RunConfig, load_config
from everydream.diffusion.timesteps import stratified_quantiles
from everydream.evaluation import measuring
from everydream.evaluation.heldout import Measured
from everydream.evaluation.measuring import Loss, losses
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.plan import plan_run
from everydream.seeding import derive, torch_generator

Project = Callable[..., Path]


def compare(now: dict[int, float], base: dict[int, float]) -> measuring.Change:
    """Compare losses that are alike at all noise levels."""
    return measuring.compare({k: Loss(v, v) for k, v in now.items()}, {k: Loss(v, v) for k, v in base.items()})


def measured_by(config: Path, *overrides: str) -> tuple[RunConfig, Measured]:
    settings = load_config(config, list(overrides))
    return settings, plan_run(settings).watched["preservation"]


def measure(family: Any, config: Path, *overrides: str) -> dict[str, float]:
    """Return each held-out image's loss by its key."""
    settings, measured = measured_by(config, *overrides)
    found, failed = losses(
        family, measured, settings.data, settings.seed, settings.preservation.timesteps, torch.device("cpu")
    )
    assert not failed and list(found) == list(measured.identities)
    return {measured.index.key(n): found[identity].all for n, identity in enumerate(measured.identities)}


def reference(pipeline: Any, path: Path, key: str, caption: str, size: tuple[int, int], timesteps: int) -> float:
    """Return what the monitor should find for one image, with diffusers' scheduler and plain loops."""
    with Image.open(path) as image:
        left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
        assert left + top == 2, "two columns or rows more than the bucket on each side, and nothing to resize"
        cropped = image.crop((left, top, left + size[0], top + size[1]))
    pixels = torch.from_numpy(np.asarray(cropped).copy()).permute(2, 0, 1)[None] / 127.5 - 1.0
    seed = derive(derive(555, "preservation"), "draw", 0, key, 0)

    def normal(root: int, purpose: str, shape: Any) -> torch.Tensor:
        return torch.randn(*shape, generator=torch_generator(derive(root, purpose)))[None]

    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    ids = pipeline.tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt").input_ids
    values = []
    with torch.no_grad():
        told = pipeline.text_encoder(ids).last_hidden_state
        posterior = pipeline.vae.encode(pixels).latent_dist
        shape = posterior.mean.shape[1:]
        latents = (posterior.mean + posterior.std * normal(seed, "posterior", shape)) * 0.18215
        for number in range(timesteps):
            root = derive(seed, "stratum", number)
            drawn = derive(root, "timestep")
            part = (drawn % 1000 + (drawn // 1000 % 2**40 + 0.5) / 2**40) / 1000
            t = torch.tensor([int(1000 * (number + part) / timesteps)])
            noise = normal(root, "noise", shape)
            target = noise
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents, noise, t)
            said = pipeline.unet(scheduler.add_noise(latents, noise, t), t, told).sample
            values.append(float((said - target).square().mean()))
    return sum(values) / timesteps


@pytest.mark.parametrize(("folder", "timesteps"), [("model_folder", 4), ("sd2_folder", 6)])
def test_the_loss_is_the_objectives_own_at_fixed_noise(
    request: pytest.FixtureRequest, project: Project, tmp_path: Path, folder: str, timesteps: int
) -> None:
    path = request.getfixturevalue(folder)
    make_images(tmp_path / "real", 5, ((84, 48), (48, 84), (68, 64)))
    config = project(
        preservation={"images": 2, "timesteps": timesteps}, captions={"dropout": 1.0}, data={"flip_p": 1.0}
    )
    found = measure(load(ModelSettings(path=str(path))), config)
    pipeline = StableDiffusionPipeline.from_pretrained(path)
    _, measured = measured_by(config)
    for number, (key, loss) in enumerate(found.items()):
        expected = reference(
            pipeline, tmp_path / key, key, measured.index.captions[number], measured.sizes()[number], timesteps
        )
        assert loss == pytest.approx(expected, rel=1e-5), key
    assert len(set(found.values())) == 2


def test_a_loss_depends_on_its_own_image_alone(project: Project, model_folder: Path, tmp_path: Path) -> None:
    """Whatever the batch size, the buckets that the data set fills, the processes that load, and the other images."""
    family = load(ModelSettings(path=str(model_folder)))
    both = measure(family, project(preservation={"images": 2}))
    for overrides in (
        ["train.batch_size=1"], ["train.batch_size=7", "data.workers=3"], ["data.crop=center", "data.flip_p=1.0"],
        ["data.sources.0.repeats=9", "loss.min_snr_gamma=5.0", "loss.offset_noise=0.1", "captions.dropout=1.0"],
    ):  # fmt: skip
        assert measure(family, project(preservation={"images": 2}), *overrides) == both
    (alone,) = measure(family, project(preservation={"images": 1})).items()
    assert alone in both.items()
    other = measure(family, project(preservation={"images": 2}), "preservation.timesteps=3")
    assert other.keys() == both.keys() and not set(other.values()) & set(both.values())


def test_measuring_leaves_the_model_and_the_generators_alone(project: Project, model_folder: Path) -> None:
    """Nor does it call what DDP wraps: the other processes wait, and would not answer."""
    family = load(ModelSettings(path=str(model_folder)))
    attach(family)

    class Unreachable(torch.nn.Module):
        def forward(self, *inputs: object, **options: object) -> None:
            raise AssertionError("the wrapper was called")

    family.wrap(lambda network: Unreachable())
    family.modules()["unet"].train()
    before_modes = [family.modules()[part].training for part in ("unet", "text_encoder", "vae")]
    assert before_modes[0] and not before_modes[2]
    before = {name: tensor.clone() for name, tensor in family.single_file().items()}
    state = torch.get_rng_state()
    measure(family, project(preservation={"images": 2}))
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert [family.modules()[part].training for part in ("unet", "text_encoder", "vae")] == before_modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in family.single_file().items())
    assert all(parameter.grad is None for parameter in family.modules()["unet"].parameters())


def test_a_loss_that_is_no_number_is_named(project: Project, model_folder: Path) -> None:
    family = load(ModelSettings(path=str(model_folder)))
    with torch.no_grad():
        next(iter(family.modules()["unet"].parameters())).fill_(math.nan)
    family.modules()["unet"].train()
    with pytest.raises(ArithmeticError, match=r"the loss of real/.*\.png is nan"):
        measure(family, project(preservation={"images": 2}))
    assert family.modules()["unet"].training


@pytest.mark.parametrize("num", [1, 3, 4, 7, 1000])
def test_timesteps_cover_the_schedule_evenly(num: int) -> None:
    places = [(number, num) for number in range(num)]
    for root in range(20):
        v = stratified_quantiles([derive(root, "stratum", number) for number in range(num)], places).tolist()
        assert all(i / num <= value < (i + 1) / num for i, value in enumerate(v))


def test_the_change_is_judged_image_by_image() -> None:
    base = {1: 0.10, 2: 0.20, 3: 0.90, 4: 0.40}
    found = compare({1: 0.11, 2: 0.22, 3: 0.93, 4: 0.44}, base)
    assert found.base == pytest.approx(0.4) and found.loss == pytest.approx(0.425)
    assert found.change == pytest.approx(0.025)
    # Differences 1, 2, 3, 4 hundredths: their deviation is 1.29 hundredths, however far apart the images are.
    assert found.margin == pytest.approx(3.1824 * math.sqrt(5 / 3) / 100 / 2, rel=1e-4)
    assert found.describe("Preservation", 120, "held-out images") == (
        "Preservation at step 120: 0.4250 on 4 held-out images, base 0.4000, +0.0250 ± 0.0205 (+6.2 %)"
    )
    better = replace(found, loss=0.39, change=-0.01).describe("Validation", 7, "images")
    assert better == "Validation at step 7: 0.3900 on 4 images, base 0.4000, -0.0100 ± 0.0205 (-2.5 %)"
    assert "the base, which later steps are compared with" in compare(base, base).describe("Preservation", 0, "images")
    assert set(found.numbers("preservation")) == {
        f"preservation/{name}" for name in ("loss", "base", "change", "margin", "coarse_change", "coarse_margin")
    }
    logs = [math.log(1.1), math.log(1.1), math.log(93 / 90), math.log(1.1)]
    assert found.coarse_change == pytest.approx(sum(logs) / 4)
    assert found.coarse_margin == pytest.approx(3.1824 * float(np.std(logs, ddof=1)) / 2, rel=1e-4)


def test_only_what_has_a_base_is_compared() -> None:
    found = compare({1: 0.5, 2: 0.5, 9: 0.2}, {1: 0.4, 2: 0.4, 7: 9.0})
    assert (found.num, found.num_compared, found.base) == (3, 2, pytest.approx(0.4))
    assert found.loss == pytest.approx(0.4) and found.change == pytest.approx(0.1)
    assert "base 0.4000 (known for 2 of them), +0.1000 ± 0.0000 (+25.0 %)" in found.describe(
        "Preservation", 5, "images"
    )
    one = compare({1: 0.5}, {1: 0.4})
    assert one.margin is None and "+0.1000 (+25.0 %)" in one.describe("Preservation", 5, "images")
    none = compare({1: 0.5}, {})
    assert (none.base, none.change, none.margin) == (None, None, None)
    assert "no base to compare with" in none.describe("Preservation", 5, "images")
    assert set(none.numbers("validation")) == {"validation/loss"}


def test_the_constant_size_of_a_forward_pass_is_what_the_loss_is_made_in(
    project: Project, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many noise levels never make a larger batch, so memory does not grow with them."""
    family = load(ModelSettings(path=str(model_folder)))
    sizes: list[int] = []
    original = family.predict

    def predict(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(x))
        return original(x, *rest)

    monkeypatch.setattr(family, "predict", predict)
    measure(family, project(preservation={"images": 1, "timesteps": 10}))
    assert sizes == [measuring._TOGETHER, measuring._TOGETHER, 2]
