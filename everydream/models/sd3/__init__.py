"""Stable Diffusion 3 and 3.5: two CLIPs with projection, a T5 that may be absent, a multimodal transformer.

Esser et al. 2024, arXiv 2403.03206.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn
from torch.nn import functional
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from everydream.models.common.clip import Clip, Reading
from everydream.models.common.flow import FlowKind, FlowText, Texts
from everydream.models.common.t5 import T5
from everydream.types import Conditioning

_T5_TOKENS = 256
_PENULTIMATE = Reading(skip=1, normed=False)


def _encode(texts: Texts, config: Any, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both CLIPs' tokens side by side, padded to T5's width, then T5's, zeros where there is none."""
    encoded = [text.encode(captions) for text in texts.values() if isinstance(text, Clip)]
    clip_BLD = torch.cat([tokens for tokens, _ in encoded], dim=-1)
    width = int(config.joint_attention_dim)
    clip_BLD = functional.pad(clip_BLD, (0, width - clip_BLD.shape[-1]))
    t5 = next((text for text in texts.values() if isinstance(text, T5)), None)
    t5_BLD = t5.encode(captions) if t5 is not None else clip_BLD.new_zeros(len(captions), _T5_TOKENS, width)
    pooled_BD = torch.cat([pooled for _, pooled in encoded], dim=-1)
    return torch.cat([clip_BLD, t5_BLD.to(clip_BLD)], dim=1), pooled_BD


def _predict(
    transformer: nn.Module, config: Any, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning
) -> torch.Tensor:
    output: torch.Tensor = transformer(
        hidden_states=x_BCHW,
        timestep=t_B,
        encoder_hidden_states=conditioning.tokens_BLD,
        pooled_projections=conditioning.pooled_BD,
    ).sample
    return output


KIND = FlowKind(
    name="sd3",
    architecture="stable-diffusion-v3",
    pipeline="StableDiffusion3Pipeline",
    index={"feature_extractor": [None, None], "image_encoder": [None, None]},
    transformer=SD3Transformer2DModel,
    texts=(
        FlowText("text_encoder", "tokenizer", CLIPTextModelWithProjection, _PENULTIMATE),
        FlowText("text_encoder_2", "tokenizer_2", CLIPTextModelWithProjection, _PENULTIMATE),
        FlowText("text_encoder_3", "tokenizer_3", T5EncoderModel, length=_T5_TOKENS, optional=True),
    ),
    encode=_encode,
    predict=_predict,
    patch=2,
    says_sigmas=False,
    native_size=1024,
    clip_skips=True,
)
PIPELINES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
