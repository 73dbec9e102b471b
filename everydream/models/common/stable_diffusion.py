"""Stable Diffusion 1.x and 2.x: one UNet, one CLIP text encoder, one VAE.

The two differ in the names of their text encoder in single files, in their configurations and in what
they predict; `models/sd1` and `models/sd2` say so, this file does the rest.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from everydream.diffusion.objective import OBJECTIVES, Prediction
from everydream.diffusion.schedule import make_schedule
from everydream.formats.files import StateDict, cast_floating, write_safetensors
from everydream.models.common import latents, layout, text_keys, tokenizer_files
from everydream.models.common.additions import own_state, own_weights
from everydream.models.common.clip import Clip, Reading
from everydream.types import Conditioning, Crop

Config = dict[str, Any]

# A model of three parts is loaded in a second or two; three bars for that hide what matters.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Kind:
    """What distinguishes one Stable Diffusion from another."""

    name: str
    architecture: str
    hidden_act: str
    pad_token: str
    text_to_single: Callable[[StateDict], StateDict]
    text_from_single: Callable[[StateDict, Config], StateDict]


@dataclass
class Parts:
    """A model as it comes from a file, before it becomes a family."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    tokenizer_files: tokenizer_files.Files
    scheduler: Config
    """Of the training schedule: num_train_timesteps, beta_start, beta_end, beta_schedule, prediction_type."""
    extras: StateDict = field(default_factory=dict)
    """Tensors of a single file that belong to no network; written back as they came."""


