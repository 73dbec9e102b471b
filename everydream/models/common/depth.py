"""The depth map that a depth model is told besides noised latents, by its folder's DPT (arXiv 2103.13413).

The estimator is a part of the model that never trains: it is placed, frozen and written as the VAE is. Single files
of others hold it under MiDaS' names in another layout, which is not converted; ours under transformers' names.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation

from everydream.errors import FormatError
from everydream.formats.files import StateDict
from everydream.models.common.additions import own_state
from everydream.models.common.folders import plain_config
from everydream.models.common.kinds import Config
from everydream.models.common.reading import pretrained, read_json

PART, EXTRACTOR = "depth_estimator", "feature_extractor"
PREFIX = PART + "."
EXTRACTOR_FILE = "preprocessor_config.json"
_UNUSED = ("neck.fusion_stage.layers.0.residual_layer1.",)
"""Of the first fusion, which has nothing to fuse with; files that come from MiDaS lack it."""
_MODES = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""
_AS_RELEASED = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_pad": False, "keep_aspect_ratio": False,
}  # fmt: skip


def inputs(network: Any, extractor: Config, pixels_BCHW: torch.Tensor, spatial_factor: int) -> torch.Tensor:
    """Return depth maps (B, 1, h, w) of uint8 pixels, -1 .. 1 in each image, as StableDiffusionDepth2ImgPipeline does.

    Where all is equally deep, which leaves the pipeline without a number, the map is 0.
    """
    with torch.no_grad():
        depth_BHW = network(prepared(pixels_BCHW, extractor, next(network.parameters()).dtype)).predicted_depth
    latent_hw = [side // spatial_factor for side in pixels_BCHW.shape[-2:]]
    depth = functional.interpolate(depth_BHW.float().unsqueeze(1), size=latent_hw, mode="bicubic", align_corners=False)
    low, high = depth.amin((1, 2, 3), keepdim=True), depth.amax((1, 2, 3), keepdim=True)
    return torch.where(high > low, 2.0 * (depth - low) / (high - low) - 1.0, 0.0)


def prepared(pixels_BCHW: torch.Tensor, extractor: Config, dtype: torch.dtype) -> torch.Tensor:
    """Return what the estimator sees (B, C, H', W'), as transformers' DPTImageProcessor gives it."""
    # Only the kernel for uint8, which only the CPU has, rounds as Pillow does: to a grey level in a few pixels.
    mode = _MODES[extractor.get("resample", 3)]
    images = functional.interpolate(pixels_BCHW.cpu(), size=_size(extractor), mode=mode, antialias=True)
    values = images.to(pixels_BCHW.device, dtype) * extractor.get("rescale_factor", 1 / 255)
    mean, std = (_per_channel(extractor.get(name), values) for name in ("image_mean", "image_std"))
    normalised: torch.Tensor = (values - mean) / std
    return normalised


def _per_channel(values: list[float] | None, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values or [0.5, 0.5, 0.5], device=like.device, dtype=like.dtype).view(-1, 1, 1)


def _size(extractor: Config) -> tuple[int, int]:
    size, multiple = extractor.get("size", 384), extractor.get("ensure_multiple_of", 1)
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    return round(height / multiple) * multiple, round(width / multiple) * multiple


def require_known(extractor: Config, path: Path) -> None:
    """Raise FormatError for preparations of the image that are not done here."""
    odd = [f"{name} {extractor[name]}" for name, usual in _AS_RELEASED.items() if extractor.get(name, usual) != usual]
    odd += [] if extractor.get("resample", 3) in _MODES else [f"resample {extractor['resample']}"]
    try:
        _size(extractor)
    except (KeyError, TypeError, ZeroDivisionError):
        odd.append(f"size {json.dumps(extractor.get('size'))}")
    if odd:
        raise FormatError(
            f"{path} asks for {', '.join(odd)}, which is not done here, so depths would be wrong. The estimator of "
            "Stable Diffusion 2's depth model asks for a resize to a fixed size, rescaling and normalising."
        )


def load(folder: Path) -> tuple[Any, Config]:
    """Return (estimator, configuration of its preparation) of a diffusers folder."""
    path = folder / EXTRACTOR / EXTRACTOR_FILE
    extractor = read_json(path)
    require_known(extractor, path)
    return pretrained(DPTForDepthEstimation, folder / PART, _UNUSED), extractor


def with_estimator(
    tensors: StateDict, configs: Config, described: Config, folder: Path | None, path: Path
) -> tuple[StateDict, Config]:
    """Return a depth model's tensors and configurations with an estimator: its own, or that of `model.config`."""
    if folder is not None and (folder / PART).is_dir():
        network, extractor = load(folder)
        own = single_tensors(network)
        return {**tensors, **own}, {**configs, **description(network, extractor)}
    ours = {name: described[name] for name in (PART, EXTRACTOR) if name in described}
    if len(ours) < 2:
        raise FormatError(
            f"{path} is a depth model without a depth estimator that can be read here: other tools' files have it "
            "under names that are not converted. Give the diffusers folder of the model as model.path; or as "
            "model.config a diffusers folder with depth_estimator and feature_extractor, which are taken from there."
        )
    require_known(ours[EXTRACTOR], path)
    return tensors, {**configs, **ours}


def single_tensors(network: Any) -> StateDict:
    """Return the estimator's tensors by their names in our single files."""
    return {PREFIX + name: tensor for name, tensor in own_state(network).items()}


def description(network: Any, extractor: Config) -> Config:
    """Return what `Family.description` says of an estimator."""
    return {PART: plain_config(network.config.to_diff_dict()), EXTRACTOR: extractor}


def empty(config: Config) -> Any:
    """Return an estimator of this configuration; within `torch.device("meta")`, without weights."""
    return DPTForDepthEstimation(DPTConfig(**config))
