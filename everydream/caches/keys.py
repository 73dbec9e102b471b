"""What a cached entry is called: a hash of everything that its numbers depend on.

    latents   the image file's bytes, where it is cut, the colour under it, how pixels are made | the VAE | dtype
    text      the caption | the text encoders | dtype, and which of the two outputs it is

An edited image, another crop, another VAE or another precision has another key, so it never meets an old entry; a
renamed or copied file has the same one. Paths and dates are in no key.
"""

import hashlib
import json
from dataclasses import astuple
from typing import Any

import PIL
import simplejpeg
import torch

from everydream.formats.files import StateDict
from everydream.types import Crop

KEY_BYTES = 16
PIXELS_VERSION = f"2, torch {torch.__version__.partition('+')[0]}, simplejpeg {simplejpeg.__version__}"
"""What makes pixels, besides Pillow.

The number is to be raised when `pictures.decode` or `data.fitting` make others of the same file and crop; a test tells.
"""


def latent_key(content: bytes, crop: Crop, background: str, encoder: str, dtype: str) -> bytes:
    """Return the key of an image's moments. `content`: the hash of its file's bytes; `encoder`: see `encoder_hash`."""
    return _key("latents", content.hex(), astuple(crop), background, PIXELS_VERSION, PIL.__version__, encoder, dtype)


def text_key(caption: str, output: str, encoder: str, dtype: str) -> bytes:
    """Return the key of one output (`tokens` or `pooled`) of the text encoders for a caption."""
    return _key("text", caption, output, encoder, dtype)


def content_hash(content: bytes) -> bytes:
    """Return the hash of a file's bytes."""
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def encoder_hash(made_by: tuple[StateDict, dict[str, Any]], kept: torch.dtype, precision: str) -> str:
    """Return what tells an encoder's results from others': its weights as they are used, its settings, its precision.

    `made_by`: see `Family.image_encoder`. `kept`: the dtype that frozen weights are rounded to.
    """
    state, facts = made_by
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(json.dumps([facts, str(kept), precision], sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        used = tensor.detach().to("cpu", kept if tensor.is_floating_point() else tensor.dtype).contiguous()
        digest.update(f"{name} {tuple(used.shape)} ".encode())
        digest.update(used.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _key(*parts: object) -> bytes:
    # JSON tells 1 from "1" and ("ab", "c") from ("a", "bc"); ASCII, so that any file name or caption can be hashed.
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=KEY_BYTES).digest()
