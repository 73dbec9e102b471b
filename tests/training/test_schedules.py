"""One-cycle, cosine with restarts, rex, warm-up by share and floors against their references."""

import math

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from everydream.training.lr import lr_factor, warmup_steps
from everydream.training.settings import LrScheduleSettings


def theirs(scheduler_of: object, total: int) -> list[float]:
    """Return the rates of a scheduler of PyTorch's kind over SGD with a rate of 0.5."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = scheduler_of(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if len(rates) < total:
            scheduler.step()
    return rates


@pytest.mark.parametrize(("share", "total"), [(None, 20), (0.25, 40), (0.5, 7)])
def test_one_cycle_is_pytorchs(share: float | None, total: int) -> None:
    settings = LrScheduleSettings(name="one_cycle", warmup_share=share)
    rise = warmup_steps(settings, total)
    assert rise == round((0.3 if share is None else share) * total)
    reference = theirs(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total, pct_start=rise / total), total)
    assert [0.5 * lr_factor(settings, step, total) for step in range(total)] == pytest.approx(reference, abs=1e-9)
    assert max(reference) == pytest.approx(0.5)


@pytest.mark.parametrize(("cycles", "warmup", "total"), [(1, 0, 12), (3, 4, 40), (5, 0, 23)])
def test_cosine_with_restarts_is_diffusers(cycles: int, warmup: int, total: int) -> None:
    settings = LrScheduleSettings(name="cosine", cycles=cycles, warmup_steps=warmup)
    reference = theirs(lambda o: get_scheduler("cosine_with_restarts", o, None, warmup, total, cycles), total)
    assert [0.5 * lr_factor(settings, step, total) for step in range(total)] == pytest.approx(reference, abs=1e-12)
    assert lr_factor(settings, total, total) == 0.0


def test_rex_is_its_papers_formula() -> None:
    """Chen et al. 2021: (1 - t/T) / (1/2 + 1/2 (1 - t/T))."""
    settings, total = LrScheduleSettings(name="rex"), 50
    for step in range(total + 1):
        z = step / total
        assert lr_factor(settings, step, total) == pytest.approx((1 - z) / (0.5 + 0.5 * (1 - z)), abs=1e-12)
    assert lr_factor(settings, 25, total) == pytest.approx(2 / 3)


def test_warm_up_by_share_is_the_warm_up_of_as_many_steps() -> None:
    by_share, by_steps = (LrScheduleSettings(name="rex", **w) for w in ({"warmup_share": 0.1}, {"warmup_steps": 20}))
    assert warmup_steps(by_share, 200) == 20
    assert [lr_factor(by_share, n, 200) for n in range(200)] == [lr_factor(by_steps, n, 200) for n in range(200)]


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial", "rex"])
def test_a_floor_squeezes_the_shape(name: str) -> None:
    plain, floored = LrScheduleSettings(name=name), LrScheduleSettings(name=name, min_factor=0.1)
    for step in (0, 7, 15, 20):
        assert lr_factor(floored, step, 20) == pytest.approx(0.1 + 0.9 * lr_factor(plain, step, 20))
    assert math.isclose(lr_factor(floored, 99, 20), 0.1)
