"""Selective recomputation, weights that visit the device, and attention backends, on networks of the libraries."""

from collections import Counter
from typing import Any

import pytest
import torch
from tiny import make_pipeline
from torch import nn

from everydream.errors import ConfigError
from everydream.models.common.memory import checkpoint_top_blocks, keep_off_device, keep_whole, set_attention, slice_vae

CPU = torch.device("cpu")


@pytest.fixture
def pipeline() -> Any:
    return make_pipeline()


def calls_of_blocks(unet: nn.Module) -> Counter[str]:
    """Return how often each block's layers ran in one forward and backward pass."""
    calls: Counter[str] = Counter()
    for name in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"):
        layer = unet.get_submodule(f"{name}.resnets.0")
        layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    unet.train()
    x = torch.randn(1, 4, 8, 8)
    unet(x, torch.tensor([5]), torch.randn(1, 77, 64)).sample.square().mean().backward()
    return calls


def test_only_the_blocks_of_full_resolution_recompute(pipeline: Any) -> None:
    unet = pipeline.unet
    unet.enable_gradient_checkpointing()
    checkpoint_top_blocks([unet, pipeline.text_encoder])
    calls = calls_of_blocks(unet)
    assert calls == {"down_blocks.0": 2, "down_blocks.1": 1, "mid_block": 1, "up_blocks.0": 1, "up_blocks.1": 2}


def test_all_blocks_recompute_without_it(pipeline: Any) -> None:
    pipeline.unet.enable_gradient_checkpointing()
    calls = calls_of_blocks(pipeline.unet)
    del calls["mid_block"]  # its first layer is never recomputed
    assert set(calls.values()) == {2}


def test_every_second_of_equal_blocks_recomputes() -> None:
    network = nn.Module()
    network.transformer_blocks = nn.ModuleList(nn.Module() for _ in range(4))
    for block in network.transformer_blocks:
        block.gradient_checkpointing = True  # type: ignore[assignment]
    checkpoint_top_blocks([network])
    assert [block.gradient_checkpointing for block in network.transformer_blocks] == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_visiting_network_gives_what_it_gives_at_home_in_that_precision(pipeline: Any, dtype: torch.dtype) -> None:
    vae, text = pipeline.vae, pipeline.text_encoder
    pixels, ids = torch.randn(2, 3, 64, 64), torch.randint(0, 1000, (2, 77))

    def results() -> list[torch.Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            mean = vae.encode(pixels.to(dtype)).latent_dist.mean
            return [mean, vae.decode(mean).sample, text(ids).last_hidden_state]

    whole = {id(p): p.detach().clone() for net in (vae, text) for p in net.parameters()}
    for network in (vae, text):
        network.requires_grad_(False)
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
    expected = results()
    seen: set[torch.dtype] = set()
    for network in (vae, text):
        for parameter in network.parameters():
            parameter.data = whole[id(parameter)]
        keep_off_device(network, CPU, dtype)
    vae.encoder.conv_in.register_forward_hook(lambda module, *_: seen.add(module.weight.dtype))
    assert all(torch.equal(a, b) for a, b in zip(results(), expected, strict=True))
    assert seen == {torch.float32}, "away again when later hooks look"
    assert all(torch.equal(p, whole[id(p)]) for net in (vae, text) for p in net.parameters())


def test_a_failing_call_sends_the_weights_home(pipeline: Any) -> None:
    pipeline.vae.requires_grad_(False)
    keep_off_device(pipeline.vae, CPU, torch.bfloat16)
    with pytest.raises(RuntimeError):
        pipeline.vae.encode(torch.randn(1, 5, 64, 64))
    assert {p.dtype for p in pipeline.vae.parameters()} == {torch.float32}


def test_sliced_attention_gives_the_same_numbers(pipeline: Any) -> None:
    unet, x, text = pipeline.unet, torch.randn(2, 4, 8, 8), torch.randn(2, 77, 64)
    with torch.no_grad():
        expected = unet(x, torch.tensor([5, 9]), text).sample
        set_attention([unet, pipeline.text_encoder], "sliced", CPU)
        kinds = {type(processor).__name__ for processor in unet.attn_processors.values()}
        torch.testing.assert_close(unet(x, torch.tensor([5, 9]), text).sample, expected, atol=1e-5, rtol=1e-5)
    assert kinds == {"SlicedAttnProcessor"}


def test_a_vae_kept_whole_computes_in_its_own_precision(pipeline: Any) -> None:
    vae, pixels = pipeline.vae, torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = vae.encode(pixels).latent_dist.mean
        with torch.autocast("cpu", torch.bfloat16):
            assert vae.encode(pixels).latent_dist.mean.dtype == torch.bfloat16
            keep_whole(vae, CPU)
            assert torch.equal(vae.encode(pixels).latent_dist.mean, whole)
            assert vae.decode(whole).sample.dtype == torch.float32


def test_a_sliced_vae_gives_the_same_latents(pipeline: Any) -> None:
    vae, pixels = pipeline.vae, torch.randn(3, 3, 64, 64)
    batches: list[int] = []
    vae.encoder.conv_in.register_forward_pre_hook(lambda module, x: batches.append(len(x[0])))
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean
        slice_vae(vae)
        torch.testing.assert_close(vae.encode(pixels).latent_dist.mean, expected, atol=1e-5, rtol=1e-5)
    assert batches == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("backend", "told"),
    [("flash", "flash runs on NVIDIA GPUs, and this is a cpu"), ("xformers", "cannot be used here")],
)
def test_what_is_not_there_is_told(pipeline: Any, backend: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        set_attention([pipeline.unet], backend, CPU)


def test_a_network_without_slices_is_told() -> None:
    with pytest.raises(ConfigError, match="sliced is not there for this model's networks"):
        set_attention([nn.Linear(1, 1)], "sliced", CPU)


def test_the_flash_kernel_alone_is_let_in(pipeline: Any) -> None:
    """Shown without a GPU by asking, inside the call, which kernels are allowed."""
    allowed: list[tuple[bool, bool, bool]] = []
    cuda = torch.backends.cuda
    attention = pipeline.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    attention.to_q.register_forward_hook(
        lambda *_: allowed.append((cuda.flash_sdp_enabled(), cuda.math_sdp_enabled(), cuda.mem_efficient_sdp_enabled()))
    )
    set_attention([attention], "flash", torch.device("cuda"))
    x = torch.randn(1, 16, 32)
    attention.to_q(x)
    with pytest.raises(RuntimeError), torch.no_grad():
        attention(x.expand(1, 16, 32).to(torch.float64))
    with torch.no_grad():
        attention.processor(attention, x)
    assert allowed == [(True, True, True), (True, False, False)]
