"""`class_images.prior_weight` against the classic scripts' prior preservation, by gradients of the tiny model.

diffusers, XavierXiao    instance and class half of one batch: mean of the one + weight * mean of the other
kohya                    each class image's loss times the weight, the mean over the batch however it is mixed
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from parity.test_step_against_diffusers import assert_same, make_batch, ours, reference_loss, theirs
from teaching import attach

from everydream.config import load_config
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.plan import plan_run
from everydream.types import Batch

Gradients = dict[str, torch.Tensor]
BOTH = pytest.mark.parametrize("weight", [1.0, 0.3])


@pytest.fixture(scope="module")
def models(model_folder: Path) -> tuple[Any, Any]:
    """Return (ours, the reference library's pipeline)."""
    family = load(ModelSettings(path=str(model_folder)))
    attach(family, "dreambooth")
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, local_files_only=True)
    pipeline.vae.requires_grad_(False)
    return family, pipeline


def halves(weight: float) -> Batch:
    """Return two images of the subject, then two of its class."""
    return make_batch([0, 11, 2, 13], [1.0, 1.0, weight, weight])


def of_the_halves(pipeline: Any, batch: Batch, weight: float) -> tuple[float, Gradients]:
    """Return loss and gradients as train_dreambooth.py makes them: the prediction chunked, two means added."""
    _, per_image = reference_loss(pipeline, batch, None, 0.0)
    instance, prior = per_image.chunk(2)
    return theirs(pipeline, instance.mean() + weight * prior.mean())


def doubled(result: tuple[float, Gradients]) -> tuple[float, Gradients]:
    return 2 * result[0], {name: 2 * gradient for name, gradient in result[1].items()}


@BOTH
def test_two_means_added_are_twice_our_mean(models: tuple[Any, Any], weight: float) -> None:
    family, pipeline = models
    batch = halves(weight)
    assert_same(doubled(ours(family, [batch], 4)), of_the_halves(pipeline, batch, weight))


@BOTH
def test_the_weighted_mean_of_a_mixed_batch_is_ours(models: tuple[Any, Any], weight: float) -> None:
    family, pipeline = models
    scales = [weight, 1.0, 1.0, weight, 1.0]
    batch = make_batch([13, 0, 2, 5, 11], scales)
    _, per_image = reference_loss(pipeline, batch, None, 0.0)
    assert_same(ours(family, [batch], 5), theirs(pipeline, (per_image * torch.tensor(scales)).mean()))


@BOTH
def test_halves_that_fall_into_other_micro_batches_give_the_same_step(models: tuple[Any, Any], weight: float) -> None:
    family, pipeline = models
    apart = [make_batch([13, 0, 2], [weight, 1.0, weight]), make_batch([11])]
    assert_same(doubled(ours(family, apart, 4)), of_the_halves(pipeline, halves(weight), weight))


def test_the_weight_is_no_factor_of_the_whole(models: tuple[Any, Any]) -> None:
    """The gradients by two weights point in different directions, else the tests above would prove nothing."""
    family, _ = models
    flat = [torch.cat([g.flatten() for g in ours(family, [halves(weight)], 4)[1].values()]) for weight in (1.0, 0.3)]
    assert float(torch.nn.functional.cosine_similarity(*flat, dim=0)) < 0.999


def change_by(optimizer: type[torch.optim.Optimizer], gradient: torch.Tensor, max_norm: float | None) -> torch.Tensor:
    """Return how one step changes parameters of these gradients."""
    parameter = torch.nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    optimizer([parameter], lr=1.0).step()  # type: ignore[call-arg]
    return parameter.detach()


def test_what_the_factor_of_two_touches(models: tuple[Any, Any]) -> None:
    family, pipeline = models
    batch = halves(0.3)
    name = "unet.conv_in.weight"
    ours_2, classic = ours(family, [batch], 4)[1][name], of_the_halves(pipeline, batch, 0.3)[1][name]
    adam, sgd = torch.optim.AdamW, torch.optim.SGD
    torch.testing.assert_close(change_by(adam, ours_2, None), change_by(adam, classic, None), atol=1e-2, rtol=0)
    torch.testing.assert_close(2 * change_by(sgd, ours_2, None), change_by(sgd, classic, None), atol=1e-5, rtol=1e-4)
    # A bound between the two norms cuts theirs and lets ours through; one below both makes them equal.
    norm = float(ours_2.norm())
    torch.testing.assert_close(change_by(sgd, ours_2, 1.5 * norm), -ours_2)
    torch.testing.assert_close(change_by(sgd, classic, 1.5 * norm), -1.5 * ours_2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        change_by(sgd, ours_2, norm / 2), change_by(sgd, classic, norm / 2), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(("own", "expected"), [({}, 0.3), ({"loss_scale": 0.7}, 0.7)])
def test_the_setting_is_the_weight_of_class_images_alone(
    project: Callable[..., Path], tmp_path: Path, own: dict[str, float], expected: float
) -> None:
    class_source = {"path": str(tmp_path / "real"), "role": "class", **own}
    sources = [{"path": str(tmp_path / "mine")}, class_source, {"path": str(tmp_path / "mine"), "role": "ground_truth"}]
    path = project(method="dreambooth", class_images={"prior_weight": 0.3}, data={"sources": sources})
    index = plan_run(load_config(path)).index
    assert [set(index.loss_scale_N[index.source_N == n]) for n in range(3)] == [{1.0}, {expected}, {1.0}]
