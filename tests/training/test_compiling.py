"""train.compile: how many graphs, what happens at the limit, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import train_here
from diffusers import UNet2DConditionModel

from everydream.config import load_config
from everydream.errors import ConfigError, TrainingError
from everydream.training import compiling, placing
from everydream.training.compiling import Graphs, compile_denoiser

SHAPES = ((8, 8), (12, 8), (8, 12), (16, 8), (8, 16), (10, 8), (8, 10), (14, 8), (8, 14))
"""Sides of latents."""
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of one test are not another's. What a graph is compiled to does not matter here."""
    torch._dynamo.reset()
    monkeypatch.setenv(compiling.BACKEND, "eager")


@pytest.fixture
def unet() -> Any:
    """Blocks of two widths, one down and one up."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=64, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def call(unet: Any, images: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width + images)
    x_BCHW = torch.randn(images, 4, height, width, generator=generator)
    tokens_BLD = torch.randn(images, 77, 64, generator=generator).requires_grad_(torch.is_grad_enabled())
    output: torch.Tensor = unet(x_BCHW, torch.arange(images), tokens_BLD, added_cond_kwargs=None).sample
    return output


@pytest.mark.parametrize(("mode", "kinds"), [("whole", 1), ("regional", 2)])
def test_nine_shapes_share_a_graph_and_a_single_image_has_another(unet: Any, mode: str, kinds: int) -> None:
    names, said = list(unet.state_dict()), []
    with torch.no_grad():
        before = call(unet, 2, 8, 8)
    graphs = compile_denoiser(unet, mode, 4, len(SHAPES), CPU)
    graphs.say = said.append
    assert graphs.most == 2 * kinds and f"at most {2 * kinds} graphs for all sizes" in graphs.describe()
    for number, (height, width) in enumerate(SHAPES):
        call(unet, 2 + number % 3, height, width)
    assert graphs.count == kinds
    for height, width in SHAPES:
        call(unet, 1, height, width)
    assert graphs.count == 2 * kinds
    assert [line.rpartition(" in ")[0] for line in said] == [
        f"Compiled graph {number} of at most {2 * kinds}" for number in range(1, 2 * kinds + 1)
    ]
    with torch.no_grad():
        assert torch.equal(call(unet, 2, 8, 8), before)
        call(unet, 6, 4, 4)
    assert graphs.count == 2 * kinds, "without gradients nothing is compiled"
    assert list(unet.state_dict()) == names


def test_where_a_part_trains_one_graph_more(unet: Any) -> None:
    """Before the first weight that trains nothing needs a gradient."""
    unet.requires_grad_(False)
    unet.up_blocks.requires_grad_(True)
    graphs = compile_denoiser(unet, "regional", 1, len(SHAPES), CPU)
    for height, width in SHAPES:
        call(unet, 1, height, width)
    assert graphs.count <= graphs.most == 3


def test_gradients_are_the_same_to_rounding(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compiler's own derivation (AOT autograd), in one graph."""
    monkeypatch.setenv(compiling.BACKEND, "aot_eager")
    block, hidden_BLD, tokens_BLD = (
        unet.mid_block.attentions[0].transformer_blocks[0],
        torch.randn(2, 24, 64),
        torch.randn(2, 77, 64),
    )

    def gradients() -> list[torch.Tensor]:
        block.zero_grad()
        block(hidden_BLD, encoder_hidden_states=tokens_BLD).square().mean().backward()
        return [parameter.grad.clone() for parameter in block.parameters()]

    plain, graphs = gradients(), compile_denoiser(block, "whole", 2, len(SHAPES), CPU)
    torch.testing.assert_close(gradients(), plain, rtol=1e-4, atol=1e-7)
    assert graphs.count == 1


