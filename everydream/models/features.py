"""Networks that tell what a picture shows: rows by which pictures are compared with each other and with words.

CLIP (Radford et al. 2021, arXiv 2103.00020) knows pictures and texts; DINO (Caron et al. 2021, arXiv 2104.14294) and
DINOv2 (Oquab et al. 2023, arXiv 2304.07193) know pictures, and tell one instance of a kind from another. They are read
from a folder as transformers writes it, and nothing is ever downloaded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn import functional

from everydream.errors import ConfigError, FormatError
from everydream.models.common.reading import pretrained, read_json

_BATCH = 16
_CONFIG, _PREPARATION = "config.json", "preprocessor_config.json"
_KNOWN = "CLIP (a whole model or its image encoder), DINO or DINOv2"
Picture = NDArray[np.uint8]

# The bar of a network that is loaded in a second hides what matters.
transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Features:
    """A feature network with how pictures and texts are prepared for it."""

    name: str
    """The folder's own."""
    _network: Any
    _prepare: Callable[[Sequence[Picture]], torch.Tensor]
    _image_rows: Callable[[Any, torch.Tensor], torch.Tensor]
    _tokens: Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]] | None
    """Token ids and attention mask, each (N, L); None for networks of pictures alone."""
    _device: torch.device

    @property
    def reads_texts(self) -> bool:
        """Whether `texts` gives rows."""
        return self._tokens is not None

    @torch.no_grad()
    def images(self, images: Sequence[Picture]) -> torch.Tensor:
        """Return float32 rows (N, D) of length 1, on the CPU, of uint8 pictures (H, W, 3) of any sizes."""
        rows = [self._image_rows(self._network, self._prepare(part).to(self._device)) for part in _parts(images)]
        return _unit(rows)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor | None:
        """Return float32 rows (N, D) of length 1, on the CPU, as wide as pictures'; None if the network has no words.

        Texts are cut after the tokens that the network reads (77). Raises FormatError if its tokenizer is missing.
        """
        if self._tokens is None:
            return None
        rows = []
        for part in _parts(texts):
            tokens_NL, mask_NL = (tensor.to(self._device) for tensor in self._tokens(part))
            pooled_ND = self._network.text_model(input_ids=tokens_NL, attention_mask=mask_NL).pooler_output
            rows.append(self._network.text_projection(pooled_ND))
        return _unit(rows)


def load_features(path: Path, device: torch.device | str) -> Features:
    """Return the feature network in a folder, in float32, on `device`; never from the hub.

    Raises ConfigError if there is no such folder, FormatError if it holds no whole network of a known kind.
    """
    if not path.is_dir():
        raise ConfigError(
            f"There is no folder {path.absolute()} to read a feature network from. Nothing is downloaded here: fetch "
            f"one (its {_CONFIG}, {_PREPARATION}, weights, and for CLIP its tokenizer) and give its folder."
        )
    config = read_json(path / _CONFIG)
    kind = config.get("model_type")
    if kind not in _KINDS:
        raise FormatError(
            f"{path / _CONFIG} is of a {kind!r} model, which is no feature network that is known here. Give {_KNOWN}."
        )
    name, image_rows = _KINDS[kind]
    if "CLIPVisionModelWithProjection" in (config.get("architectures") or ()):
        name, image_rows = "CLIPVisionModelWithProjection", _projected
    prepare, network = _preparation(path), _network(getattr(transformers, name), path)
    tokens = _tokenizer(path) if kind == "clip" else None
    return Features(path.absolute().name, network.to(device).eval(), prepare, image_rows, tokens, torch.device(device))


def _projected(network: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = network.visual_projection(network.vision_model(pixel_values=pixels_BCHW).pooler_output)
    return rows


def _pooled(network: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = network(pixel_values=pixels_BCHW).pooler_output
    return rows


def _first_token(network: Any, pixels_BCHW: torch.Tensor) -> torch.Tensor:
    rows: torch.Tensor = network(pixel_values=pixels_BCHW).last_hidden_state[:, 0]
    return rows


_KINDS: dict[str, tuple[str, Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "clip": ("CLIPModel", _projected),
    "clip_vision_model": ("CLIPVisionModel", _pooled),
    "dinov2": ("Dinov2Model", _first_token),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", _first_token),
    "vit": ("ViTModel", _first_token),
}
"""By config.json's model_type: transformers' class, and what of it is the row of a picture."""


def _network(network: Any, path: Path) -> Any:
    try:
        return pretrained(network, path, ("pooler.",))  # DINO's first files lack it, and it is not asked
    except FormatError:
        raise
    except Exception as error:  # the files may hold anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FormatError(f"{path} holds no whole {network.__name__}: {reason}. Fetch the folder again.") from error


def _preparation(path: Path) -> Callable[[Sequence[Picture]], torch.Tensor]:
    """Return what makes a network's input (B, C, H, W) of pictures, by transformers on Pillow: torchvision is not here.

    DINOv2's processor is called after another network (BiT), DINO's after another too (ViT).
    """
    said = str(read_json(path / _PREPARATION).get("image_processor_type", "CLIPImageProcessor"))
    stem = said.removesuffix("Fast").removesuffix("Pil")
    if stem not in ("CLIPImageProcessor", "BitImageProcessor", "ViTImageProcessor"):
        raise FormatError(
            f"{path / _PREPARATION} prepares pictures by {said}, which is not known here. Fetch the file of the same "
            "network; those of CLIP, DINO and DINOv2 name CLIPImageProcessor, ViTImageProcessor, BitImageProcessor."
        )
    name = stem + "Pil" if hasattr(transformers, stem + "Pil") else stem  # before version 5 Pillow's is the plain name
    processor = getattr(transformers, name).from_pretrained(path, local_files_only=True)

    def prepare(images: Sequence[Picture]) -> torch.Tensor:
        pixels: torch.Tensor = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels.float()

    return prepare


def _tokenizer(path: Path) -> Callable[[Sequence[str]], tuple[torch.Tensor, torch.Tensor]]:
    """Return what makes token ids and mask of texts; the files are asked for when texts are."""

    def tokens(texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        if not any((path / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise FormatError(
                f"{path} has no tokenizer, so pictures cannot be compared with texts. Put tokenizer.json, or "
                "vocab.json and merges.txt, of the same model beside its weights."
            )
        tokenizer = transformers.CLIPTokenizer.from_pretrained(path, local_files_only=True)
        limit = min(77, int(tokenizer.model_max_length))
        found = tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return found["input_ids"], found["attention_mask"]

    return tokens


def _parts(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    yield from (items[first : first + _BATCH] for first in range(0, len(items), _BATCH))


def _unit(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    return functional.normalize(torch.cat(list(rows)).float().cpu(), dim=-1) if rows else torch.zeros(0, 0)
