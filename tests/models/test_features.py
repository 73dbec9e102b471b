"""Feature networks from folders, beside what transformers makes of the same files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from everydream.errors import ConfigError, FormatError
from everydream.models.features import load_features

_SIZES, _SMALL = tiny.CLIP_SIZES, tiny.SMALL_VISION


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole CLIP, its image encoder, a DINOv2 and a DINO, all random."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("features")
    vision = {**_SMALL, "intermediate_size": 64}
    networks: dict[str, tuple[Any, Any]] = {
        "tower": (
            CLIPVisionModelWithProjection(CLIPVisionConfig(**vision, projection_dim=24)),
            CLIPImageProcessorPil(**_SIZES),
        ),
        "dinov2": (Dinov2Model(Dinov2Config(**_SMALL)), BitImageProcessorPil(**_SIZES)),
        "dino": (
            ViTModel(ViTConfig(**_SMALL, intermediate_size=64), add_pooling_layer=False),
            ViTImageProcessorPil(size={"height": 32, "width": 32}),
        ),
    }
    for name, (network, processor) in networks.items():
        network.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    tiny.save_clip(root / "clip")
    return {name: root / name for name in ("clip", *networks)}


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray[Any, Any]]:
    """More than one batch of them, of several sizes."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (40 + 8 * (n % 3), 64, 3), dtype=np.uint8) for n in range(18)]


@torch.no_grad()
def _by_the_library(name: str, folder: Path, pictures: list[np.ndarray[Any, Any]]) -> torch.Tensor:
    """Return the library's own rows, one picture at a time."""
    processors = {"dinov2": BitImageProcessorPil, "dino": ViTImageProcessorPil}
    processor = processors.get(name, CLIPImageProcessorPil).from_pretrained(folder)
    networks: dict[str, Any] = {
        "clip": (CLIPModel, lambda n, x: n(input_ids=torch.tensor([[49406, 49407]]), pixel_values=x).image_embeds),
        "tower": (CLIPVisionModelWithProjection, lambda n, x: n(pixel_values=x).image_embeds),
        "dinov2": (Dinov2Model, lambda n, x: n(pixel_values=x).pooler_output),
        "dino": (ViTModel, lambda n, x: n(pixel_values=x).last_hidden_state[:, 0]),
    }
    network, rows = networks[name]
    loaded = network.from_pretrained(folder).eval()
    found = [rows(loaded, processor(images=picture, return_tensors="pt")["pixel_values"]) for picture in pictures]
    return torch.nn.functional.normalize(torch.cat(found), dim=-1)


@pytest.mark.parametrize("name", ["clip", "tower", "dinov2", "dino"])
def test_rows_of_pictures_are_the_librarys(
    name: str, folders: dict[str, Path], pictures: list[np.ndarray[Any, Any]]
) -> None:
    features = load_features(folders[name], "cpu")
    rows_ND = features.images(pictures)
    torch.testing.assert_close(rows_ND, _by_the_library(name, folders[name], pictures), atol=2e-6, rtol=0)
    torch.testing.assert_close(rows_ND.norm(dim=-1), torch.ones(18))
    assert features.name == name and features.reads_texts == (name == "clip")
    assert (rows_ND[0] - rows_ND[1]).abs().max() > 1e-3


@torch.no_grad()
def test_rows_of_texts_are_the_librarys(folders: dict[str, Path]) -> None:
    texts = ["a photo of a dog", "a drawing, of several rings on a blue background", "x " * 200]
    rows_ND = load_features(folders["clip"], "cpu").texts(texts)
    network, tokenizer = CLIPModel.from_pretrained(folders["clip"]).eval(), tiny.tokenizer()
    pixels = torch.zeros(1, 3, 32, 32)
    for text, row_D in zip(texts, rows_ND, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=77, return_tensors="pt")
        torch.testing.assert_close(network(pixel_values=pixels, **tokens).text_embeds[0], row_D, atol=2e-6, rtol=0)
    assert load_features(folders["dino"], "cpu").texts(texts) is None


def test_what_is_no_feature_network_is_refused_with_the_reason(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*nowhere.*Nothing is downloaded"):
        load_features(tmp_path / "nowhere", "cpu")
    broken = tmp_path / "broken"
    shutil.copytree(folders["clip"], broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(FormatError, match="has no tokenizer"):
        load_features(broken, "cpu").texts(["a dog"])
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(FormatError, match="holds no whole CLIPModel.*Fetch the folder again"):
        load_features(broken, "cpu")
    (broken / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "OddProcessor"}))
    with pytest.raises(FormatError, match="prepares pictures by OddProcessor"):
        load_features(broken, "cpu")
    (broken / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(FormatError, match="'bert' model.*Give CLIP"):
        load_features(broken, "cpu")
