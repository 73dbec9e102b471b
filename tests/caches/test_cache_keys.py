"""Keys: everything that an entry's numbers depend on, and nothing else."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image

from everydream.caches.keys import PIXELS_VERSION, content_hash, encoder_hash, latent_key, text_key
from everydream.data.fitting import choose_crop, read_cut
from everydream.models.common import latents
from everydream.types import Crop

CROP = Crop((100, 200), 3, 7, (64, 128), False)


def test_everything_that_latents_depend_on_is_in_their_key() -> None:
    """Defect 22, ED2 #109, K #931 and #709: names and dates alone are not what an image is."""
    content = content_hash(b"an image")
    key = latent_key(content, CROP, "#ffffff", "vae", "fp32")
    crops = [
        replace(CROP, original_size=(100, 201)), replace(CROP, top=4), replace(CROP, left=8),
        replace(CROP, target_size=(128, 64)), replace(CROP, flipped=True),
    ]  # fmt: skip
    others = [latent_key(content, crop, "#ffffff", "vae", "fp32") for crop in crops]
    others += [
        latent_key(content_hash(b"an imagf"), CROP, "#ffffff", "vae", "fp32"),
        latent_key(content, CROP, "#000000", "vae", "fp32"),
        latent_key(content, CROP, "#ffffff", "another", "fp32"),
        latent_key(content, CROP, "#ffffff", "vae", "fp16"),
        text_key("a cat", "tokens", "vae", "fp32"),
    ]
    assert len({key, *others}) == 11
    assert latent_key(content_hash(b"an image"), replace(CROP), "#ffffff", "vae", "fp32") == key


def test_everything_that_a_read_caption_depends_on_is_in_its_key() -> None:
    parts = [
        ("a cat", "tokens", "clip", "fp32"),
        ("a cat", "pooled", "clip", "fp32"),
        ("a cat ", "tokens", "clip", "fp32"),
    ]
    parts += [
        ("a cat", "tokens", "other", "fp32"),
        ("a cat", "tokens", "clip", "bf16"),
        ("\udcff", "tokens", "clip", "fp32"),
    ]
    assert len({text_key(*part) for part in parts}) == len(parts)


def test_an_encoder_is_its_weights_settings_and_precision() -> None:
    vae = tiny.make_vae(0.18)
    made = latents.made_by(vae, {"act_fn": "silu", "scaling_factor": 0.18})
    same = encoder_hash(made, torch.float32, "fp32")
    assert encoder_hash(latents.made_by(vae, {"act_fn": "silu", "scaling_factor": 0.13}), torch.float32, "fp32") == same
    others = {
        encoder_hash(made, torch.bfloat16, "fp32"),
        encoder_hash(made, torch.float32, "bf16"),
        encoder_hash(latents.made_by(vae, {"act_fn": "gelu"}), torch.float32, "fp32"),
    }
    with torch.no_grad():
        vae.decoder.conv_in.weight[0, 0, 0, 0] += 1.0
        assert encoder_hash(latents.made_by(vae, made[1]), torch.float32, "fp32") == same, "encodes as before"
        vae.encoder.conv_in.weight[0, 0, 0, 0] += 2**-12
    others.add(encoder_hash(latents.made_by(vae, made[1]), torch.float32, "fp32"))
    assert len(others | {same}) == 5


def test_the_same_files_still_give_the_same_pixels(tmp_path: Path) -> None:
    """If this fails because decoding or fitting has changed, raise PIXELS_VERSION and write the new hash here."""
    y, x = np.mgrid[:400, :640]
    path = tmp_path / "a.png"  # not a JPEG, whose pixels are its decoder's
    Image.fromarray(np.stack([x // 3, y // 2, (x * y) % 256], -1).astype(np.uint8)).save(path)
    pixels_CHW = read_cut(path, lambda size: choose_crop(size, (64, 48), 5, "random", 1.0), "#ffffff", 1.0)[0]
    assert (PIXELS_VERSION.split(",")[0], hashlib.sha256(pixels_CHW.tobytes()).hexdigest()[:16]) == (
        "2",
        "114288d44c1fe182",
    )
