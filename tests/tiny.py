"""Tiny random Stable Diffusion models, made by the reference libraries, for tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from everydream.models.common import text_keys
from everydream.models.common.tokenizer_files import packaged_files, write_files


def make_pipeline(kind: str = "sd1", seed: int = 0, prediction: str | None = None) -> Any:
    """Return a StableDiffusionPipeline with random weights."""
    torch.manual_seed(seed)
    sd2 = kind == "sd2"
    width = 64
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 1) if sd2 else 8,
        use_linear_projection=sd2,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        scaling_factor=0.18215,
    )
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act="gelu" if sd2 else "quick_gelu",
        projection_dim=width,
    )
    prediction = prediction or ("v_prediction" if sd2 else "epsilon")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(config), tokenizer=tokenizer(kind), unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def tokenizer(kind: str = "sd1") -> Any:
    """Return CLIP's tokenizer as the family pads it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder) / "t", packaged_files("!" if kind == "sd2" else "<|endoftext|>"))
        return CLIPTokenizer.from_pretrained(Path(folder) / "t")


def save_pipeline(
    folder: Path, kind: str = "sd1", seed: int = 0, prediction: str | None = None, old_names: bool = True
) -> Any:
    """Write a tiny pipeline as a diffusers folder; `old_names` as the hub has it, with the `text_model.` level."""
    pipeline = make_pipeline(kind, seed, prediction)
    pipeline.save_pretrained(folder)
    weights = folder / "text_encoder" / "model.safetensors"
    if old_names:
        save_file(text_keys.with_level(load_file(weights)), weights, {"format": "pt"})
    return pipeline
