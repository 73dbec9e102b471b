"""Stable Diffusion: one UNet, one VAE, one or two CLIP text encoders.

The kinds differ in their text encoders, in names and in what they predict; `models/sd1`, `sd2` and `sdxl` say so
(`Kind`), the configurations of the networks say the rest, and this file has no case for any of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from everydream.devices import sent
from everydream.formats.files import StateDict
from everydream.models.common import (
    building,
    depth,
    folders,
    identity,
    inpainting,
    latents,
    layout,
    schedules,
    text_keys,
    tokenizer_files,
)
from everydream.models.common.additions import own_weights
from everydream.models.common.clip import Clip, Reading
from everydream.models.common.kinds import INPAINTING, Config, Kind, Parts, TextKind
from everydream.types import Conditioning, Crop

_MARKERS = ("v_pred", "ztsnr")


class StableDiffusion:
    """The Family of all Stable Diffusions with a UNet."""

    denoiser = "unet"
    usually_frozen: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("safetensors", "ckpt", "diffusers")
    adapter_names = "kohya"
    guides_itself = False

    def __init__(self, kind: Kind, parts: Parts, clip_skip: int = 0, chunks: int = 1) -> None:
        self.kind, self.name, self.architecture = kind, kind.name, kind.architecture
        self.unet, self.vae = parts.networks["unet"], parts.networks["vae"]
        self.depth_estimator, self.extractor = parts.networks.get(depth.PART), parts.extractor
        self.channels = int(self.unet.config.in_channels)
        self.needs_pixels = self.depth_estimator is not None or self.channels == INPAINTING
        self.clips = {text.part: _clip(text, parts, clip_skip, chunks) for text in kind.texts}
        self.text_parts = self.word_parts = tuple(self.clips)
        self.extras = {key: tensor for key, tensor in parts.extras.items() if key not in _MARKERS or not kind.markers}
        self.scheduler_config, self.empty_prompt = parts.scheduler, parts.empty_prompt
        self.objective = schedules.objective_of(parts.scheduler)
        self.samplers = tuple(schedules.SAMPLERS)
        self.spatial_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.side_multiple = self.spatial_factor
        self.latent_channels = int(self.vae.config.latent_channels)
        self.native_size = int(self.unet.config.sample_size) * self.spatial_factor
        self.max_tokens = self.clips[self.text_parts[0]].max_tokens
        self._call_unet: nn.Module = self.unet

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by part."""
        encoders = {part: clip.encoder for part, clip in self.clips.items()}
        further = {depth.PART: self.depth_estimator} if self.depth_estimator is not None else {}
        return {"unet": self.unet, **encoders, "vae": self.vae, **further}

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Send the calls of every trained network through `wrapper(network)`."""
        if any(p.requires_grad for p in self.unet.parameters()):
            self._call_unet = wrapper(self.unet)
        for clip in self.clips.values():
            clip.wrap(wrapper)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass.

        The UNet's even if the text encoders alone train: their gradients pass through the UNet.
        """
        self.unet.enable_gradient_checkpointing()
        for clip in self.clips.values():
            clip.enable_gradient_checkpointing()

    def text_layers(self, part: str) -> Sequence[nn.Module]:
        """Return a text encoder's layers that reach the output."""
        return self.clips[part].layers()

    def final_norm(self, part: str) -> nn.Module:
        """Return the norm after a text encoder's last layer."""
        return self.clips[part].final_norm()

    def unused_text_modules(self, part: str) -> Sequence[nn.Module]:
        """Return what clip_skip or the kind's habit leaves out of a text encoder."""
        return self.clips[part].unused()

    def encode_images(self, images_BCHW: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Return latents sampled from the VAE's posterior, times its scaling factor, float32."""
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
        """Return an inpainting model's mask and visible rest, a depth model's map; None for others."""
        if self.depth_estimator is not None:
            return depth.inputs(self.depth_estimator, self.extractor, pixels_BCHW, self.spatial_factor)
        if self.channels == INPAINTING:
            return inpainting.inputs(self.vae, pixels_BCHW, seeds, masks_B1HW)
        return None

    def blank_inputs(self, seeds: Sequence[int], image_hw: tuple[int, int]) -> torch.Tensor | None:
        """Return a mask over everything, or one depth everywhere (0); None for models without such inputs."""
        device = next(self.unet.parameters()).device
        if self.depth_estimator is not None:
            return torch.zeros(len(seeds), 1, *(side // self.spatial_factor for side in image_hw), device=device)
        return inpainting.blank(self.vae, seeds, image_hw, device) if self.channels == INPAINTING else None

    def encode_text(self, texts: Sequence[str] | Conditioning, crops: Sequence[Crop]) -> Conditioning:
        """Return what the text encoders make of the captions, or made of them, and what the crops say."""
        read = texts if isinstance(texts, Conditioning) else self.read_captions(texts)
        return replace(read, sizes_B6=sent(_sizes(crops), read.tokens_BLD.device))

    def text_encoders(self) -> tuple[StateDict, dict[str, Any]]:
        """Return what `read_captions` depends on."""
        return identity.of_texts(self.clips, self.empty_prompt)

    def read_captions(self, captions: Sequence[str]) -> Conditioning:
        """Return the text encoders' outputs side by side, and the last one's pooled vector.

        An empty caption is all zeros where the model was trained so, see `model.empty_prompt`.
        """
        encoded = [clip.encode(captions) for clip in self.clips.values()]
        tokens_BLD, pooled_BD = torch.cat([tokens for tokens, _ in encoded], dim=-1), encoded[-1][1]
        if self.empty_prompt == "zeros":
            empty_B = torch.tensor([not caption for caption in captions], device=tokens_BLD.device)
            tokens_BLD = tokens_BLD.masked_fill(empty_B.view(-1, 1, 1), 0.0)
            pooled_BD = pooled_BD.masked_fill(empty_B.view(-1, 1), 0.0)
        return Conditioning(tokens_BLD, pooled_BD)

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the UNet's output."""
        unet = self._call_unet if torch.is_grad_enabled() else self.unet
        has_more = self.unet.config.addition_embed_type == "text_time"
        more = {"text_embeds": conditioning.pooled_BD, "time_ids": conditioning.sizes_B6} if has_more else None
        if conditioning.inputs_BCHW is not None:
            x_BCHW = torch.cat([x_BCHW, conditioning.inputs_BCHW.to(x_BCHW.dtype)], dim=1)
        output: torch.Tensor = unet(x_BCHW, t_B, conditioning.tokens_BLD, added_cond_kwargs=more).sample
        return output

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Return uint8 images (B, H, W, C) on the CPU."""
        return latents.decode(self.vae, latents_BCHW)

    def sampling_scheduler(self, name: str, steps: int, latent_hw: tuple[int, int], device: torch.device) -> Any:
        """Return a sampler with this model's schedule and prediction type, its timesteps set."""
        scheduler = schedules.sampling_scheduler(name, self.scheduler_config, steps)
        scheduler.set_timesteps(steps, device=device)
        return scheduler

    def word_vectors(self, text: str, part: str = "text_encoder") -> torch.Tensor:
        """Return a vocabulary's rows (V, D) of a text, begin and end left out."""
        return self.clips[part].word_vectors(text)

    def learn_words(
        self, vectors: Mapping[str, torch.Tensor], limit_norm: bool = False, part: str = "text_encoder"
    ) -> None:
        """Add words, each with its rows (V, D), to a tokenizer and its embedding; once in a family's life."""
        self.clips[part].learn_words(vectors, limit_norm)

    def learned_words(self, part: str = "text_encoder") -> dict[str, torch.Tensor]:
        """Return the rows (V, D) of each added word, as they are used."""
        return self.clips[part].learned_words()

    def adapter_weights(self) -> dict[str, tuple[str, torch.Tensor]]:
        """Return {part.module: (its name in kohya's adapter files, its weight)} of all that can carry an adapter."""
        unet = own_weights(self.unet)
        pairs = layout.unet_pairs(self.unet.config) if self.kind.sgm_adapters else []
        named = {f"unet.{name}": (f"lora_unet_{layout.rename(name, pairs)}", weight) for name, weight in unet}
        for text in self.kind.texts:
            weights = text_keys.without_level(dict(own_weights(self.clips[text.part].encoder)))
            weights.pop(text_keys.PROJECTION.removesuffix(".weight"), None)
            level = f"{text.kohya}_text_model_"
            named |= {f"{text.part}.{name}": (level + name, weight) for name, weight in weights.items()}
        return {name: (theirs.replace(".", "_"), weight) for name, (theirs, weight) in named.items()}

    def single_file(self) -> StateDict:
        """Return all tensors under CompVis' names."""
        state = {**self.extras, **building.single_tensors(self.kind, self.modules())}
        if self.kind.markers and self.objective.prediction == "v":
            state["v_pred"] = torch.tensor([])
        if self.kind.markers and self.scheduler_config.get(schedules.ZERO_SNR):
            state["ztsnr"] = torch.tensor([])
        return state

    def description(self) -> dict[str, Any]:
        """Return the configurations, and the tokenizers where they are not the packaged ones."""
        described: Config = {
            "family": self.name,
            "unet": folders.plain_config(self.unet.config),
            "vae": folders.plain_config(self.vae.config),
            "scheduler": dict(self.scheduler_config),
        }
        if self.depth_estimator is not None:
            described |= depth.description(self.depth_estimator, self.extractor)
        if self.empty_prompt != self.kind.empty_prompt:
            described["empty_prompt"] = self.empty_prompt
        for text in self.kind.texts:
            clip = self.clips[text.part]
            custom = clip.files != tokenizer_files.packaged_files(text.pad_token)
            files = {name: content.decode() for name, content in clip.files.items()} if custom else {}
            described |= {
                text.part: folders.plain_config(clip.encoder.config.to_diff_dict()),
                text.tokenizer: files,
            }
        return described

    def write_folder(self, folder: Path, dtype: torch.dtype) -> None:
        """Write a diffusers folder that old and new readers open: see `text_keys` and `tokenizer_files`."""
        pipeline, further = self.kind.folders[self.channels]
        index: Config = {"_class_name": pipeline, **further}
        if "force_zeros_for_empty_prompt" in index:
            index["force_zeros_for_empty_prompt"] = self.empty_prompt == "zeros"
        for part, module in (("unet", self.unet), ("vae", self.vae)):
            index[part] = folders.write_network(folder / part, module, dtype)
        for text in self.kind.texts:
            clip = self.clips[text.part]
            index[text.part] = folders.write_clip(folder / text.part, clip.encoder, dtype)
            index[text.tokenizer] = folders.write_tokenizer(folder / text.tokenizer, clip.files)
        if self.depth_estimator is not None:
            index[depth.PART] = folders.write_depth_estimator(folder / depth.PART, self.depth_estimator, dtype)
            index[depth.EXTRACTOR] = folders.write_extractor(folder / depth.EXTRACTOR, self.extractor)
        index["scheduler"] = folders.write_scheduler(
            folder, schedules.sampling_scheduler("ddim", self.scheduler_config)
        )
        folders.write_index(folder, index)


def _clip(text: TextKind, parts: Parts, clip_skip: int, chunks: int) -> Clip:
    files = tokenizer_files.packaged_if_same(parts.tokenizers[text.part], text.pad_token)
    return Clip(parts.networks[text.part], files, Reading(text.skip + clip_skip, text.normed, chunks))


def _sizes(crops: Sequence[Crop]) -> torch.Tensor:
    """Return what SDXL is told of each image (B, 6), as arXiv 2307.01952, section 2.2, has it: (h, w), (top, left),
    (h, w) of the file before any resize, of the crop in the resized image, and of what is trained on."""
    rows = [(*crop.original_size, crop.top, crop.left, *crop.target_size) for crop in crops]
    return torch.tensor(rows, dtype=torch.float32).view(-1, 6)
