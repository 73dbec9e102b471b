"""Flux.1: one CLIP for the pooled vector, a T5 for the tokens, a transformer over packed latents with positions.

Black Forest Labs 2024. Where the transformer was distilled from guidance (dev), the scale is an input: 1 in training.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextModel, T5EncoderModel

from everydream.models.common.clip import Clip
from everydream.models.common.flow import FlowKind, FlowText, Texts
from everydream.models.common.t5 import T5
from everydream.types import Conditioning

_T5_TOKENS = 512
_PATCH = 2


def _encode(texts: Texts, config: Any, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return T5's tokens and CLIP's pooled vector."""
    clip, t5 = texts["text_encoder"], texts["text_encoder_2"]
    assert isinstance(clip, Clip) and isinstance(t5, T5)
    return t5.encode(captions), clip.encode(captions)[1]


def pack(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Return tokens (B, H/2 * W/2, 4C): each holds 2 x 2 latents, channel by channel."""
    b, c, h, w = x_BCHW.shape
    tiles = x_BCHW.view(b, c, h // _PATCH, _PATCH, w // _PATCH, _PATCH).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(b, (h // _PATCH) * (w // _PATCH), c * _PATCH**2)


def unpack(tokens_BLD: torch.Tensor, latent_hw: tuple[int, int]) -> torch.Tensor:
    """Return latents (B, C, H, W) of tokens."""
    (h, w), (b, _, d) = latent_hw, tokens_BLD.shape
    tiles = tokens_BLD.view(b, h // _PATCH, w // _PATCH, d // _PATCH**2, _PATCH, _PATCH)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(b, d // _PATCH**2, h, w)


def positions(latent_hw: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
    """Return (0, row, column) of each token (L, 3)."""
    h, w = latent_hw[0] // _PATCH, latent_hw[1] // _PATCH
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).view(-1, 3).to(like)


def _predict(
    transformer: nn.Module, config: Any, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    latent_hw = (x_BCHW.shape[-2], x_BCHW.shape[-1])
    guidance_B = conditioning.guidance_B
    if config.guidance_embeds and guidance_B is None:
        guidance_B = torch.ones_like(t_B, dtype=torch.float32)
    tokens_BLD = transformer(
        hidden_states=pack(x_BCHW),
        timestep=t_B / 1000.0,
        guidance=guidance_B,
        pooled_projections=conditioning.pooled_BD,
        encoder_hidden_states=conditioning.tokens_BLD,
        txt_ids=x_BCHW.new_zeros(conditioning.tokens_BLD.shape[1], 3),
        img_ids=positions(latent_hw, x_BCHW),
    ).sample
    return unpack(tokens_BLD, latent_hw)


KIND = FlowKind(
    name="flux",
    architecture="flux-1-dev",
    pipeline="FluxPipeline",
    index={"feature_extractor": [None, None], "image_encoder": [None, None]},
    transformer=FluxTransformer2DModel,
    texts=(
        FlowText("text_encoder", "tokenizer", CLIPTextModel),
        FlowText("text_encoder_2", "tokenizer_2", T5EncoderModel, length=_T5_TOKENS),
    ),
    encode=_encode,
    predict=_predict,
    patch=_PATCH,
    says_sigmas=True,
    native_size=1024,
    clip_skips=False,
)
PIPELINES = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
