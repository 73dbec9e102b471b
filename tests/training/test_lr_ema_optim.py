"""Learning rates, the moving average and the optimizers against the reference libraries."""

import copy
from typing import Any

import pytest
import torch
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from everydream.methods.method import ParameterGroup
from everydream.training.ema import Ema, ema_decay
from everydream.training.lr import lr_factor
from everydream.training.optim import load_optimizer_state, make_optimizer, optimizer_state
from everydream.training.settings import EmaSettings, LrScheduleSettings, OptimizerSettings


def groups(seed: int = 0, lr: float = 1e-2) -> list[ParameterGroup]:
    """Two networks' parameters."""
    torch.manual_seed(seed)
    parts = {"unet": nn.Linear(4, 3), "text_encoder": nn.Linear(3, 2, bias=False)}
    return [
        ParameterGroup(part, [f"{part}.{n}" for n, _ in m.named_parameters()], list(m.parameters()), lr * (1 + i))
        for i, (part, m) in enumerate(parts.items())
    ]


def set_gradients(made: list[ParameterGroup], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for group in made:
        for parameter in group.parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(made: list[ParameterGroup]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for group in made for parameter in group.parameters]


# --- learning rate

OF_DIFFUSERS = ("constant", "linear", "cosine", "polynomial")


def reference_scheduler(name: str, optimizer: Any, warmup: int, total: int, power: float) -> Any:
    if name == "polynomial":
        # Their default ends at 1e-7, not at 0.
        return get_polynomial_decay_schedule_with_warmup(optimizer, warmup, total, lr_end=0.0, power=power)
    name = {"constant": "constant_with_warmup"}.get(name, name)
    return get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)


@pytest.mark.parametrize("name", OF_DIFFUSERS)
@pytest.mark.parametrize(("warmup", "total"), [(0, 20), (5, 20), (1, 2), (19, 20), (0, 1)])
@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
@pytest.mark.filterwarnings("ignore:Detected call of")  # no weights are moved here
def test_the_rate_is_diffusers_rate_at_every_step(name: str, warmup: int, total: int, power: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = reference_scheduler(name, optimizer, warmup, total, power)
    settings = LrScheduleSettings(name=name, warmup_steps=warmup, power=power)
    for step in range(total + 1):
        assert 0.5 * lr_factor(settings, step, total) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        scheduler.step()


@pytest.mark.parametrize("name", [*OF_DIFFUSERS, "rex"])
def test_rates_of_runs_shorter_than_their_warm_up_and_beyond_the_end(name: str) -> None:
    settings = LrScheduleSettings(name=name, warmup_steps=10)
    assert [lr_factor(settings, step, 5) for step in (0, 4, 9)] == [0.0, 0.4, 0.9]
    assert lr_factor(settings, 10**6, 100) == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-12)


# --- moving average


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("update_after", [0, 4])
def test_the_average_is_diffusers_average(decay: float, update_after: int) -> None:
    made = groups()
    parameters = [parameter for group in made for parameter in group.parameters]
    theirs = EMAModel(parameters, decay=decay, update_after_step=update_after, use_ema_warmup=False)
    ours = Ema(made, EmaSettings(decay=decay, update_after=update_after))
    for step in range(1, 31):
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        theirs.step(parameters)
        ours.update(step)
        assert theirs.cur_decay_value == pytest.approx(
            ema_decay(step, EmaSettings(decay=decay, update_after=update_after))
        )
        for mine, reference in zip(ours.state_dict().values(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-6, rtol=1e-5)
    assert not any(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), parameters, strict=True))


def test_the_average_resumes_from_the_average() -> None:
    """Defect 6: elsewhere it resumes from the plain weights."""
    settings = EmaSettings(decay=0.9)
    straight = groups()
    first = Ema(straight, settings)
    for step in range(1, 11):
        with torch.no_grad():
            for group in straight:
                for parameter in group.parameters:
                    parameter.mul_(1.1)
        first.update(step)
        if step == 6:
            saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
            resumed = copy.deepcopy(straight)
    second = Ema(resumed, settings)
    second.load_state_dict(saved)
    assert all(not torch.equal(saved[n], p) for g in resumed for n, p in zip(g.names, g.parameters, strict=True))
    for step in range(7, 11):
        with torch.no_grad():
            for group in resumed:
                for parameter in group.parameters:
                    parameter.mul_(1.1)
        second.update(step)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(tensor, second.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_a_parameter_without_a_saved_average_starts_from_its_weight() -> None:
    made = groups()
    ema = Ema(made, EmaSettings(decay=0.9))
    ema.load_state_dict({"unet.bias": torch.full((3,), 7.0), "something.else": torch.ones(1)})
    state = ema.state_dict()
    assert state["unet.bias"].tolist() == [7.0] * 3 and torch.equal(state["unet.weight"], made[0].parameters[0])


def test_swapping_in_the_average_and_back() -> None:
    made = groups()
    ema = Ema(made, EmaSettings(decay=0.9))
    with torch.no_grad():
        made[0].parameters[0].add_(1.0)
    live, average = weights(made), [t.clone() for t in ema.state_dict().values()]
    with pytest.raises(RuntimeError), ema.swapped_in():
        assert all(torch.equal(a, b) for a, b in zip(weights(made), average, strict=True))
        raise RuntimeError
    assert all(torch.equal(a, b) for a, b in zip(weights(made), live, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ema.state_dict().values(), average, strict=True))


# --- optimizers


def test_state_survives_a_change_of_what_trains() -> None:
    both = groups()
    optimizer = make_optimizer(both, OptimizerSettings())
    set_gradients(both, 0)
    optimizer.step()
    saved = optimizer_state(optimizer, both)
    only = groups(seed=1)[1:]
    smaller = make_optimizer(only, OptimizerSettings())
    assert load_optimizer_state(smaller, only, saved) == []
    assert torch.equal(
        optimizer_state(smaller, only)["text_encoder.weight"]["exp_avg"], saved["text_encoder.weight"]["exp_avg"]
    )
    del saved["unet.bias"]
    more = groups(seed=2)
    larger = make_optimizer(more, OptimizerSettings())
    assert load_optimizer_state(larger, more, saved) == ["unet.bias"]
    set_gradients(more, 1)
    larger.step()
    assert (
        float(larger.state[more[0].parameters[1]]["step"]) == 1
        and float(larger.state[more[0].parameters[0]]["step"]) == 2
    )


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        (
            {"name": "adamw", "betas": [0.8, 0.95], "eps": 1e-6},
            lambda p: torch.optim.AdamW(p, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6),
        ),
        (
            {"name": "adam", "betas": [0.8, 0.95], "eps": 1e-6},
            lambda p: torch.optim.Adam(p, betas=(0.8, 0.95), weight_decay=0.1, eps=1e-6),
        ),
        ({"name": "sgd", "betas": [0.8, 0.95]}, lambda p: torch.optim.SGD(p, momentum=0.8, weight_decay=0.1)),
        ({"name": "adafactor"}, lambda p: torch.optim.Adafactor(p, weight_decay=0.1)),
    ],
)
def test_every_setting_reaches_the_optimizer(settings: dict[str, Any], reference: Any) -> None:
    made, theirs = groups(), groups()
    ours = make_optimizer(made, OptimizerSettings(**settings, weight_decay=0.1))
    other = reference([{"params": group.parameters, "lr": group.lr} for group in theirs])
    for step in range(5):
        for parameters, optimizer in ((made, ours), (theirs, other)):
            set_gradients(parameters, step)
            optimizer.step()
    for a, b in zip(weights(made), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
