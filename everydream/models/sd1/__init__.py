"""Stable Diffusion 1.x: CLIP ViT-L/14 text encoder, epsilon prediction, 512 px."""

from everydream.formats.files import StateDict
from everydream.models.common import text_keys
from everydream.models.common.infer import text_config
from everydream.models.common.stable_diffusion import Config, Kind

KIND = Kind(
    name="sd1",
    architecture="stable-diffusion-v1",
    hidden_act="quick_gelu",
    pad_token="<|endoftext|>",
    text_to_single=text_keys.clip_to_single,
    text_from_single=lambda state, config: text_keys.clip_from_single(state),
)


def matches(state: StateDict) -> bool:
    """Tell whether a single file's text encoder is SD1's, with or without the `text_model.` level."""
    prefix = text_keys.SD1_PREFIX
    return any(f"{prefix}{level}embeddings.token_embedding.weight" in state for level in (text_keys.LEVEL, ""))


def text_config_of(state: StateDict) -> Config:
    """Return the text encoder's configuration, from its tensors."""
    return text_config(text_keys.clip_from_single(state), KIND.hidden_act)


def prediction_of(state: StateDict) -> str:
    """Return what the UNet predicts: every released SD1 predicts epsilon."""
    return "epsilon"
