"""From the tensors of a single file and their configurations to networks."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from everydream.formats.files import StateDict, cast_floating
from everydream.models.common import layout, text_keys, tokenizer_files
from everydream.models.common.stable_diffusion import Config, Kind, Parts, StableDiffusion


def build_parts(kind: Kind, state: StateDict, configs: Config) -> Parts:
    """Return the networks for single-file tensors and their configurations, weights in float32.

    Raises KeyError or RuntimeError where tensors and configurations do not belong together; the
    loader turns that into a message with the file's name.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"])
        vae = AutoencoderKL.from_config(configs["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
    unet_state = layout.from_single(state, layout.unet_pairs(unet.config), layout.UNET_PREFIX)
    vae_state = layout.from_single(state, layout.vae_pairs(vae.config), layout.VAE_PREFIX)
    text_state = kind.text_from_single(state, configs["text_encoder"])
    text_state.pop("embeddings.position_ids", None)
    _fill(unet, unet_state)
    _fill(vae, vae_state)
    _fill_text(text_encoder, text_state)
    files = {name: text.encode() for name, text in configs.get("tokenizer", {}).items()}
    parts = Parts(
        unet, text_encoder, vae, files or tokenizer_files.packaged_files(kind.pad_token), configs["scheduler"]
    )
    used = StableDiffusion(kind, parts).single_file().keys()
    # A stale EMA copy would be picked up by readers that prefer EMA weights, in place of what was trained.
    parts.extras = {k: v for k, v in state.items() if k not in used and not k.startswith("model_ema.")}
    return parts


def _fill(module: nn.Module, state: StateDict) -> None:
    """Put float32 weights into a module made on the meta device."""
    module.load_state_dict(cast_floating(state, torch.float32), strict=True, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def _fill_text(text_encoder: CLIPTextModel, state: StateDict) -> None:
    """As `_fill`, whichever level names transformers uses; its position buffer is not saved, so it is made."""
    if hasattr(text_encoder, "text_model"):
        state = text_keys.with_level(state)
    _fill(text_encoder, state)
    core = getattr(text_encoder, "text_model", text_encoder)
    core.embeddings.position_ids = torch.arange(text_encoder.config.max_position_embeddings).expand(1, -1)
