"""What distinguishes one Stable Diffusion from another, and a model as it comes from a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from everydream.formats.files import StateDict
from everydream.models.common.tokenizer_files import Files

Config = dict[str, Any]
EmptyPrompt = Literal["zeros", "encode"]
SD_PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionDepth2ImgPipeline", "StableDiffusionControlNetPipeline",
)  # fmt: skip
"""Pipelines whose parts are Stable Diffusion 1's or 2's; the UNet's inputs are looked at as well."""
_SD_INDEX: Config = {
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
}
PLAIN, DEPTH, INPAINTING = 4, 5, 9
"""Input channels of UNets that are told nothing else, a depth map, and a mask with the rest of the picture."""
SD_FOLDERS: dict[int, tuple[str, Config]] = {
    PLAIN: ("StableDiffusionPipeline", _SD_INDEX),
    DEPTH: ("StableDiffusionDepth2ImgPipeline", {}),
    INPAINTING: ("StableDiffusionInpaintPipeline", _SD_INDEX),
}
"""Stable Diffusion 1's and 2's, see `Kind.folders`."""


@dataclass(frozen=True)
class TextKind:
    """One of a family's CLIP text encoders."""

    network: type
    """Its class in transformers."""
    pad_token: str
    to_single: Callable[[StateDict], StateDict]
    """Names without the `text_model.` level to those of single files."""
    from_single: Callable[[StateDict, Config], StateDict]
    config_of: Callable[[StateDict], Config]
    """Its configuration, from the tensors of a single file."""
    part: str = "text_encoder"
    tokenizer: str = "tokenizer"
    kohya: str = "lora_te"
    """How its modules begin in kohya's adapter files."""
    skip: int = 0
    """Layers before the last that the family takes the output of."""
    normed: bool = True
    """Whether the final norm follows that layer."""


@dataclass(frozen=True)
class Kind:
    """A Stable Diffusion."""

    name: str
    architecture: str
    folders: Mapping[int, tuple[str, Config]]
    """By the UNet's input channels, as far as they can be trained: diffusers' class, for the folders that are written,
    and what model_index.json says besides the parts."""
    texts: tuple[TextKind, ...]
    scaling_factor: float = 0.18215
    """The VAE's, for single files, which do not say it."""
    sample_size: int = 64
    """Side of the latents that it was made for, for single files."""
    empty_prompt: EmptyPrompt = "encode"
    """What an empty prompt is, where nothing else is said."""
    sgm_adapters: bool = False
    """Whether kohya's adapter files call the UNet's modules by single-file names."""
    markers: bool = False
    """Whether single files say what they predict by tensors called v_pred and ztsnr, as ComfyUI reads them."""


@dataclass
class Parts:
    """A model as it comes from a file, before it becomes a family."""

    networks: dict[str, Any]
    """By part: unet, vae, the text encoders, and of a depth model depth_estimator."""
    tokenizers: dict[str, Files]
    """Files of each text part's tokenizer."""
    scheduler: Config
    """Of the training schedule: num_train_timesteps, beta_start, beta_end, beta_schedule, prediction_type, and
    rescale_betas_zero_snr where it is true."""
    empty_prompt: EmptyPrompt = "encode"
    extractor: Config = field(default_factory=dict)
    """How images are prepared for a depth model's estimator; {} for other models."""
    extras: StateDict = field(default_factory=dict)
    """Tensors of a single file that belong to no network; written back as they came."""
