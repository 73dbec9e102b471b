"""What each method takes on Stable Diffusion 1.5: parameters, the file, memory. Computed, not measured.

The networks have SD 1.5's shape and stand on PyTorch's meta device, so they hold no numbers and take no time; the
method is attached to them as in a run, and what it trains and exports is counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from everydream.config import RunConfig
from everydream.formats.files import total_bytes
from everydream.methods import METHODS
from everydream.models.family import Family

EVERYTHING = ["attention", "feed_forward", "convolution"]
WORD = {"token": "<rex>", "init": "dog"}
DEFAULTS: dict[str, dict[str, Any]] = {
    "full, dreambooth": {},
    "full, `unet.only: [attention]`, frozen text encoder": {
        "unet": {"only": ["attention"]}, "text_encoder": {"train": False},
    },
    "lora, rank 16": {"method": "lora"},
    "lora, rank 16, all targets (LoCon)": {"method": "lora", "lora": {"targets": EVERYTHING}},
    "lora, `kind: loha`, rank 8": {"method": "lora", "lora": {"kind": "loha", "rank": 8}},
    "lora, `kind: lokr`, rank 8": {"method": "lora", "lora": {"kind": "lokr", "rank": 8}},
    # limit_norm asks for the longest vector of the vocabulary, which has no numbers here.
    "textual_inversion, one vector": {
        "method": "textual_inversion", "textual_inversion": {"words": [WORD], "limit_norm": False},
    },
    "hypernetwork": {"method": "hypernetwork"},
}  # fmt: skip
"""Sections of a config; what they leave out has its default."""
_WEIGHT_BYTES, _TRAINING_BYTES = 4, 12
"""In fp32: each weight; for those that train also its gradient and Adam's two moments."""


@dataclass(frozen=True)
class Size:
    """What one way of training takes."""

    trained: int
    """Parameters."""
    file_bytes: int
    """Of the export, in fp16."""
    state_bytes: int
    """Weights, gradients and Adam's moments, in fp32."""


def full_size(name: str = "sd15", device: str = "meta") -> Family:
    """Return networks of the shape of `sd15` or `sdxl`: without numbers, or on another device with random ones."""
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415 (seconds to import)
    from transformers import CLIPTextConfig  # noqa: PLC0415

    from everydream.models import sd1, sdxl  # noqa: PLC0415
    from everydream.models.common.kinds import Parts  # noqa: PLC0415
    from everydream.models.common.stable_diffusion import StableDiffusion  # noqa: PLC0415
    from everydream.models.common.tokenizer_files import packaged_files  # noqa: PLC0415

    kind = {"sd15": sd1.KIND, "sdxl": sdxl.KIND}[name]
    with torch.device(device):
        networks: dict[str, Any] = {"unet": UNet2DConditionModel(**_UNETS[name])}
        for text, shape in zip(kind.texts, _TEXTS[name], strict=True):
            networks[text.part] = text.network(CLIPTextConfig(**shape))
        networks["vae"] = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=2,
            scaling_factor=kind.scaling_factor,
        )
    schedule = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    files = {text.part: packaged_files(text.pad_token) for text in kind.texts}
    return StableDiffusion(kind, Parts(networks, files, {**schedule, "prediction_type": "epsilon"}))


_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "sdxl": {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
_CLIP_L = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
_CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_TEXTS: dict[str, list[dict[str, Any]]] = {"sd15": [_CLIP_L], "sdxl": [_CLIP_L, _CLIP_G]}


def size_of(sections: Mapping[str, Any]) -> Size:
    """Return what a config with these sections takes at Stable Diffusion 1.5's shape."""
    needed = {"model": {"path": "sd15"}, "data": {"sources": [{"path": "images"}]}}
    config = RunConfig.model_validate({**needed, **sections})
    family = full_size()
    method = METHODS[config.method](config)
    groups = method.attach(family, 0, [f"a photo of {WORD['token']}"])
    trained = sum(parameter.numel() for group in groups for parameter in group.parameters)
    held = sum(parameter.numel() for module in family.modules().values() for parameter in module.parameters())
    state = _WEIGHT_BYTES * held + _TRAINING_BYTES * trained
    return Size(trained, total_bytes(method.exported(family), torch.float16), state)


def table(sizes: Mapping[str, Size]) -> str:
    """Return the sizes as a table of the page."""
    head = [
        "| method at SD 1.5's shape | trained parameters | file, fp16 | weights, gradients, Adam |",
        "|---|---:|---:|---:|",
    ]
    rows = [
        f"| {name} | {size.trained:,} | {told(size.file_bytes)} | {size.state_bytes / 1e9:.2f} GB |"
        for name, size in sizes.items()
    ]
    return "\n".join([*head, *rows])


def told(num_bytes: int) -> str:
    """Return a size in the unit that fits it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes} bytes"
