"""The seam for model families: what the step, the sampler and the checkpoints ask of a model.

A family owns its networks, their names in files and what its conditioning means. The step knows only
the verbs below, so a new family is one folder beside `sd1/` and one line in `models/load.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from everydream.diffusion.objective import Objective
from everydream.formats.files import StateDict
from everydream.types import Conditioning, Crop


class Family(Protocol):
    """A model that can be trained, sampled and written."""

    name: str
    architecture: str
    """Its name in Stability's modelspec metadata."""
    denoiser: str
    """The part that predicts: unet or transformer."""
    text_parts: tuple[str, ...]
    """The text encoders among the parts, by diffusers' names."""
    usually_frozen: tuple[str, ...]
    """Those of them that train only where a section of their own says so."""
    word_parts: tuple[str, ...]
    """Those of them that can learn words."""
    formats: tuple[str, ...]
    """Those of `models.write` that it can be written in."""
    adapter_names: str
    """Whose names its adapter files have: kohya's or diffusers'."""
    guides_itself: bool
    """Whether the network takes the guidance scale as an input, in the place of a second prediction."""
    spatial_factor: int
    """Pixels per latent, along a side."""
    side_multiple: int
    """Image sides are multiples of so many pixels."""
    latent_channels: int
    needs_pixels: bool
    """Whether `image_inputs` shows it something of the pixels, so that latents alone do not do."""
    max_tokens: int
    native_size: int
    """Side in pixels of the square images that the model was made for."""

    @property
    def objective(self) -> Objective:
        """What the network predicts, and the formulas that go with it."""

    def modules(self) -> dict[str, nn.Module]:
        """Return the networks by part: the denoiser, the text parts, vae."""

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Send the calls of every trained network through `wrapper(network)` (DDP); names and state stay."""

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass of what trains."""

    def text_layers(self, part: str) -> Sequence[nn.Module]:
        """Return a text part's layers that reach the output, first to last."""

    def final_norm(self, part: str) -> nn.Module:
        """Return the norm behind a text part's last layer."""

    def unused_text_modules(self, part: str) -> Sequence[nn.Module]:
        """Return the modules of a text part that do not reach the output: clip_skip, or the family's own habit."""

    def encode_images(self, images_BCHW: torch.Tensor, seeds: Sequence[int]) -> torch.Tensor:
        """Return scaled latents (B, C, H, W), each sampled from its posterior with its own seed.

        `images_BCHW`: uint8 pixels, or what `image_moments` returned for some.
        """

    def image_moments(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return means and log-variances (B, 2C, h, w), float32, of the posteriors of uint8 pixels."""

    def image_encoder(self) -> tuple[StateDict, dict[str, Any]]:
        """Return all that `image_moments` depends on: tensors by name, and plain data."""

    def image_inputs(
        self, pixels_BCHW: torch.Tensor, seeds: Sequence[int], masks_B1HW: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return further input channels (B, C, h, w) of uint8 pixels, at the size of their latents.

        None for models that take noised latents alone. `masks_B1HW`: the images' own, white trains, where they have
        some. What is left to chance is drawn from the images' seeds.
        """

    def blank_inputs(self, seeds: Sequence[int], image_hw: tuple[int, int]) -> torch.Tensor | None:
        """Return further input channels (B, C, h, w), or None, for pictures of nothing but their captions."""

    def encode_text(self, texts: Sequence[str] | Conditioning, crops: Sequence[Crop]) -> Conditioning:
        """Return the conditioning of a batch, and of where its images were cut.

        `texts`: captions, or what `read_captions` returned for them.
        """

    def read_captions(self, captions: Sequence[str]) -> Conditioning:
        """Return what the text encoders make of captions: tokens (B, L, D) and, where there is one, a pooled vector."""

    def text_encoders(self) -> tuple[StateDict, dict[str, Any]]:
        """Return all that `read_captions` depends on: tensors by name, and plain data."""

    def predict(self, x_BCHW: torch.Tensor, t_B: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """Return the network's prediction for noised latents."""

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Return uint8 images (B, H, W, C), on the CPU, of scaled latents."""

    @property
    def samplers(self) -> tuple[str, ...]:
        """The samplers that fit, by the names of `SampleSettings`, the usual one first."""

    def sampling_scheduler(self, name: str, steps: int, latent_hw: tuple[int, int], device: torch.device) -> Any:
        """Return a fresh scheduler of the reference library for latents of this height and width, its timesteps set."""

    def word_vectors(self, text: str, part: str = "text_encoder") -> torch.Tensor:
        """Return the rows (V, D) of a text in a text part's vocabulary."""

    def learn_words(
        self, vectors: Mapping[str, torch.Tensor], limit_norm: bool = False, part: str = "text_encoder"
    ) -> None:
        """Add words to a text part, each with its rows (V, D).

        `limit_norm`: none counts as longer than the vocabulary's longest.
        """

    def learned_words(self, part: str = "text_encoder") -> dict[str, torch.Tensor]:
        """Return the rows (V, D) of each word that was added to a text part."""

    def adapter_weights(self) -> dict[str, tuple[str, torch.Tensor]]:
        """Return {part.module: (its name in kohya's adapter files, its weight)} of all that can carry an adapter."""

    def single_file(self) -> StateDict:
        """Return the model's own tensors, without what a method added, under the names of single-file checkpoints."""

    def description(self) -> dict[str, Any]:
        """Return plain data that, with `single_file`, rebuilds the model."""

    def write_folder(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the model as a diffusers folder."""