@pytest.mark.parametrize(("kind", "most"), [("sd3", 2), ("flux", 2)])
def test_transformers(kind: str, most: int) -> None:
    transformer = tiny.make_flow_pipeline(kind).transformer
    graphs = compile_denoiser(transformer, "regional", 2, len(SHAPES), CPU)
    for height, width in SHAPES[:3]:
        tokens = (height // 2) * (width // 2)
        more = {"img_ids": torch.zeros(tokens, 3), "txt_ids": torch.zeros(77, 3), "guidance": torch.ones(2)}
        transformer(
            hidden_states=torch.randn(2, tokens, 16) if kind == "flux" else torch.randn(2, 4, height, width),
            encoder_hidden_states=torch.randn(2, 77, 32),
            pooled_projections=torch.randn(2, 32 if kind == "flux" else 24),
            timestep=torch.ones(2),
            **more if kind == "flux" else {},
        )
    assert graphs.count == most


def test_the_compilers_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be if every size made a graph: it goes on without, and says so once."""
    monkeypatch.setattr(compiling, "_mark", lambda inputs, sides: None)
    block, said, events = torch.nn.Linear(4, 4), [], []
    graphs = compile_denoiser(block, "whole", 1, 1, CPU)
    graphs.say, graphs.note = said.append, lambda kind, **facts: events.append((kind, facts))
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        for tokens in range(2, 14):
            assert block(torch.ones(1, tokens, 4)).shape == (1, tokens, 4)
    assert [kind for kind, _ in events] == ["compiled"] * 8 + ["compile limit"]
    assert "more than were foreseen" in said[1] and "foreseen" not in said[0]
    assert "limit of recompilations is met after 8 graphs: from now on the denoiser is computed without" in said[8]


def test_the_compilers_limit_ends_a_run_that_recomputes() -> None:
    """Half of a step with graphs and half without would not fit together."""
    with pytest.raises(TrainingError, match=r"after 9 graphs, and with gradient checkpointing .*train.compile=none"):
        compiling.Graphs("all", 1, count=9, recomputes=True).stop()


def test_what_cannot_be_compiled_is_said(unet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = unet.mid_block.forward

    def broken(*inputs: Any, **named: Any) -> Any:
        torch._dynamo.graph_break()
        return forward(*inputs, **named)

    monkeypatch.setattr(unet.mid_block, "forward", broken)
    compile_denoiser(unet, "whole", 1, 1, CPU)
    with pytest.raises(TrainingError, match=r"the denoiser cannot be compiled here .*Set train.compile: none"):
        call(unet, 1, 8, 8)


@pytest.mark.parametrize(("overrides", "message"), [
    (["train.compile=whole", "memory.fused_backward=true"], "train.compile: whole computes all gradients before any"),
    (["train.compile=regional", "memory.attention=sliced"], "does not go with memory.attention: sliced"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(project: Callable[..., Path], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(project(), overrides)


def test_what_is_missing_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> str:
        raise RuntimeError("no compiler")

    block = torch.nn.Linear(2, 2)

    def refused(device: str, mode: str = "whole") -> Graphs:
        return compile_denoiser(block, mode, 1, 1, torch.device(device))

    monkeypatch.setenv(compiling.BACKEND, "inductor")
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", nothing)
    with pytest.raises(ConfigError, match=r"there is no compiler. Install g\+\+"):
        refused("cpu")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(ConfigError, match="on a cuda PyTorch's compiler needs Triton"):
        refused("cuda")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="Triton needs a C compiler, and none is found"):
        refused("cuda")
    monkeypatch.setenv(compiling.BACKEND, "nonsense")
    with pytest.raises(
        ConfigError, match=r"EVERYDREAM_COMPILE_BACKEND: PyTorch has no compiler 'nonsense' here; it has"
    ):
        refused("cpu")
    monkeypatch.setenv(compiling.BACKEND, "eager")
    with pytest.raises(ConfigError, match="regional finds no repeated blocks in this denoiser"):
        refused("cpu", "regional")


def test_what_does_not_go_with_fsdp(project: Callable[..., Path]) -> None:
    for override, message in (
        ("train.compile=regional", "train.compile: regional does not go with FSDP"),
        ("train.channels_last=true", "train.channels_last: FSDP cuts weights in their plain layout only"),
    ):
        train = load_config(project(), [override]).train
        placing.require_unsharded(train, shards=False)
        with pytest.raises(ConfigError, match=message):
            placing.require_unsharded(train, shards=True)


def test_channels_last_is_refused_where_nothing_is_convolved(
    project: Callable[..., Path], flow_folders: dict[str, Path]
) -> None:
    config = project(model={"path": str(flow_folders["flux"])}, train={"channels_last": True})
    with pytest.raises(ConfigError, match=r"this denoiser has \d% of its weights in convolutions"):
        train_here(config)
