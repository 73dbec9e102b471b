"""Flow-matching transformers: one transformer, one VAE, CLIP text encoders and a T5.

Esser et al. 2024, arXiv 2403.03206. What differs between them (how the encoders' outputs are put together, how the
latents are handed over) is in `models/sd3` and `models/flux`, as a `FlowKind`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import CLIPTextConfig, T5Config, T5EncoderModel

from everydream.diffusion.objective import Flow
from everydream.errors import ConfigError
from everydream.formats.files import StateDict, cast_floating
from everydream.models.common import folders, identity, latents, t5, text_keys, tokenizer_files
from everydream.models.common.additions import own_state, own_weights
from everydream.models.common.clip import Clip, Reading
from everydream.models.common.kinds import Config, EmptyPrompt
from everydream.models.common.t5 import T5
from everydream.types import Conditioning, Crop

Texts = Mapping[str, Clip | T5]


@dataclass(frozen=True)
class FlowText:
    """One of a family's text encoders."""

    part: str
    tokenizer: str
    network: type
    reading: Reading | None = None
    """Of a CLIP, where it is not the usual one."""
    length: int = 0
    """Tokens of a T5."""
    optional: bool = False
    """Whether the family does without."""

    @property
    def is_t5(self) -> bool:
        """Whether it is a T5."""
        return self.network is T5EncoderModel


@dataclass(frozen=True)
class FlowKind:
    """A family of flow transformers."""

    name: str
    architecture: str
    pipeline: str
    index: Config
    transformer: type
    texts: tuple[FlowText, ...]
    encode: Callable[[Texts, Any, Sequence[str]], tuple[torch.Tensor, torch.Tensor]]
    """(encoders, the transformer's configuration, captions) -> (tokens, pooled)."""
    predict: Callable[[nn.Module, Any, torch.Tensor, torch.Tensor, Conditioning], torch.Tensor]
    """(transformer, its configuration, x, t, conditioning) -> prediction."""
    patch: int
    """Latents per token, along a side."""
    says_sigmas: bool
    """Whether the pipeline hands the scheduler evenly spaced sigmas, and not a number of steps."""
    native_size: int
    clip_skips: bool
    """Whether clip_skip has an effect: of a CLIP that gives the pooled vector alone it has none."""
    empty_prompt: EmptyPrompt = "encode"


@dataclass
class FlowParts:
    """A model as it comes from a folder or a last.ckpt."""

    networks: dict[str, Any]
    tokenizers: dict[str, dict[str, bytes]]
    scheduler: Config
    empty_prompt: EmptyPrompt = "encode"


