"""`everydream evaluate`: its numbers are the formulas', a copy is found, and what cannot be told is not told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import make_images
from PIL import Image
from scipy.linalg import sqrtm
from tools.tool_app import run as command

from everydream.errors import ConfigError
from everydream.formats.pngs import write_png
from everydream.models.features import load_features
from everydream.tools.evaluate import measures
from everydream.tools.evaluate.copying import pixel_rows
from everydream.tools.evaluate.judge import scorer_of
from everydream.tools.evaluate.pictures import prompt_of
from everydream.tools.evaluate.run import Wanted, evaluate

SMALL: dict[str, Any] = {"steps": 1, "width": 64, "height": 64}


def unit(num: int, width: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    rows = torch.randn(num, width, generator=torch.Generator().manual_seed(seed)) + shift
    return torch.nn.functional.normalize(rows, dim=-1)


def test_fid_is_the_distance_of_two_gaussians_and_left_out_where_those_are_not_known() -> None:
    rows_ND, real_MD = unit(40, 8, 1, 0.3), unit(50, 8, 2)
    a, b = (measures.scaled(rows).double().numpy() for rows in (rows_ND, real_MD))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    found, warning = measures.fid(rows_ND, real_MD)
    assert found is not None and found.value == pytest.approx(expected, rel=1e-3) and found.margin is None
    assert "FID of 40 pictures is too large" in warning
    nothing, why = measures.fid(unit(8, 8, 1), real_MD)
    assert nothing is None and "covariances of 8 features, which 8 pictures do not determine (at least 9" in why


def test_kid_tells_sets_apart_and_does_not_see_what_is_not_there() -> None:
    state = torch.random.get_rng_state()
    same, warning = measures.kid(unit(120, 16, 1), unit(120, 16, 2))
    other, _ = measures.kid(unit(120, 16, 1, 0.4), unit(120, 16, 2))
    assert same is not None and other is not None and same.margin is not None and other.margin is not None
    assert abs(same.value) < same.margin and other.value > other.margin
    assert "KID of 120 pictures has a wide interval" in warning
    x, y = (measures.scaled(unit(120, 16, seed, shift)).double() for seed, shift in ((1, 0.4), (2, 0.0)))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 16 + 1) ** 3

    def among(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1))

    whole = 1000 * float(among(kernel(x, x)) + among(kernel(y, y)) - 2 * kernel(x, y).mean())
    assert abs(other.value - whole) < other.margin / 4
    assert measures.kid(unit(120, 16, 1, 0.4), unit(120, 16, 2))[0] == other
    assert torch.equal(torch.random.get_rng_state(), state)
    nothing, why = measures.kid(unit(19, 16, 1), unit(120, 16, 2))
    assert nothing is None and "of 19 pictures it would be chance" in why


def test_a_clip_score_is_of_each_picture_and_its_prompt() -> None:
    images, texts = unit(6, 8, 1), unit(6, 8, 2)
    cosines = torch.nn.functional.cosine_similarity(images, texts).clamp(min=0).double() * 100
    found = measures.clip_score(images, texts)
    assert found.value == pytest.approx(float(cosines.mean()), abs=1e-4)
    assert found.margin == pytest.approx(1.96 * float(cosines.std()) / 6**0.5, abs=1e-4)
    assert measures.mean(torch.ones(1)).margin is None


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "clip"
    tiny.save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("photos") / "mine", 24, seed=5)


@pytest.mark.parametrize("with_network", [False, True])
def test_a_copy_is_found_among_strangers(photos: Path, clip: Path, tmp_path: Path, with_network: bool) -> None:
    drawn = make_images(tmp_path / "drawn", 3, seed=9)
    original = sorted(photos.glob("*.png"))[4]
    with Image.open(original) as image:
        copy = image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)
        copy.save(drawn / "copied_(1).png")
    features = clip if with_network else None
    (judged,), by = evaluate(Wanted([drawn], training=[photos], features=features))
    first, *others = judged.pairs
    assert (first.picture.name, first.training) == ("copied_(1).png", original)
    assert first.hash_distance <= 4 < min(pair.hash_distance for pair in others)
    assert first.cosine == max(pair.cosine for pair in judged.pairs) and first.ssim > 0.95
    assert judged.measures["near copies %"].value == 25.0 and by == ("clip" if with_network else "pixels")
    assert ("CLIP score" in judged.measures) == with_network


def test_folders_by_the_command(photos: Path, clip: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ("--features", clip, "--real", photos, "--json", report)
    said = command("evaluate", photos, make_images(tmp_path / "few", 4), *options).stdout
    assert "KID is left out: of 4 pictures" in said.replace("\n", " ") and "CLIP score" in said
    first, second = json.loads(report.read_text(encoding="utf-8"))["candidates"]
    assert (first["pictures"], second["pictures"]) == (24, 4) and "KID x1000" not in second["measures"]
    assert first["measures"]["KID x1000"]["margin_95"] > 0 and "FID" not in first["measures"]
    images = [np.asarray(Image.open(path)) for path in sorted(photos.glob("*.png"))]
    features = load_features(clip, "cpu")
    texts_ND = features.texts([path.stem.split("_")[0] for path in sorted(photos.glob("*.png"))])
    assert texts_ND is not None
    expected = measures.clip_score(features.images(images), texts_ND).value
    assert first["measures"]["CLIP score"]["value"] == pytest.approx(expected, abs=1e-3)


def test_prompts_are_read_from_where_they_stand(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    write_png(tmp_path / "p00-s1.png", picture, {"prompt": "a dog"}, "another")
    Image.fromarray(picture).save(tmp_path / "a cat_(2).png")
    Image.fromarray(picture).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("a rat", encoding="utf-8")
    assert [prompt_of(tmp_path / name) for name in ("p00-s1.png", "a cat_(2).png", "x.png")] == [
        "a dog", "a cat", "a rat"
    ]  # fmt: skip


def brightness(images: list[Image.Image], prompts: list[str]) -> dict[str, float]:
    """A scorer, as users write them."""
    return {"bright": float(np.mean([np.asarray(image).mean() for image in images])), "n": len(set(prompts))}


def odd(images: list[Image.Image], prompts: list[str]) -> str:
    return "good"


def test_checkpoints_draw_and_are_judged_by_a_scorer(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x09\0\0\0\0\0\0\0{}")
    wanted = Wanted(
        models=[str(model_folder), str(broken)], prompts=tmp_path / "prompts.txt", seeds=[1, 2],
        scorer="tools.test_evaluate:brightness", out=tmp_path / "out", **SMALL,
    )  # fmt: skip
    (good, bad), _ = evaluate(wanted)
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    pixels = [np.asarray(Image.open(path)).mean() for path in cells]
    assert good.measures["bright"].value == pytest.approx(float(np.mean(pixels))) and good.measures["n"].value == 2
    assert len(cells) == 4 and not bad.measures and "is not a whole safetensors file" in bad.notes[0]
    before = [path.stat().st_mtime_ns for path in cells]
    evaluate(wanted)
    assert [path.stat().st_mtime_ns for path in cells] == before


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "Say what to judge"),
        ({"folders": True}, "Nothing to judge by"),
        ({"folders": True, "real": True, "training": True}, "--real: FID and KID are distances of features"),
        ({"models": ["m"], "scorer": "tools.test_evaluate:odd"}, "--prompts: checkpoints are judged by what they draw"),
        ({"folders": True, "scorer": "tools.test_evaluate:odd"}, "--scorer returned 'good'; it should return a dict"),
        ({"folders": True, "scorer": "nowhere:f"}, "--scorer nowhere:f: No module named"),
    ],
)
def test_what_cannot_be_judged(photos: Path, wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(Wanted(**{name: [photos] if value is True else value for name, value in wanted.items()}))


def test_the_demo_has_a_scorer() -> None:
    from demo.shapes import Subject, draw

    subjects = [Subject("ring", "red", "blue"), Subject("circle", "red", "blue"), Subject("ring", "green", "white")]
    images = [draw(subject, n) for n, subject in enumerate(subjects)]
    prompts = [subjects[0].caption, subjects[1].caption, subjects[0].caption]
    scorer = scorer_of("demo.score:by_prompts")
    assert scorer(images, prompts) == {"new shape right %": 50.0, "known shapes right %": 100.0}
    assert scorer(images[:1], ["something else"]) == {}


def test_pixel_rows_do_not_see_size_or_brightness() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 200, (64, 64, 3), dtype=np.uint8)
    larger = picture.repeat(2, 0).repeat(2, 1)
    rows = pixel_rows([picture, larger, picture + 40])
    torch.testing.assert_close(rows[1], rows[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(rows[2], rows[0], atol=1e-4, rtol=0)
