"""Stable Diffusion XL: CLIP ViT-L/14 and OpenCLIP ViT-bigG/14, both penultimate layers; sizes and crops; 1024 px.

Podell et al. 2023, arXiv 2307.01952. The base model; the refiner, a network of its own, is refused by name.
"""

from functools import partial

from transformers import CLIPTextModel, CLIPTextModelWithProjection

from everydream.formats.files import StateDict
from everydream.models.common import text_keys
from everydream.models.common.infer import text_config
from everydream.models.common.kinds import PLAIN, Config, Kind, TextKind

_CLIP_PREFIX = "conditioner.embedders.0.transformer."
_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
_INDEX: Config = {
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "force_zeros_for_empty_prompt": True,
}


def _clip_config(state: StateDict) -> Config:
    return text_config(text_keys.clip_from_single(state, _CLIP_PREFIX), "quick_gelu")


def _open_clip_config(state: StateDict) -> Config:
    layers = text_keys.open_clip_layers(state, _OPEN_CLIP_PREFIX)
    tensors = text_keys.open_clip_from_single(state, layers, _OPEN_CLIP_PREFIX, projected=True)
    return text_config(tensors, "gelu")


KIND = Kind(
    name="sdxl",
    architecture="stable-diffusion-xl-v1-base",
    folders={PLAIN: ("StableDiffusionXLPipeline", _INDEX)},
    texts=(
        TextKind(
            network=CLIPTextModel,
            pad_token="<|endoftext|>",
            to_single=partial(text_keys.clip_to_single, prefix=_CLIP_PREFIX),
            from_single=lambda state, config: text_keys.clip_from_single(state, _CLIP_PREFIX),
            config_of=_clip_config,
            kohya="lora_te1",
            skip=1,
            normed=False,
        ),
        TextKind(
            network=CLIPTextModelWithProjection,
            pad_token="!",
            to_single=partial(text_keys.open_clip_to_single, prefix=_OPEN_CLIP_PREFIX),
            from_single=lambda state, config: text_keys.open_clip_from_single(
                state, config["num_hidden_layers"], _OPEN_CLIP_PREFIX, projected=True
            ),
            config_of=_open_clip_config,
            part="text_encoder_2",
            tokenizer="tokenizer_2",
            kohya="lora_te2",
            skip=1,
            normed=False,
        ),
    ),
    scaling_factor=0.13025,
    sample_size=128,
    empty_prompt="zeros",
    sgm_adapters=True,
    markers=True,
)
PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")


def owns(unet: Config) -> bool:
    """Tell whether a folder with this UNet is this family's, its pipeline being so."""
    return True


def matches(state: StateDict) -> bool:
    """Tell whether a single file's text encoders are SDXL's."""
    return _OPEN_CLIP_PREFIX + "positional_embedding" in state


def prediction_of(state: StateDict) -> str:
    """Return what the UNet predicts: epsilon, but for files with the tensor that ComfyUI goes by."""
    return "v" if "v_pred" in state else "epsilon"
