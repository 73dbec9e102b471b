"""Stable Diffusion 2.x: OpenCLIP ViT-H/14 text encoder (penultimate layer), epsilon at 512 px or v at 768 px."""

from transformers import CLIPTextModel

from everydream.formats.files import StateDict
from everydream.models.common import text_keys
from everydream.models.common.infer import text_config
from everydream.models.common.kinds import SD_FOLDERS, SD_PIPELINES, Config, Kind, TextKind
from everydream.models.common.layout import UNET_PREFIX

_ACTIVATION = "gelu"
_RELEASED_LAYERS = 24


def _text_config(state: StateDict) -> Config:
    """Return the text encoder's configuration, from its tensors.

    The released files hold OpenCLIP's last layer, which Stable Diffusion 2 never uses; files converted
    from diffusers do not. The unused one travels along untouched.
    """
    layers = text_keys.open_clip_layers(state)
    has_unused = text_keys.SD2_PREFIX + "text_projection" in state or layers == _RELEASED_LAYERS
    config = text_config(text_keys.open_clip_from_single(state, layers), _ACTIVATION)
    return {**config, "num_hidden_layers": layers - has_unused}


KIND = Kind(
    name="sd2",
    architecture="stable-diffusion-v2",
    folders=SD_FOLDERS,
    texts=(
        TextKind(
            network=CLIPTextModel,
            pad_token="!",
            to_single=text_keys.open_clip_to_single,
            from_single=lambda state, config: text_keys.open_clip_from_single(state, config["num_hidden_layers"]),
            config_of=_text_config,
        ),
    ),
)
PIPELINES = SD_PIPELINES
# A bias that training for v has spread out and training for epsilon has not: the released 768 px
# models lie above, the 512 px ones below. No configuration travels in a single file, so other tools
# go by the same tensor.
_TELLTALE = UNET_PREFIX + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_TELLTALE_STD = 0.09


def owns(unet: Config) -> bool:
    """Tell whether a folder with this UNet is SD2's; its pipeline's name is SD1's as well."""
    return bool(unet.get("use_linear_projection"))


def matches(state: StateDict) -> bool:
    """Tell whether a single file's text encoder is SD2's."""
    return text_keys.SD2_PREFIX + "positional_embedding" in state


def prediction_of(state: StateDict) -> str:
    """Return "v" or "epsilon", judged by a tensor that differs between the released models."""
    if _TELLTALE in state and state[_TELLTALE].float().std(unbiased=False) > _TELLTALE_STD:
        return "v"
    return "epsilon"
