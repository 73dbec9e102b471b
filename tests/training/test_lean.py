"""Stochastic rounding, one parameter at a time, steps inside the backward pass, and what the levels come to."""

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_lr_ema_optim import weights
from torch import nn

from everydream.errors import ConfigError
from everydream.formats.files import canonical
from everydream.methods.method import ParameterGroup
from everydream.training.fused import FusedBackward
from everydream.training.lean import Lean, round_by_chance
from everydream.training.memory import LEVELS, Memory, describe_memory, memory_problems, resolved, static_bytes
from everydream.training.optim import group_state, load_optimizer_state, make_optimizer, optimizer_state
from everydream.training.optimizers import KINDS, torch_classes
from everydream.training.placing import require_one_process
from everydream.training.settings import MemorySettings, OptimizerSettings, TrainSettings


def memory(**settings: Any) -> Memory:
    return resolved(MemorySettings(**settings), TrainSettings(), OptimizerSettings())


BF16 = memory(level="low", offload_optimizer=False)
STEPWISE = [n for n in KINDS if n not in ("prodigy", "schedule_free_adamw", "paged_adamw_8bit")]
STEPWISE += [f"torch.{name}" for name in torch_classes() if name != "Adagrad"]


class Net(nn.Module):
    """Three weights, one of them used twice."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.head = nn.Linear(64, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.tanh(self.one(self.one(x))))))


def trainee(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Net, list[ParameterGroup]]:
    net = Net(seed).to(dtype)
    parts = [("unet", ["one.weight", "two.weight"]), ("text_encoder", ["head.weight"])]
    named = dict(net.named_parameters())
    return net, [ParameterGroup(part, names, [named[n] for n in names], 1e-2) for part, names in parts]


def loss_of(net: Net, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(16, 64, generator=generator), torch.randn(16, 8, generator=generator)
    return (net(x.to(net.head.weight.dtype)).float() - y).square().mean()


def lean(groups: list[ParameterGroup], use: Memory, name: str = "adamw", **settings: Any) -> Lean:
    return Lean(groups, OptimizerSettings(name=name, **settings), {}, use, seed=5)


def train(net: Net, groups: list[ParameterGroup], optimizer: Any, steps: range, max_norm: float | None = 0.5) -> None:
    for step in steps:
        loss_of(net, step).backward()
        parameters = [p for group in groups for p in group.parameters]
        clip = optimizer.clip if isinstance(optimizer, Lean) else torch.nn.utils.clip_grad_norm_
        if max_norm is not None:
            clip(parameters, max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


# --- rounding


def test_rounding_by_chance_is_right_on_average_and_never_further_than_a_neighbour() -> None:
    values = torch.tensor([1.0 + 1 / 512, -1.0 - 1 / 512, 0.02 - 1e-6, 3.3e-7, -123.456, 0.0, 1.5])
    drawn = torch.stack([round_by_chance(values, torch.Generator().manual_seed(n)) for n in range(4000)]).double()
    down, up = drawn.amin(0), drawn.amax(0)
    # Two values that lie around the true one and have no bf16 between them; what bf16 can hold stays.
    assert torch.all((down <= values) & (values <= up))
    between = torch.nextafter(down.bfloat16(), torch.full_like(down, torch.inf).bfloat16())
    assert all(u in (d, b) for d, u, b in zip(down.tolist(), up.tolist(), between.tolist(), strict=True))
    assert torch.equal(down[-2:], values[-2:].double()) and torch.equal(up[-2:], values[-2:].double())
    # Within five standard errors of the mean: the spread of a coin between the two.
    assert torch.all((drawn.mean(0) - values.double()).abs() <= 5 * 0.5 * (up - down) / 4000**0.5 + 1e-12)


def test_small_updates_add_up_by_chance_and_are_lost_to_the_nearest() -> None:
    """performance.md: 2000 updates of 1e-6 on 0.02."""
    start = torch.full((512,), 0.02).bfloat16()
    by_chance, nearest = start.clone(), start.clone()
    for step in range(2000):
        by_chance = round_by_chance(by_chance.float() - 1e-6, torch.Generator().manual_seed(step))
        nearest = (nearest.float() - 1e-6).bfloat16()
    assert torch.equal(nearest, start)
    assert float(by_chance.float().mean()) == pytest.approx(float(start[0]) - 0.002, rel=0.01)


# --- one parameter at a time


@pytest.mark.parametrize("name", STEPWISE)
def test_in_fp32_it_is_the_optimizer_itself(name: str) -> None:
    """To the bit: an update does not depend on which other parameters there are."""
    (net, groups), (other, theirs) = trainee(), trainee()
    stepwise = lean(groups, memory(offload_optimizer=True), name)
    train(net, groups, stepwise, range(4))
    train(other, theirs, make_optimizer(theirs, OptimizerSettings(name=name)), range(4))
    assert all(torch.equal(a, b) for a, b in zip(weights(groups), weights(theirs), strict=True))


@pytest.mark.parametrize("use", [BF16, replace(BF16, rounding="nearest"), replace(BF16, weights="fp32")])
@pytest.mark.parametrize("name", ["adamw", "adafactor", "adamw_8bit"])
def test_a_resumed_run_rounds_as_the_uninterrupted_one(name: str, use: Memory) -> None:
    dtype = torch.bfloat16 if use.weights == "bf16" else torch.float32
    net, groups = trainee(0, dtype)
    optimizer = lean(groups, use, name)
    train(net, groups, optimizer, range(3))
    saved = copy.deepcopy(canonical((optimizer_state(optimizer, groups), group_state(optimizer, groups))))
    values = weights(groups)
    again, theirs = trainee(7, dtype)
    for parameter, value in zip([p for g in theirs for p in g.parameters], values, strict=True):
        parameter.data.copy_(value)
    resumed = lean(theirs, use, name)
    assert load_optimizer_state(resumed, theirs, *saved) == []
    train(net, groups, optimizer, range(3, 6))
    train(again, theirs, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(weights(groups), weights(theirs), strict=True))
    ends = [canonical((optimizer_state(o, g), group_state(o, g))) for o, g in ((optimizer, groups), (resumed, theirs))]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    if name == "adamw":
        dtypes = {t.dtype for s in ends[0][0].values() for k, t in s.items() if k != "step"}
        assert dtypes == {torch.bfloat16}
    # Another seed rounds otherwise.
    if use.rounding == "stochastic" and use.weights == "bf16":
        third, last = trainee(0, dtype)
        train(third, last, Lean(last, OptimizerSettings(name=name), {}, use, seed=6), range(3))
        assert not any(torch.equal(a, b) for a, b in zip(weights(last), values, strict=True))


def test_bf16_learns_by_chance_and_hardly_to_the_nearest() -> None:
    """The same steps of 1e-4 in three precisions: how far the weights come."""
    moved = {}
    for name, use in {"fp32": None, "stochastic": BF16, "nearest": replace(BF16, rounding="nearest")}.items():
        net, groups = trainee(0, torch.float32 if use is None else torch.bfloat16)
        groups = [replace(group, lr=2e-5) for group in groups]
        start = weights(groups)
        optimizer = make_optimizer(groups, OptimizerSettings()) if use is None else lean(groups, use)
        train(net, groups, optimizer, range(40))
        moved[name] = sum(float((a - b).float().abs().mean()) for a, b in zip(weights(groups), start, strict=True))
    assert moved["nearest"] < 0.5 * moved["fp32"] < moved["stochastic"]


def test_a_parameter_without_gradient_stays() -> None:
    net, groups = trainee(0, torch.bfloat16)
    optimizer = lean(groups, BF16)
    net.one(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
    before = weights(groups)
    optimizer.step()
    after = weights(groups)
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [False, True, True]
    assert len(optimizer.state) == 1


# --- inside the backward pass


def fused_steps(
    net: Net, groups: list[ParameterGroup], optimizer: Lean, steps: range, max_norm: float | None
) -> list[float]:
    fused = FusedBackward(optimizer, groups, max_norm)
    norms = []
    for step in steps:
        fused.run(loss_of(net, step), lambda step=step: loss_of(net, step), 0, torch.Tensor.backward)
        norms.append(fused.norm)
        assert all(p.grad is None for group in groups for p in group.parameters)
    return norms


@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
def test_it_is_the_step_after_the_backward_pass_to_the_bit(max_norm: float | None) -> None:
    (net, groups), (other, theirs) = trainee(), trainee()
    norms = fused_steps(net, groups, lean(groups, memory(fused_backward=True)), range(5), max_norm)
    plain = make_optimizer(theirs, OptimizerSettings())
    for step in range(5):
        loss_of(other, step).backward()
        parameters = [p for group in theirs for p in group.parameters]
        norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)
        assert float(norm) == norms[step]
        plain.step()
        plain.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(weights(groups), weights(theirs), strict=True))


def test_gradients_are_freed_as_they_come() -> None:
    net, groups = trainee()
    held: list[int] = []
    for group in groups:
        for parameter in group.parameters:
            parameter.register_post_accumulate_grad_hook(
                lambda p: held.append(sum(q.grad is not None for q in net.parameters()))
            )
    fused_steps(net, groups, lean(groups, memory(fused_backward=True)), range(2), None)
    assert held == [1] * 6


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_nothing_steps_for_a_loss_that_is_not_finite(max_norm: float | None) -> None:
    net, groups = trainee()
    before, optimizer = weights(groups), lean(groups, memory(fused_backward=True))
    fused = FusedBackward(optimizer, groups, max_norm)
    fused.run(loss_of(net, 0) * torch.nan, lambda: loss_of(net, 0), 0, torch.Tensor.backward)
    assert fused.norm != fused.norm and not optimizer.state
    assert all(torch.equal(a, b) for a, b in zip(before, weights(groups), strict=True))


@pytest.mark.parametrize(("max_norm", "moved"), [(1.0, [False, False, False]), (None, [True, False, True])])
def test_gradients_that_are_not_finite_do_not_step(max_norm: float | None, moved: list[bool]) -> None:
    """With clipping nobody's, for the norm is not finite; without it the parameter's own, and the norm tells."""
    net, groups = trainee()
    before = weights(groups)
    net.two.weight.register_hook(lambda gradient: gradient * torch.inf)
    fused = FusedBackward(lean(groups, memory(fused_backward=True)), groups, max_norm)
    fused.run(loss_of(net, 0), lambda: loss_of(net, 0), 0, torch.Tensor.backward)
    assert not torch.isfinite(torch.tensor(fused.norm))
    assert [not torch.equal(a, b) for a, b in zip(before, weights(groups), strict=True)] == moved


def test_a_part_that_has_stopped_does_not_step() -> None:
    net, groups = trainee()
    groups[1] = replace(groups[1], epochs=1)
    before = weights(groups)
    fused = FusedBackward(lean(groups, memory(fused_backward=True)), groups, 1.0)
    fused.run(loss_of(net, 0), lambda: loss_of(net, 0), 1, torch.Tensor.backward)
    assert [torch.equal(a, b) for a, b in zip(before, weights(groups), strict=True)] == [False, False, True]
    gradients = torch.autograd.grad(loss_of(trainee()[0], 0), list(trainee()[0].parameters()), allow_unused=True)
    assert gradients  # the norm is of what trains alone
    other, theirs = trainee()
    loss_of(other, 0).backward()
    of_two = torch.nn.utils.clip_grad_norm_(theirs[0].parameters, 1e9)
    assert fused.norm == float(of_two)


# --- levels


def test_what_the_levels_come_to() -> None:
    assert memory() == Memory(True, "fp32", "stochastic", "fp32", False, "fp32", False, False, False, "auto")
    assert memory(level="max_speed") == replace(memory(), gradient_checkpointing=False)
    low = Memory(True, "bf16", "stochastic", "bf16", True, "bf16", True, False, False, "auto")
    assert memory(level="low") == low
    assert memory(level="minimal") == replace(low, fused_backward=True, sliced_vae=True)
    assert [memory(level=level).is_lean for level in LEVELS] == [False, False, True, True]
    given = resolved(
        MemorySettings(level="low", weights="fp32", offload_frozen=False),
        TrainSettings(gradient_checkpointing="selective"),
        OptimizerSettings(name="adamw_8bit"),
    )
    assert given == replace(
        low, weights="fp32", offload_frozen=False, gradient_checkpointing="selective", optimizer_state="fp32"
    )


@pytest.mark.parametrize(
    ("settings", "train_settings", "name", "told"),
    [
        ({"level": "low"}, {"precision": "fp32"}, "adamw", "memory.level: low keeps weights in bf16"),
        ({"frozen": "bf16"}, {"precision": "fp32"}, "adamw", "memory.frozen: bf16 keeps weights in bf16"),
        ({"level": "low"}, {}, "prodigy", "memory.level: low steps parameter by parameter"),
        ({"offload_optimizer": True}, {}, "torch.Adagrad", "memory.offload_optimizer: true steps"),
        ({"weights": "bf16"}, {}, "schedule_free_adamw", "averages over the steps of all"),
        ({"offload_optimizer": True}, {"precision": "fp16"}, "adamw", "does not go with fp16's loss scaler"),
        ({"level": "minimal"}, {"gradient_accumulation": 2}, "adamw", "frees each gradient at once"),
        ({"rounding": "nearest"}, {}, "adamw", "memory.rounding: nearest has no effect"),
        ({"optimizer_state": "bf16"}, {}, "adamw_8bit", "memory.optimizer_state: has no effect"),
        ({"attention": "flash"}, {"precision": "fp32"}, "adamw", "flash computes in 16 bits"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    settings: dict[str, Any], train_settings: dict[str, Any], name: str, told: str
) -> None:
    (problem,) = memory_problems(
        MemorySettings(**settings), TrainSettings(**train_settings), OptimizerSettings(name=name)
    )
    assert told in problem


def test_several_processes_cannot_step_inside_the_backward_pass() -> None:
    require_one_process(memory(level="low"), 2, shards=False)
    require_one_process(memory(level="minimal"), 1, shards=False)
    with pytest.raises(ConfigError, match="before the gradients of the 2 processes are added up"):
        require_one_process(memory(level="minimal"), 2, shards=False)
    with pytest.raises(ConfigError, match="with FSDP each process has a part of every weight"):
        require_one_process(memory(level="low"), 2, shards=True)


def test_the_plan_says_what_a_level_does() -> None:
    head, settings = describe_memory(MemorySettings(level="minimal"), memory(level="minimal"))
    assert head.startswith("level minimal: as low, and")
    assert "weights bf16, rounding stochastic" in settings and "fused_backward true" in settings
    assert "rounding" not in describe_memory(MemorySettings(), memory())[1]


def held(level: str) -> dict[str, int]:
    """Return the bytes per parameter that training holds at most, by what for, measured on tensors."""
    use = memory(level=level)
    net, groups = trainee(0, torch.bfloat16 if use.weights == "bf16" else torch.float32)
    parameters = [p for group in groups for p in group.parameters]
    optimizer = lean(groups, use) if use.is_lean else make_optimizer(groups, OptimizerSettings())
    most = [0]

    def gradients(parameter: torch.Tensor) -> None:
        most[0] = max(most[0], sum(p.grad.nbytes for p in parameters if p.grad is not None))

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(gradients)
    if use.fused_backward:
        fused_steps(net, groups, optimizer, range(1), 1.0)  # type: ignore[arg-type]
    else:
        train(net, groups, optimizer, range(1))
    state = [t for p in parameters for t in optimizer.state[p].values() if t.dim()]
    where = "offloaded" if use.offload_optimizer else "state"
    total = sum(p.numel() for p in parameters)
    one = most[0] if not use.fused_backward else 0  # one tensor's at a time, which counts as the update's room
    assert not use.fused_backward or most[0] == max(p.nbytes for p in parameters)
    return {"weights": sum(p.nbytes for p in parameters) // total, "gradients": one // total,
            where: sum(t.nbytes for t in state) // total}  # fmt: skip


def test_bytes_per_trained_parameter() -> None:
    assert held("balanced") == {"weights": 4, "gradients": 4, "state": 8}
    assert held("low") == {"weights": 2, "gradients": 2, "offloaded": 4}
    assert held("minimal") == {"weights": 2, "gradients": 0, "offloaded": 4}


def test_the_arithmetic_of_the_real_sd15() -> None:
    """UNet and text encoder trained, the VAE frozen: shapes from the published configurations, on the meta device."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        text = CLIPTextModel(CLIPTextConfig(
            hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12))  # fmt: skip
    sizes = [p.numel() for p in itertools.chain(unet.parameters(), text.parameters())]
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    assert sum(p.numel() for p in text.parameters()) == 123_060_480
    counts = {"trained": sum(sizes), "frozen": 83_653_863, "largest": max(sizes)}
    figures = {level: static_bytes(counts, memory(level=level)) for level in LEVELS}
    per_parameter = {
        level: {k: v / counts["trained"] for k, v in f.items() if k in ("weights", "gradients", "state")}
        for level, f in figures.items()
    }
    for level in LEVELS:
        measured = held(level)
        assert per_parameter[level] == {k: measured.get(k, 0) for k in ("weights", "gradients", "state")}
    trained = {level: sum(f[k] for k in ("weights", "gradients", "state")) for level, f in figures.items()}
    assert trained["balanced"] == trained["max_speed"] == 16 * counts["trained"] == 15_721_303_104
    assert trained["low"] == 4 * counts["trained"] <= 6.9e9
    assert trained["minimal"] == 2 * counts["trained"] <= 2.1e9
    assert figures["low"]["frozen"] == 0 and figures["balanced"]["frozen"] == 4 * 83_653_863
    assert figures["minimal"]["update"] == 20 * 49408 * 768
