"""Tiny random Stable Diffusion models, made by the reference libraries, for tests."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    DPTConfig,
    DPTForDepthEstimation,
    DPTImageProcessorPil,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from everydream.models.common import text_keys
from everydream.models.common.tokenizer_files import packaged_files, write_files


def make_pipeline(kind: str = "sd1", seed: int = 0, prediction: str | None = None, channels: int = 4) -> Any:
    """Return a pipeline of diffusers with random weights: sd1, sd2 or sdxl; of 9 channels inpainting, of 5 depth."""
    torch.manual_seed(seed)
    sd2 = kind == "sd2"
    prediction = prediction or ("v_prediction" if sd2 else "epsilon")
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    if kind == "sdxl":
        return _make_sdxl(scheduler)
    width = 64
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(1, 1) if sd2 else 8,
        use_linear_projection=sd2,
    )
    vae, text = make_vae(0.18215), text_config(width, "gelu" if sd2 else "quick_gelu")
    parts = {
        "vae": vae, "text_encoder": CLIPTextModel(text), "tokenizer": tokenizer(kind), "unet": unet,
        "scheduler": scheduler,
    }  # fmt: skip
    if channels == 5:
        return StableDiffusionDepth2ImgPipeline(**parts, **_depth_parts())
    pipeline = StableDiffusionInpaintPipeline if channels == 9 else StableDiffusionPipeline
    return pipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _depth_parts() -> dict[str, Any]:
    """Return a DPT for images of 64 x 64, which takes images of that size as they are."""
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
    )  # fmt: skip
    estimator = DPTForDepthEstimation(config).eval()
    for name, parameter in estimator.named_parameters():
        if parameter.dim() > 1:  # as they start, depths differ by rounding alone
            torch.nn.init.normal_(parameter, std=0.3)
        elif name == "head.head.4.bias":
            torch.nn.init.constant_(parameter, 5.0)  # depths below 0 are cut off
    extractor = DPTImageProcessorPil(size={"height": 64, "width": 64})
    return {"depth_estimator": estimator, "feature_extractor": extractor}


def _make_sdxl(scheduler: Any) -> Any:
    """As SDXL's: no attention at the first level, two transformer layers at the second, encoders of two widths."""
    widths, projection = (32, 64), 48
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        cross_attention_dim=sum(widths),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=projection + 6 * 256,
    )
    second = CLIPTextModelWithProjection(text_config(widths[1], "gelu", projection))
    return StableDiffusionXLPipeline(
        vae=make_vae(0.13025), text_encoder=CLIPTextModel(text_config(widths[0], "quick_gelu")),
        text_encoder_2=second, tokenizer=tokenizer(), tokenizer_2=tokenizer("sd2"), unet=unet, scheduler=scheduler,
        add_watermarker=False,
    )  # fmt: skip


def t5_tokenizer() -> Any:
    """Return a T5 tokenizer that knows the letters."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz,.<>"]
    return T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)


def make_flow_pipeline(kind: str, seed: int = 0, t5: bool = True, guidance: bool = True) -> Any:
    """Return a StableDiffusion3Pipeline (sd3) or FluxPipeline (flux) with random weights."""
    torch.manual_seed(seed)
    vae = make_vae(1.5, shift_factor=0.06, latent_channels=4, use_quant_conv=False, use_post_quant_conv=False)
    encoder = T5EncoderModel(
        T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=34, dropout_rate=0.0)
    ).eval()
    if kind == "sd3":
        transformer = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
            joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=24, out_channels=4,
            pos_embed_max_size=16,
        )  # fmt: skip
        return StableDiffusion3Pipeline(
            transformer=_unzeroed(transformer), vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=CLIPTextModelWithProjection(text_config(8, "quick_gelu", 8)), tokenizer=tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(text_config(16, "gelu", 16)), tokenizer_2=tokenizer("sd2"),
            text_encoder_3=encoder if t5 else None, tokenizer_3=t5_tokenizer() if t5 else None,
        )  # fmt: skip
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=guidance, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=4, max_image_seq_len=64
    )
    return FluxPipeline(
        transformer=_unzeroed(transformer), vae=vae, scheduler=scheduler, text_encoder_2=encoder,
        tokenizer_2=t5_tokenizer(), text_encoder=CLIPTextModel(text_config(32, "quick_gelu")), tokenizer=tokenizer(),
    )  # fmt: skip


def _unzeroed(network: Any) -> Any:
    """Return a network whose zero weights are not: what starts at zero could hide a wrong input."""
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return network


def make_vae(scaling_factor: float, **changes: Any) -> AutoencoderKL:
    """Return an autoencoder of 8 pixels per latent."""
    usual: dict[str, Any] = {
        "block_out_channels": (32, 32, 32, 32), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "layers_per_block": 1,
    }  # fmt: skip
    return AutoencoderKL(**{**usual, "scaling_factor": scaling_factor, **changes})


def text_config(width: int, hidden_act: str, projection: int | None = None) -> CLIPTextConfig:
    """Return a CLIP text encoder's configuration, two layers."""
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=1,
        hidden_act=hidden_act, projection_dim=projection or width,
    )  # fmt: skip


def tokenizer(kind: str = "sd1") -> Any:
    """Return CLIP's tokenizer as the family pads it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder) / "t", packaged_files("!" if kind == "sd2" else "<|endoftext|>"))
        return CLIPTokenizer.from_pretrained(Path(folder) / "t")


CLIP_SIZES = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
SMALL_VISION: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16,
}  # fmt: skip


def save_clip(folder: Path) -> None:
    """Write a tiny random CLIP with its preparation of pictures and its tokenizer."""
    torch.manual_seed(0)
    text = {**text_config(32, "quick_gelu").to_dict(), "eos_token_id": 49407}
    vision = {**SMALL_VISION, "intermediate_size": 64}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessorPil(**CLIP_SIZES).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def save_pipeline(
    folder: Path, kind: str = "sd1", seed: int = 0, prediction: str | None = None, old_names: bool = True,
    channels: int = 4,
) -> Any:  # fmt: skip
    """Write a tiny pipeline as a diffusers folder; `old_names` as the hub has it, with the `text_model.` level."""
    pipeline = make_pipeline(kind, seed, prediction, channels)
    pipeline.save_pretrained(folder)
    weights = folder / "text_encoder" / "model.safetensors"
    if old_names:
        save_file(text_keys.with_level(load_file(weights)), weights, {"format": "pt"})
    return pipeline