class FlowTransformer:
    """The Family of flow transformers."""

    denoiser = "transformer"
    samplers: tuple[str, ...] = ("euler",)
    formats: tuple[str, ...] = ("diffusers",)
    adapter_names = "diffusers"
    needs_pixels = False

    def __init__(self, kind: FlowKind, parts: FlowParts, clip_skip: int = 0, chunks: int = 1) -> None:
        _require_sensible(kind, clip_skip, chunks)
        self.kind, self.name, self.architecture = kind, kind.name, kind.architecture
        self.transformer, self.vae = parts.networks["transformer"], parts.networks["vae"]
        self.texts: dict[str, Clip | T5] = {
            text.part: _text(text, parts, clip_skip) for text in kind.texts if text.part in parts.networks
        }
        self.text_parts = tuple(self.texts)
        self.usually_frozen = tuple(part for part, text in self.texts.items() if isinstance(text, T5))
        self.word_parts = tuple(part for part in self.text_parts if part not in self.usually_frozen)
        self.scheduler_config, self.empty_prompt = parts.scheduler, parts.empty_prompt
        self.objective = Flow(self._shift)
        self.spatial_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.side_multiple = self.spatial_factor * kind.patch
        self.latent_channels = int(self.vae.config.latent_channels)
        self.native_size = kind.native_size
        self.guides_itself = bool(getattr(self.transformer.config, "guidance_embeds", False))
        lengths = [text.length for text in self.texts.values() if isinstance(text, T5)]
        self.max_tokens = max(lengths, default=next(iter(self.texts.values())).length)
        self._call_transformer: nn.Module = self.transformer

    def _mu(self, latent_hw: tuple[int, int]) -> float:
        """Return the shift's logarithm for so many image tokens, linear between two given numbers of them."""
        config = self.scheduler_config
        num = (latent_hw[0] // self.kind.patch) * (latent_hw[1] // self.kind.patch)
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return float(base + (num - low) * (most - base) / (high - low))

    def _shift(self, latent_hw: tuple[int, int]) -> float:
        config = self.scheduler_config
        if not config.get("use_dynamic_shifting"):
            return float(config.get("shift", 1.0))
        mu = self._mu(latent_hw)
        return mu if config.get("time_shift_type") == "linear" else math.exp(mu)

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by part."""
        encoders = {part: text.encoder for part, text in self.texts.items()}
        return {"transformer": self.transformer, **encoders, "vae": self.vae}

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Send the calls of every trained network through `wrapper(network)`."""
        if any(p.requires_grad for p in self.transformer.parameters()):
            self._call_transformer = wrapper(self.transformer)
        for text in self.texts.values():
            text.wrap(wrapper)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass; the transformer's even if text encoders alone train."""
        self.transformer.enable_gradient_checkpointing()
        for text in self.texts.values():
            text.enable_gradient_checkpointing()

    def text_layers(self, part: str) -> Sequence[nn.Module]:
        """Return a text encoder's layers that reach the output."""
        return self.texts[part].layers()

    def final_norm(self, part: str) -> nn.Module:
        """Return the norm behind a text encoder's last layer."""
        return self.texts[part].final_norm()

    def unused_text_modules(self, part: str) -> Sequence[nn.Module]:
        """Return what does not reach the output of a text encoder."""
        return self.texts[part].unused()

    def encode_images(self, images_BCHW: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Return (z - shift) * scale of the VAE's posterior, float32."""
        return latents.encode(self.vae, images_BCHW, seeds)

    def image_moments(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the moments of the VAE's posterior, float32."""
        return latents.moments(self.vae, pixels_BCHW)

    def image_encoder(self) -> tuple[StateDict, dict[str, Any]]:
        """Return what moments depend on: the VAE's encoding half."""
        return latents.made_by(self.vae, folders.plain_config(self.vae.config))

    def image_inputs(
        self, pixels_BCHW: torch.Tensor, seeds: Sequence[int], masks_B1HW: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return None: these take no further channels."""
        return None

    def blank_inputs(self, seeds: Sequence[int], image_hw: tuple[int, int]) -> torch.Tensor | None:
        """Return None: these take no further channels."""
        return None

    def encode_text(self, texts: Sequence[str] | Conditioning, crops: Sequence[Crop]) -> Conditioning:
        """Return what the text encoders make of the captions, or made of them; crops mean nothing to it."""
        return texts if isinstance(texts, Conditioning) else self.read_captions(texts)

    def text_encoders(self) -> tuple[StateDict, dict[str, Any]]:
        """Return what `read_captions` depends on."""
        return identity.of_texts(self.texts, self.empty_prompt)

    def read_captions(self, captions: Sequence[str]) -> Conditioning:
        """Return tokens and the pooled vector as the kind puts them together."""
        tokens_BLD, pooled_BD = self.kind.encode(self.texts, self.transformer.config, captions)
        if self.empty_prompt == "zeros":
            empty_B = torch.tensor([not caption for caption in captions], device=tokens_BLD.device)
            tokens_BLD = tokens_BLD.masked_fill(empty_B.view(-1, 1, 1), 0.0)
            pooled_BD = pooled_BD.masked_fill(empty_B.view(-1, 1), 0.0)
        return Conditioning(tokens_BLD, pooled_BD)

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the transformer's output, in the shape of the latents."""
        transformer = self._call_transformer if torch.is_grad_enabled() else self.transformer
        return self.kind.predict(transformer, self.transformer.config, x_BCHW, t_B.float(), conditioning)

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Return uint8 images (B, H, W, C) on the CPU."""
        return latents.decode(self.vae, latents_BCHW)

    def sampling_scheduler(self, name: str, steps: int, latent_hw: tuple[int, int], device: torch.device) -> Any:
        """Return the Euler scheduler, its timesteps set and shifted for latents of this size."""
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config)
        mu = self._mu(latent_hw) if self.scheduler_config.get("use_dynamic_shifting") else None
        if self.kind.says_sigmas:
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu, device=device)
        else:
            scheduler.set_timesteps(steps, mu=mu, device=device)
        return scheduler

    def word_vectors(self, text: str, part: str = "text_encoder") -> torch.Tensor:
        """Return a CLIP vocabulary's rows (V, D) of a text."""
        return self._clip(part).word_vectors(text)

    def learn_words(
        self, vectors: Mapping[str, torch.Tensor], limit_norm: bool = False, part: str = "text_encoder"
    ) -> None:
        """Add words to a CLIP's tokenizer and embedding."""
        self._clip(part).learn_words(vectors, limit_norm)

    def learned_words(self, part: str = "text_encoder") -> dict[str, torch.Tensor]:
        """Return the rows (V, D) of each added word."""
        return self._clip(part).learned_words()

    def _clip(self, part: str) -> Clip:
        clip = self.texts[part]
        assert isinstance(clip, Clip), "T5 learns no words"
        return clip

    def adapter_weights(self) -> dict[str, tuple[str, torch.Tensor]]:
        """Return {part.module: (its name in kohya's spelling, its weight)} of all that can carry an adapter."""
        found: dict[str, tuple[str, torch.Tensor]] = {}
        for part in (self.denoiser, *self.word_parts):
            weights = text_keys.without_level(dict(own_weights(self.modules()[part])))
            found |= {f"{part}.{name}": (f"lora_{part}_{name}".replace(".", "_"), w) for name, w in weights.items()}
        return found

    def single_file(self) -> StateDict:
        """Return all tensors as `part.name`: for last.ckpt, not for other tools."""
        return {
            f"{part}.{name}": tensor
            for part, network in self.modules().items()
            for name, tensor in _without_ties(own_state(network)).items()
        }

    def description(self) -> dict[str, Any]:
        """Return the configurations and the tokenizers."""
        described: Config = {
            "family": self.name,
            "transformer": folders.plain_config(self.transformer.config),
            "vae": folders.plain_config(self.vae.config),
            "scheduler": dict(self.scheduler_config),
            "empty_prompt": self.empty_prompt,
        }
        for kind in self.kind.texts:
            if kind.part in self.texts:
                text = self.texts[kind.part]
                described[kind.part] = folders.plain_config(text.encoder.config.to_diff_dict())
                described[kind.tokenizer] = t5.as_text(text.files)
        return described

    def write_folder(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a diffusers folder."""
        index: Config = {"_class_name": self.kind.pipeline, **self.kind.index}
        for part, module in (("transformer", self.transformer), ("vae", self.vae)):
            index[part] = folders.write_network(folder / part, module, dtype)
        for kind in self.kind.texts:
            text = self.texts.get(kind.part)
            if isinstance(text, Clip):
                index[kind.part] = folders.write_clip(folder / kind.part, text.encoder, dtype)
                index[kind.tokenizer] = folders.write_tokenizer(folder / kind.tokenizer, text.files)
            elif text is not None:
                state = _without_ties(own_state(text.encoder))
                index[kind.part] = folders.write_t5(folder / kind.part, text.encoder, state, dtype)
                t5.write_files(folder / kind.tokenizer, text.files)
                index[kind.tokenizer] = ["transformers", "T5TokenizerFast"]
            else:
                index |= {kind.part: [None, None], kind.tokenizer: [None, None]}
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(self.scheduler_config)
        index["scheduler"] = folders.write_scheduler(folder, scheduler)
        folders.write_index(folder, index)


def _require_sensible(kind: FlowKind, clip_skip: int, chunks: int) -> None:
    if clip_skip and not kind.clip_skips:
        raise ConfigError(
            f"text_encoder.clip_skip: has no effect on a {kind.name} model, which takes one vector of its CLIP, from "
            "behind the last layer. Take it out."
        )
    if chunks != 1:
        raise ConfigError(
            f"text_encoder.chunks: has no effect on a {kind.name} model, whose T5 reads long captions as they are. "
            "Take it out."
        )


def _text(text: FlowText, parts: FlowParts, clip_skip: int) -> Clip | T5:
    encoder, files = parts.networks[text.part], parts.tokenizers[text.part]
    if text.is_t5:
        return T5(encoder, files, text.length)
    reading = text.reading or Reading()
    return Clip(encoder, files, Reading(reading.skip + clip_skip, reading.normed))


def _without_ties(state: StateDict) -> StateDict:
    """Leave out T5's second name for its embedding."""
    return {key: t for key, t in state.items() if key != "encoder.embed_tokens.weight" or "shared.weight" not in state}


def build_parts(kind: FlowKind, state: StateDict, configs: Config) -> FlowParts:
    """Return the networks of what `single_file` and `description` gave, weights in float32."""
    texts = [text for text in kind.texts if text.part in configs]
    with torch.device("meta"):
        networks: dict[str, Any] = {
            "transformer": kind.transformer.from_config(configs["transformer"]),  # type: ignore[attr-defined]
            **{t.part: t.network((T5Config if t.is_t5 else CLIPTextConfig)(**configs[t.part])) for t in texts},
            "vae": AutoencoderKL.from_config(configs["vae"]),
        }
    for part, network in networks.items():
        own = {key.removeprefix(f"{part}."): t for key, t in state.items() if key.startswith(f"{part}.")}
        found = network.load_state_dict(cast_floating(own, torch.float32), strict=False, assign=True)
        if lacking := [name for name in found.missing_keys if name != "encoder.embed_tokens.weight"]:
            raise KeyError(f"{part}.{lacking[0]}")
        if hasattr(network, "tie_weights"):
            network.tie_weights()  # T5 has one embedding under two names
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        core = getattr(network, "text_model", network)
        if hasattr(core, "embeddings"):
            core.embeddings.position_ids = torch.arange(network.config.max_position_embeddings).expand(1, -1)
    tokenizers = {text.part: t5.from_text(configs[text.tokenizer]) for text in texts}
    return FlowParts(networks, tokenizers, configs["scheduler"], configs["empty_prompt"])


def folder_parts(kind: FlowKind, folder: Path, index: Config, pretrained: Callable[[Any, Path], Any]) -> FlowParts:
    """Return the parts of a diffusers folder; `pretrained` loads one network."""
    texts = [text for text in kind.texts if not text.optional or index.get(text.part, [None])[0] is not None]
    classes = {"transformer": kind.transformer, **{text.part: text.network for text in texts}, "vae": AutoencoderKL}
    networks = {part: pretrained(network, folder / part) for part, network in classes.items()}
    tokenizers = {
        text.part: (t5 if text.is_t5 else tokenizer_files).folder_files(folder / text.tokenizer) for text in texts
    }
    saved = dict(FlowMatchEulerDiscreteScheduler.load_config(folder / "scheduler"))
    scheduler = {key: value for key, value in saved.items() if not key.startswith("_")}
    return FlowParts(networks, tokenizers, scheduler, kind.empty_prompt)
