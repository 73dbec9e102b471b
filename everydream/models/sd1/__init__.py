"""Stable Diffusion 1.x: CLIP ViT-L/14 text encoder, epsilon prediction, 512 px."""

from transformers import CLIPTextModel

from everydream.formats.files import StateDict
from everydream.models.common import text_keys
from everydream.models.common.infer import text_config
from everydream.models.common.kinds import SD_FOLDERS, SD_PIPELINES, Config, Kind, TextKind

_ACTIVATION = "quick_gelu"


def _text_config(state: StateDict) -> Config:
    return text_config(text_keys.clip_from_single(state), _ACTIVATION)


KIND = Kind(
    name="sd1",
    architecture="stable-diffusion-v1",
    folders=SD_FOLDERS,
    texts=(
        TextKind(
            network=CLIPTextModel,
            pad_token="<|endoftext|>",
            to_single=text_keys.clip_to_single,
            from_single=lambda state, config: text_keys.clip_from_single(state),
            config_of=_text_config,
        ),
    ),
)
PIPELINES = SD_PIPELINES


def owns(unet: Config) -> bool:
    """Tell whether a folder with this UNet is SD1's; its pipeline's name is SD2's as well."""
    return not unet.get("use_linear_projection")


def matches(state: StateDict) -> bool:
    """Tell whether a single file's text encoder is SD1's, with or without the `text_model.` level."""
    prefix = text_keys.SD1_PREFIX
    return any(f"{prefix}{level}embeddings.token_embedding.weight" in state for level in (text_keys.LEVEL, ""))


def prediction_of(state: StateDict) -> str:
    """Return what the UNet predicts: every released SD1 predicts epsilon."""
    return "epsilon"
