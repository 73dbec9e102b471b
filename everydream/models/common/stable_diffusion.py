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

from everydream.diffusion.noise import gaussian
from everydream.diffusion.objective import OBJECTIVES, Prediction
from everydream.diffusion.schedule import make_schedule
from everydream.formats.files import StateDict, cast_floating, write_safetensors
from everydream.models.common import layout, text_keys, tokenizer_files
from everydream.models.common.additions import own_state, own_weights
from everydream.models.common.words import WordEmbedding, Words
from everydream.types import Conditioning

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

    def __init__(self, kind: Kind, parts: Parts, clip_skip: int = 0) -> None:
        self.kind, self.name, self.architecture = kind, kind.name, kind.architecture
        self.unet, self.text_encoder, self.vae = parts.unet, parts.text_encoder, parts.vae
        self.extras, self.clip_skip = parts.extras, clip_skip
        self.scheduler_config = parts.scheduler
        self.tokenizer_files = tokenizer_files.packaged_if_same(parts.tokenizer_files, kind.pad_token)
        self.tokenizer = tokenizer_files.load_tokenizer(self.tokenizer_files)
        self._words: Words | None = None
        prediction: Prediction = "v" if parts.scheduler["prediction_type"] == "v_prediction" else "epsilon"
        schedule = make_schedule(
            parts.scheduler["beta_schedule"],
            parts.scheduler["beta_start"],
            parts.scheduler["beta_end"],
            parts.scheduler["num_train_timesteps"],
        )
        self.objective = OBJECTIVES[prediction](schedule)
        self.spatial_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.native_size = int(self.unet.config.sample_size) * self.spatial_factor
        self.max_tokens = int(self.text_encoder.config.max_position_embeddings)
        self._call_unet: nn.Module = self.unet
        self._call_text_encoder: nn.Module = self.text_encoder

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by part."""
        return {"unet": self.unet, "text_encoder": self.text_encoder, "vae": self.vae}

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Send the calls of every trained network through `wrapper(network)`."""
        if any(p.requires_grad for p in self.unet.parameters()):
            self._call_unet = wrapper(self.unet)
        if any(p.requires_grad for p in self.text_encoder.parameters()):
            self._call_text_encoder = wrapper(self.text_encoder)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass.

        Both networks even if only one trains: gradients for the text encoder pass through the UNet.
        """
        self.unet.enable_gradient_checkpointing()
        if any(p.requires_grad for p in self.text_encoder.parameters()):
            # transformers renamed it in 5.x; both take torch.utils.checkpoint's arguments first.
            renamed = getattr(self.text_encoder, "activation_checkpointing_enable", None)
            (renamed or self.text_encoder.gradient_checkpointing_enable)({"use_reentrant": False})

    @property
    def _text_core(self) -> nn.Module:
        """The module with embeddings, encoder and final_layer_norm; transformers < 5.6 has it one level down."""
        core: nn.Module = getattr(self.text_encoder, "text_model", self.text_encoder)
        return core

    def text_layers(self) -> Sequence[nn.Module]:
        """Return the text encoder's layers that reach the output."""
        layers = list(self._text_core.encoder.layers)  # type: ignore[union-attr, arg-type]
        return layers[: max(len(layers) - self.clip_skip, 0)]

    def final_norm(self) -> nn.Module:
        """Return the norm after the last layer."""
        norm: nn.Module = self._text_core.final_layer_norm  # type: ignore[assignment]
        return norm

    def unused_text_modules(self) -> Sequence[nn.Module]:
        """Return the layers that clip_skip leaves out."""
        layers = list(self._text_core.encoder.layers)  # type: ignore[union-attr, arg-type]
        return layers[max(len(layers) - self.clip_skip, 0) :]

    def encode_images(self, pixels_BCHW: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Return latents sampled from the VAE's posterior, times its scaling factor, float32."""
        # To [-1, 1], as latent diffusion's VAE was trained.
        images = pixels_BCHW.to(next(self.vae.parameters()).dtype) / 127.5 - 1.0
        with torch.no_grad():
            posterior = self.vae.encode(images).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        noise = gaussian(seeds, "posterior", mean.shape[1:]).to(mean)
        latents: torch.Tensor = (mean + std * noise) * float(self.vae.config.scaling_factor)
        return latents

    def encode_text(self, captions: Sequence[str]) -> Conditioning:
        """Return the text encoder's output for each caption, padded or cut to its length.

        clip_skip n takes the output of the n-th layer from the end, through the final norm, as NovelAI
        and the tools that followed it do.
        """
        ids_BL = self._tokenize(captions).to(next(self.text_encoder.parameters()).device)
        # Without gradients there is nothing to exchange: one process may sample while the others wait.
        text_encoder = self._call_text_encoder if torch.is_grad_enabled() else self.text_encoder
        if not self.clip_skip:
            return Conditioning(text_encoder(ids_BL).last_hidden_state)
        hidden = text_encoder(ids_BL, output_hidden_states=True).hidden_states
        return Conditioning(self.final_norm()(hidden[-1 - self.clip_skip]))

    def word_vectors(self, text: str) -> torch.Tensor:
        """Return the vocabulary's rows (V, D) of a text, begin and end left out."""
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        weight: torch.Tensor = self.text_encoder.get_input_embeddings().weight
        return weight[torch.tensor(ids, dtype=torch.long, device=weight.device)].detach()

    def learn_words(self, vectors: Mapping[str, torch.Tensor], limit_norm: bool = False) -> None:
        """Add words, each with its rows (V, D), to tokenizer and embedding; once in a family's life."""
        assert self._words is None, "words were added already"
        embedding = self.text_encoder.get_input_embeddings()
        longest = float(embedding.weight.detach().norm(dim=-1).max()) if limit_norm else None
        self._words = Words(self.tokenizer, {word: len(rows_VD) for word, rows_VD in vectors.items()})
        self._text_core.embeddings.token_embedding = WordEmbedding(  # type: ignore[union-attr]
            embedding, torch.cat(list(vectors.values())), self._words.first_id, longest
        )

    def learned_words(self) -> dict[str, torch.Tensor]:
        """Return the rows (V, D) of each added word, as they are used."""
        embedding = self._text_core.embeddings.token_embedding  # type: ignore[union-attr]
        return self._words.split(embedding.rows().detach()) if self._words is not None else {}  # type: ignore[union-attr, operator]

    def _tokenize(self, captions: Sequence[str]) -> torch.Tensor:
        if self._words is not None:
            captions = [self._words.spell_out(caption) for caption in captions]
        encoded = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        ids: torch.Tensor = encoded.input_ids
        return ids

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the UNet's output."""
        unet = self._call_unet if torch.is_grad_enabled() else self.unet
        output: torch.Tensor = unet(x_BCHW, t_B, conditioning.tokens_BLD).sample
        return output

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Return uint8 images (B, H, W, C) on the CPU."""
        with torch.no_grad():
            latents = latents_BCHW.to(next(self.vae.parameters()).dtype) / float(self.vae.config.scaling_factor)
            images = self.vae.decode(latents).sample
        pixels: torch.Tensor = ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu()

    def sampling_scheduler(self, name: str = "ddim") -> Any:
        """Return one of `SAMPLERS` with this model's schedule and prediction type."""
        return SAMPLERS[name](self.scheduler_config)

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
        self.sampling_scheduler().save_pretrained(folder / "scheduler")
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
