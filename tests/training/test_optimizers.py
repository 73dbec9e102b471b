"""Every optimizer: its own class with its own settings, exact resume, and refusals."""

import copy
from importlib import import_module
from typing import Any

import pytest
import torch
from test_lr_ema_optim import groups, set_gradients, weights
from torch import nn

from everydream.errors import ConfigError
from everydream.formats.files import canonical
from everydream.methods.method import ParameterGroup
from everydream.methods.settings import PartOptimizerSettings
from everydream.training import optimizers
from everydream.training.blocks import split_by_blocks
from everydream.training.checks import usual_optimizer
from everydream.training.optim import evaluated, group_state, load_optimizer_state, make_optimizer, optimizer_state
from everydream.training.optimizers import KINDS, optimizer_problems, torch_classes, with_usual_values
from everydream.training.settings import OptimizerSettings

EVERY = [*KINDS, *(f"torch.{name}" for name in torch_classes())]


def matrices(seed: int = 0) -> list[ParameterGroup]:
    """Weights that every optimizer takes; the first is large enough to be kept in 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"unet": (80, 64), "text_encoder": (8, 4)}
    return [
        ParameterGroup(part, [f"{part}.weight"], [nn.Parameter(torch.randn(shape, generator=generator))], 0.01)
        for part, shape in shapes.items()
    ]


def take_steps(optimizer: Any, made: list[ParameterGroup], steps: range) -> None:
    for step in steps:
        set_gradients(made, step)
        for live in optimizer.param_groups:
            live["lr"] = 0.01 / (1 + step)
        optimizer.step()


@pytest.mark.parametrize("name", EVERY)
def test_a_resumed_optimizer_goes_on_to_the_bit(name: str) -> None:
    settings = OptimizerSettings(name=name)
    straight = matrices()
    optimizer = make_optimizer(straight, settings)
    take_steps(optimizer, straight, range(3))
    saved = copy.deepcopy(canonical((optimizer_state(optimizer, straight), group_state(optimizer, straight))))
    resumed = matrices(seed=9)
    for parameter, value in zip([p for g in resumed for p in g.parameters], weights(straight), strict=True):
        parameter.data.copy_(value)
    again = make_optimizer(resumed, settings)
    stateless = name == "torch.SGD"
    assert load_optimizer_state(again, resumed, *saved) == [n for g in resumed for n in g.names if stateless]
    before = weights(straight)
    take_steps(optimizer, straight, range(3, 6))
    take_steps(again, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights(straight), before, strict=True))
    ends = [canonical((optimizer_state(o, g), group_state(o, g))) for o, g in ((optimizer, straight), (again, resumed))]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)


def test_8_bit_state_takes_a_byte_each() -> None:
    made = matrices()
    optimizer = make_optimizer(made, OptimizerSettings(name="adamw_8bit"))
    take_steps(optimizer, made, range(1))
    state = optimizer.state[made[0].parameters[0]]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ({"name": "lion", "betas": [0.8, 0.9]}, lambda p: __import__("lion_pytorch").Lion(p, 0.01, (0.8, 0.9), 0.1)),
        (
            {"name": "prodigy", "betas": [0.8, 0.9], "eps": 1e-6, "args": {"d_coef": 2.0}},
            lambda p: __import__("prodigyopt").Prodigy(p, 1.0, (0.8, 0.9), eps=1e-6, weight_decay=0.1, d_coef=2.0),
        ),
        (
            {"name": "came", "betas": [0.8, 0.9, 0.95], "args": {"clip_threshold": 0.5}},
            lambda p: import_module("came_pytorch.CAME").CAME(
                p, 0.01, clip_threshold=0.5, betas=(0.8, 0.9, 0.95), weight_decay=0.1
            ),
        ),
        (
            {"name": "torch.RAdam", "betas": [0.8, 0.9], "args": {"decoupled_weight_decay": True}},
            lambda p: torch.optim.RAdam(p, betas=(0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True),
        ),
        ({"name": "RMSprop", "args": {"alpha": 0.9}}, lambda p: torch.optim.RMSprop(p, alpha=0.9, weight_decay=0.1)),
        (
            {"name": "schedule_free_adamw", "betas": [0.8, 0.9], "args": {"r": 1.0}},
            lambda p: __import__("schedulefree").AdamWScheduleFree(p, 0.01, (0.8, 0.9), weight_decay=0.1, r=1.0),
        ),
    ],
)
def test_every_setting_reaches_the_library(settings: dict[str, Any], reference: Any) -> None:
    made, other = matrices(), matrices()
    ours = make_optimizer(made, OptimizerSettings(**settings, weight_decay=0.1))
    theirs = reference([{"params": group.parameters, "lr": group.lr} for group in other])
    if hasattr(theirs, "train"):
        theirs.train()
    for parameters, optimizer in ((made, ours), (other, theirs)):
        take_steps(optimizer, parameters, range(4))
    assert all(torch.equal(a, b) for a, b in zip(weights(made), weights(other), strict=True))


def test_usual_values_are_the_authors_where_they_differ() -> None:
    assert with_usual_values(OptimizerSettings(name="lion")).betas == [0.9, 0.99]
    assert with_usual_values(OptimizerSettings(name="came")).betas == [0.9, 0.999, 0.9999]
    assert with_usual_values(OptimizerSettings()).model_dump() == {
        "name": "adamw", "lr": None, "betas": [0.9, 0.999], "weight_decay": 0.01, "eps": 1e-8, "args": {},
    }  # fmt: skip
    # As the settings of older checkpoints have it.
    old = OptimizerSettings(name="adafactor", betas=[0.9, 0.999], eps=1e-8)
    assert with_usual_values(old) == with_usual_values(OptimizerSettings(name="adafactor"))
    assert optimizer_problems(with_usual_values(old)) == []


def test_schedule_free_shows_its_average_and_trains_on_to_the_bit() -> None:
    made = matrices()
    optimizer = make_optimizer(made, OptimizerSettings(name="schedule_free_adamw"))
    take_steps(optimizer, made, range(4))
    trained = weights(made)
    with evaluated(optimizer):
        shown = weights(made)
    assert all(torch.equal(a, b) for a, b in zip(weights(made), trained, strict=True))
    assert all(live["train_mode"] for live in optimizer.param_groups)
    for parameter, y, x in zip([p for g in made for p in g.parameters], trained, shown, strict=True):
        # y = (1 - beta) z + beta x
        torch.testing.assert_close(0.1 * optimizer.state[parameter]["z"] + 0.9 * x, y)
        assert not torch.equal(x, y)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"name": "adamv"}, "there is no 'adamv'; did you mean adam or adamw"),
        ({"name": "torch.RAdm"}, "did you mean RAdam"),
        ({"name": "LBFGS"}, "calls the model several times a step"),
        ({"name": "adafactor", "betas": [0.8, 0.9]}, "optimizer.betas: adafactor has none"),
        ({"name": "lion", "eps": 1e-6}, "optimizer.eps: lion has none"),
        ({"name": "torch.SGD", "betas": [0.8, 0.9]}, "optimizer.betas: torch.SGD has none"),
        ({"name": "came", "betas": [0.8, 0.9]}, "came takes 3 numbers, and here are 2"),
        ({"betas": [0.8, 0.9, 0.9]}, "adamw takes 2 numbers, and here are 3"),
        ({"name": "prodigy", "args": {"d_cof": 1.0}}, "prodigy has no such argument; did you mean d_coef?"),
        ({"args": {"weight_decay": 0.1}}, "say it as optimizer.weight_decay"),
        ({"name": "lion", "args": {"nothing": 1}}, "it takes use_triton, decoupled_weight_decay"),
    ],
)
def test_what_an_optimizer_has_not_is_refused(settings: dict[str, Any], told: str) -> None:
    (problem,) = optimizer_problems(usual_optimizer(OptimizerSettings(**settings)))
    assert told in problem


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(optimizers, "import_module", missing)
    (problem,) = optimizer_problems(OptimizerSettings(name="adamw_8bit"))
    assert "pip install -c constraints.txt bitsandbytes" in problem and "No module named" in problem


def test_settings_that_the_class_refuses_are_told() -> None:
    with pytest.raises(ConfigError, match=r"torch.Muon does not take these settings \(Muon only supports 2D"):
        make_optimizer(groups(), OptimizerSettings(name="torch.Muon"))


def test_paging_on_a_cpu_is_told() -> None:
    (note,) = optimizers.optimizer_notes(OptimizerSettings(name="paged_adamw_8bit"), torch.device("cpu"))
    assert "here it is adamw_8bit" in note
    assert not optimizers.optimizer_notes(OptimizerSettings(name="adamw_8bit"), torch.device("cpu"))


def test_a_part_has_its_own_settings() -> None:
    made = matrices()
    parts = {"text_encoder": PartOptimizerSettings(weight_decay=0.5, betas=[0.5, 0.6], eps=1e-4)}
    unet, text = make_optimizer(made, OptimizerSettings(), parts).param_groups
    assert (unet["weight_decay"], unet["betas"], unet["eps"]) == (0.01, (0.9, 0.999), 1e-8)
    assert (text["weight_decay"], text["betas"], text["eps"]) == (0.5, (0.5, 0.6), 1e-4)
    parts = {"unet": PartOptimizerSettings(betas=[0.3, 0.6])}
    unet, text = make_optimizer(made, OptimizerSettings(name="sgd"), parts).param_groups
    assert (unet["momentum"], text["momentum"]) == (0.3, 0.9)


def blocks() -> ParameterGroup:
    names = ["conv_in.weight", "down_blocks.0.a.weight", "down_blocks.1.a.weight", "mid_block.b.weight"]
    return ParameterGroup("unet", [f"unet.{n}" for n in names], [nn.Parameter(torch.zeros(1)) for _ in names], 1e-3, 4)


def test_rates_by_block() -> None:
    whole = blocks()
    split = split_by_blocks([whole], {"unet": {"down_blocks.1": 0.0, "down_blocks.*": 0.5, "mid_block": 2.0}})
    assert {g.part: (g.names, g.lr) for g in split} == {
        "unet": (["unet.conv_in.weight"], 1e-3),
        "unet/down_blocks.1": (["unet.down_blocks.1.a.weight"], 0.0),
        "unet/down_blocks.*": (["unet.down_blocks.0.a.weight"], 5e-4),
        "unet/mid_block": (["unet.mid_block.b.weight"], 2e-3),
    }
    assert {id(p) for g in split for p in g.parameters} == {id(p) for p in whole.parameters}
    assert all(g.epochs == 4 for g in split)
    assert [g.part for g in split_by_blocks([whole], {"unet": {"*": 0.5}})] == ["unet/*"]
    assert split_by_blocks([whole], {}) == [whole]


@pytest.mark.parametrize("factors", [{"up_blocks.*": 0.5}, {"down_blocks.*": 0.5, "down_blocks.0": 1.0}])
def test_a_pattern_for_no_block_is_refused(factors: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"unet.block_lr: '(up_blocks.\*|down_blocks.0)' matches nothing that trains"):
        split_by_blocks([blocks()], {"unet": factors})