SAMPLERS: dict[str, Callable[[Config], Any]] = {
    "ddim": lambda config: DDIMScheduler(**config, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "euler": lambda config: EulerDiscreteScheduler(**config, steps_offset=1, timestep_spacing="leading"),
    "dpmpp_2m": lambda config: DPMSolverMultistepScheduler(**config, steps_offset=1, timestep_spacing="leading"),
    "unipc": lambda config: UniPCMultistepScheduler(**config, steps_offset=1, timestep_spacing="leading"),
}
"""Ways from noise to a picture that draw no noise of their own, so that a picture is its seed's; see SampleSettings."""


class StableDiffusion:
    """The Family of Stable Diffusion 1.x and 2.x."""

    denoiser = "unet"
    text_parts: tuple[str, ...] = ("text_encoder",)
    usually_frozen: tuple[str, ...] = ()

    def __init__(self, kind: Kind, parts: Parts, clip_skip: int = 0, chunks: int = 1) -> None:
        self.kind, self.name, self.architecture = kind, kind.name, kind.architecture
        self.unet, self.text_encoder, self.vae = parts.unet, parts.text_encoder, parts.vae
        self.extras = parts.extras
        self.scheduler_config = parts.scheduler
        self.tokenizer_files = tokenizer_files.packaged_if_same(parts.tokenizer_files, kind.pad_token)
        self.clip = Clip(self.text_encoder, self.tokenizer_files, Reading(skip=clip_skip, chunks=chunks))
        prediction: Prediction = "v" if parts.scheduler["prediction_type"] == "v_prediction" else "epsilon"
        schedule = make_schedule(
            parts.scheduler["beta_schedule"],
            parts.scheduler["beta_start"],
            parts.scheduler["beta_end"],
            parts.scheduler["num_train_timesteps"],
        )
        self.objective = OBJECTIVES[prediction](schedule)
        self.spatial_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.side_multiple = self.spatial_factor
        self.latent_channels = int(self.vae.config.latent_channels)
        self.native_size = int(self.unet.config.sample_size) * self.spatial_factor
        self.max_tokens = self.clip.max_tokens
        self._call_unet: nn.Module = self.unet

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by part."""
        return {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Send the calls of every trained network through `wrapper(network)`."""
        if any(p.requires_grad for p in self.unet.parameters()):
            self._call_unet = wrapper(self.unet)
        self.clip.wrap(wrapper)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass.

        The UNet's even if the text encoder alone trains: its gradients pass through the UNet.
        """
        self.unet.enable_gradient_checkpointing()
        self.clip.enable_gradient_checkpointing()

    def text_layers(self, part: str) -> Sequence[nn.Module]:
        """Return the text encoder's layers that reach the output."""
        return self.clip.layers()

    def final_norm(self, part: str) -> nn.Module:
        """Return the norm after the last layer."""
        return self.clip.final_norm()

    def unused_text_modules(self, part: str) -> Sequence[nn.Module]:
        """Return the layers that clip_skip leaves out."""
        return self.clip.unused()

    def encode_images(self, pixels_BCHW: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Return latents sampled from the VAE's posterior, times its scaling factor, float32."""
        return latents.encode(self.vae, pixels_BCHW, seeds)

    def encode_text(self, captions: Sequence[str], crops: Sequence[Crop]) -> Conditioning:
        """Return the text encoder's output for each caption, padded or cut to its length; crops mean nothing to it."""
        return Conditioning(self.clip.encode(captions)[0])

    def word_vectors(self, text: str) -> torch.Tensor:
        """Return the vocabulary's rows (V, D) of a text, begin and end left out."""
        return self.clip.word_vectors(text)

    def learn_words(self, vectors: Mapping[str, torch.Tensor], limit_norm: bool = False) -> None:
        """Add words, each with its rows (V, D), to tokenizer and embedding; once in a family's life."""
        self.clip.learn_words(vectors, limit_norm)

    def learned_words(self) -> dict[str, torch.Tensor]:
        """Return the rows (V, D) of each added word, as they are used."""
        return self.clip.learned_words()

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the UNet's output."""
        unet = self._call_unet if torch.is_grad_enabled() else self.unet
        output: torch.Tensor = unet(x_BCHW, t_B, conditioning.tokens_BLD).sample
        return output

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Return uint8 images (B, H, W, C) on the CPU."""
        return latents.decode(self.vae, latents_BCHW)

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that fit, the usual one first."""
        return tuple(SAMPLERS)

    def sampling_scheduler(self, name: str, steps: int, latent_hw: tuple[int, int], device: torch.device) -> Any:
        """Return one of `SAMPLERS` with this model's schedule and prediction type, its timesteps set."""
        scheduler = SAMPLERS[name](self.scheduler_config)
        scheduler.set_timesteps(steps, device=device)
        return scheduler

    def adapter_weights(self) -> dict[str, tuple[str, torch.Tensor]]:
        """Return {part.module: (its name in kohya's adapter files, its weight)} of all that can carry an adapter."""
        unet = {f"unet.{name}": (f"lora_unet_{name}", weight) for name, weight in own_weights(self.unet)}
        text = text_keys.without_level(dict(own_weights(self.text_encoder)))
        texts = {f"text_encoder.{name}": (f"lora_te_text_model_{name}", weight) for name, weight in text.items()}
        return {name: (theirs.replace(".", "_"), weight) for name, (theirs, weight) in (unet | texts).items()}

    def single_file(self) -> StateDict:
        """Return all tensors under CompVis' names."""
        text = text_keys.without_level(own_state(self.text_encoder))
        return {
            **self.extras,
            **layout.to_single(own_state(self.unet), layout.unet_pairs(self.unet.config), layout.UNET_PREFIX),
            **layout.to_single(self.vae.state_dict(), layout.vae_pairs(self.vae.config), layout.VAE_PREFIX),
            **self.kind.text_to_single(text),
        }

    def description(self) -> dict[str, Any]:
        """Return the configurations, and the tokenizer where it is not the packaged one."""
        custom = self.tokenizer_files != tokenizer_files.packaged_files(self.kind.pad_token)
        files = {name: content.decode() for name, content in self.tokenizer_files.items()} if custom else {}
        return {
            "family": self.name,
            "unet": _plain_config(self.unet.config),
            "vae": _plain_config(self.vae.config),
            "text_encoder": _plain_config(self.text_encoder.config.to_diff_dict()),
            "scheduler": dict(self.scheduler_config),
            "tokenizer": files,
        }

    def write_folder(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a diffusers folder that old and new readers open: see `text_keys` and `tokenizer_files`."""
        for part, module in (("unet", self.unet), ("vae", self.vae)):
            _save(folder / part / "diffusion_pytorch_model.safetensors", own_state(module), dtype)
            # Not the library's own, which names the folder that the model was read from: a resumed run,
            # whose model comes from a description, has none and would write another file.
            notes = {"_class_name": type(module).__name__, "_diffusers_version": _MODEL_INDEX["_diffusers_version"]}
            _write_json(folder / part / "config.json", {**notes, **_plain_config(module.config)})
        config = CLIPTextConfig(**_plain_config(self.text_encoder.config.to_diff_dict()))
        config.architectures = ["CLIPTextModel"]
        config.save_pretrained(folder / "text_encoder")
        text = text_keys.with_level(own_state(self.text_encoder))
        _save(folder / "text_encoder" / "model.safetensors", text, dtype)
        tokenizer_files.write_files(folder / "tokenizer", self.tokenizer_files)
        SAMPLERS["ddim"](self.scheduler_config).save_pretrained(folder / "scheduler")
        _write_json(folder / "model_index.json", _MODEL_INDEX)


_MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.35.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def _plain_config(config: Any) -> Config:
    """Return a configuration as plain JSON data, without the libraries' notes on where it was saved from."""
    notes = ("architectures", "dtype", "torch_dtype", "transformers_version")
    plain: Config = json.loads(json.dumps({k: v for k, v in dict(config).items() if k[0] != "_" and k not in notes}))
    return plain


def _write_json(path: Path, value: Config) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save(path: Path, state: StateDict, dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, cast_floating(state, dtype))
