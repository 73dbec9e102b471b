"""Stable Diffusion 2.x: OpenCLIP ViT-H/14 text encoder (penultimate layer), epsilon at 512 px or v at 768 px."""

from everydream.formats.files import StateDict
from everydream.models.common import text_keys
from everydream.models.common.infer import text_config
from everydream.models.common.layout import UNET_PREFIX
from everydream.models.common.stable_diffusion import Config, Kind

KIND = Kind(
    name="sd2",
    architecture="stable-diffusion-v2",
    hidden_act="gelu",
    pad_token="!",
    text_to_single=text_keys.open_clip_to_single,
    text_from_single=lambda state, config: text_keys.open_clip_from_single(state, config["num_hidden_layers"]),
)
_RELEASED_LAYERS = 24
# A bias that training for v has spread out and training for epsilon has not: the released 768 px
# models lie above, the 512 px ones below. No configuration travels in a single file, so other tools
# go by the same tensor.
_TELLTALE = UNET_PREFIX + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_TELLTALE_STD = 0.09


def matches(state: StateDict) -> bool:
    """Tell whether a single file's text encoder is SD2's."""
    return text_keys.SD2_PREFIX + "positional_embedding" in state


def text_config_of(state: StateDict) -> Config:
    """Return the text encoder's configuration, from its tensors.

    The released files hold OpenCLIP's last layer, which Stable Diffusion 2 never uses; files converted
    from diffusers do not. The unused one travels along untouched.
    """
    layers = len({k.split(".")[4] for k in state if k.startswith(text_keys.SD2_PREFIX + "transformer.resblocks.")})
    has_unused = text_keys.SD2_PREFIX + "text_projection" in state or layers == _RELEASED_LAYERS
    config = text_config(text_keys.open_clip_from_single(state, layers), KIND.hidden_act)
    return {**config, "num_hidden_layers": layers - has_unused}


def prediction_of(state: StateDict) -> str:
    """Return "v" or "epsilon", judged by a tensor that differs between the released models."""
    if _TELLTALE in state and state[_TELLTALE].float().std(unbiased=False) > _TELLTALE_STD:
        return "v"
    return "epsilon"
