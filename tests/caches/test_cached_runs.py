"""Runs with caches: the same numbers as without, nothing decoded, resumed to the bit, nothing frozen in silence."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
from conftest import make_images, metrics_of, train_here
from PIL import Image
from safetensors.torch import load_file, save_file

from everydream import train as room
from everydream.caches import filling, shards
from everydream.caches.keys import content_hash
from everydream.caches.shards import list_shards
from everydream.caches.store import Store, as_keys
from everydream.caching import variants_of
from everydream.data.loader import JobDataset
from everydream.errors import ConfigError
from everydream.training import accumulating
from everydream.training.runs import find_checkpoint

ONE_SIZE = ((96, 80),)
FROZEN_TEXT: dict[str, Any] = {"train": False}


@pytest.fixture
def fixed(project: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a config in which nothing about the crops is random, and no batch holds a single image."""
    for name, count, seed in (("mine", 6, 1), ("real", 5, 2)):
        make_images(tmp_path / name, count, ONE_SIZE, seed)

    def write(**sections: Any) -> Path:
        return project(**{"data": {"crop": "center"}, "text_encoder": FROZEN_TEXT, **sections})

    return write


class Killed(BaseException):
    """Stands for a process that ends without another word."""


def die_after(monkeypatch: pytest.MonkeyPatch, target: object, name: str, calls: int) -> None:
    """Let `target.name` work `calls` times and die at the next."""
    original, count = getattr(target, name), [0]

    def dying(*args: object) -> object:
        count[0] += 1
        if count[0] > calls:
            raise Killed
        return original(*args)

    monkeypatch.setattr(target, name, dying)


def digest(run: Path) -> list[str]:
    """Return hashes of the whole state and of the metrics."""
    files = (run / "checkpoints" / "last.ckpt", run / "metrics.jsonl")
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics_of(run)]


def counted(name: str) -> Any:
    """Return a patch that counts the pictures that a module decodes."""
    from everydream.data import fitting as room

    return patch(name, side_effect=room.read_cut)


@pytest.mark.parametrize("what", ["latents", "text"])
def test_a_cached_run_is_the_uncached_one_to_the_bit(fixed: Callable[..., Path], what: str) -> None:
    config = fixed()
    plain = train_here(config)
    with counted("everydream.data.loader.read_cut") as decoded, counted("everydream.caches.filling.read_cut") as filled:
        cached = train_here(config, f"cache.{what}=true")
        assert (decoded.call_count, filled.call_count) == ((0, 11) if what == "latents" else (32, 0))
        again = train_here(config, f"cache.{what}=true")
        assert filled.call_count == (11 if what == "latents" else 0), "another run shares what is there"
    assert losses(plain) == losses(cached) == losses(again)


def test_single_images_and_halved_numbers_differ_by_their_rounding(
    project: Callable[..., Path], tmp_path: Path
) -> None:
    """Left-overs of one image: a CPU's convolutions of one small image round otherwise than of several."""
    config = project(data={"crop": "center"}, text_encoder=FROZEN_TEXT, train={"epochs": 1})
    plain = losses(train_here(config))
    for dtype, tolerance in (("fp32", 1e-5), ("fp16", 1e-3), ("bf16", 1e-2)):
        cached = losses(train_here(config, "cache.latents=true", "cache.text=true", f"cache.dtype={dtype}"))
        assert cached == pytest.approx(plain, rel=tolerance) and cached != plain


def test_the_posterior_is_drawn_anew_at_each_visit(fixed: Callable[..., Path], model_folder: Path) -> None:
    from everydream.config import load_config
    from everydream.models.load import load

    family = load(load_config(fixed()).model)
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    moments = family.image_moments(pixels)
    first, second = family.encode_images(moments, [1, 2]), family.encode_images(moments, [3, 2])
    assert torch.equal(first, family.encode_images(pixels, [1, 2]))
    assert torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])


def test_an_edited_image_another_vae_and_another_crop_meet_no_old_latent(
    fixed: Callable[..., Path], tmp_path: Path, model_folder: Path
) -> None:
    """Defect 22; ED2 #109, K #931, #709."""
    config = fixed(train={"epochs": 1, "max_steps": 1, "batch_size": 16})
    cached = "cache.latents=true"
    folder = shutil.copytree(model_folder, tmp_path / "other")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae = load_file(weights)
    vae["encoder.conv_out.bias"] += 0.25
    save_file(vae, weights, {"format": "pt"})
    one, other = sorted((tmp_path / "mine").iterdir())[:2]
    before = {path: path.stat() for path in (one, other)}
    swapped = {one: other.read_bytes(), other: one.read_bytes()}
    with counted("everydream.caches.filling.read_cut") as filled:
        first = train_here(config, cached)
        all_of_them = filled.call_count
    assert all_of_them >= 10
    for override in (f"model.path={folder}", "data.resolution=48", "data.background='#000000'"):
        with counted("everydream.caches.filling.read_cut") as filled:
            run = train_here(config, cached, override)
            assert filled.call_count == all_of_them, override
        if "background" not in override:  # which none of these pictures shows
            assert losses(run) == pytest.approx(losses(train_here(config, override)), rel=1e-6) != losses(first)
    for path, content in swapped.items():  # the same two names, sizes apart, each with the other's picture
        path.write_bytes(content)
        os.utime(path, ns=(before[path].st_atime_ns, before[path].st_mtime_ns))
    with counted("everydream.caches.filling.read_cut") as filled:
        run = train_here(config, cached)
        assert filled.call_count == 0, "the pictures are known by what is in them"
    assert losses(run) == pytest.approx(losses(train_here(config)), rel=1e-6) != losses(first)


def test_killed_while_filling_and_while_training_it_goes_on_to_the_same_bits(
    fixed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fixed(
        checkpoints={"every_steps": 2}, cache={"latents": True, "text": True, "variants": 2},
        data={"crop": "random", "flip_p": 0.5},
    )  # fmt: skip
    with counted("everydream.caches.filling.read_cut") as filled:
        straight = train_here(config)
        all_of_them = filled.call_count
    assert all_of_them > 16
    shutil.rmtree(straight.parent / "cache")
    monkeypatch.setattr(filling, "SHARD_ENTRIES", 4)
    with monkeypatch.context() as patch:
        die_after(patch, filling, "encoded", 2)
        with pytest.raises(Killed):
            train_here(config)
    kept = Store(straight.parent / "cache")
    assert len(kept.shards) == 2 and kept.verify() == {}
    with counted("everydream.caches.filling.read_cut") as filled, monkeypatch.context() as patch:
        die_after(patch, accumulating, "training_step", 5)
        with pytest.raises(Killed):
            train_here(config)
        assert filled.call_count == all_of_them - 16, "what was written stays"
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and straight not in last.parents
    with counted("everydream.data.loader.read_cut") as decoded, counted("everydream.caches.filling.read_cut") as filled:
        resumed = train_here(config, resume=last)
        assert decoded.call_count == filled.call_count == 0
    assert digest(resumed) == digest(straight)


def test_variants_are_taken_in_turn_and_are_the_crops_of_the_settings(fixed: Callable[..., Path]) -> None:
    from everydream.config import load_config
    from everydream.plan import plan_run

    config = load_config(fixed(data={"crop": "random", "flip_p": 0.5}, cache={"latents": True, "variants": 4}))
    planned, variants = plan_run(config), variants_of(config)
    record = 0
    seen = []
    for epoch in range(4):
        for seed in (1, 2):
            dataset = JobDataset(planned.index, planned.buckets, config.data, seed, variants=variants)
            seen.append(dataset.crop(dataset.visit(epoch, record, 0, planned.buckets.sizes[0], (0, 1), 0.0)))
    assert seen[::2] == seen[1::2], "the same for every run's seed"
    assert len(set(seen)) == 4 and sum(crop.flipped for crop in seen[::2]) == 2, "a share flip_p of them is mirrored"


def test_damage_is_found_named_and_made_anew(fixed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    config = fixed(train={"epochs": 1}, cache={"latents": True})
    first = train_here(config)
    (path,) = list_shards(first.parent / "cache")
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    capsys.readouterr()
    second = train_here(config)
    said = capsys.readouterr().err
    assert f"{path} is damaged, entry" in said and losses(second) == losses(first)
    third = train_here(config)
    assert f"Cache: damaged and made anew: {path.name}" in capsys.readouterr().err
    assert losses(third) == losses(first) and list_shards(first.parent / "cache") != [path]


def test_a_full_disk_and_a_small_bound_are_said_and_training_goes_on(
    fixed: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fixed(train={"epochs": 1})
    plain = train_here(config)
    bound = train_here(config, "cache.latents=true", "cache.max_gb=0.00001")
    assert "The cache could not be filled:" in (said := capsys.readouterr().err) and "cache.max_gb" in said
    assert re.search(r"latents 0 of 1[01] in", said) and "off the device" not in said
    monkeypatch.setattr(filling, "SHARD_ENTRIES", 4)
    writes, original = [0], shards.save

    def full(*arguments: Any) -> Any:
        writes[0] += 1
        if writes[0] > 1:
            raise OSError(28, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(shards, "save", full)
    partly = train_here(config, "cache.latents=true")
    said = capsys.readouterr().err
    assert "No space left on device" in said and "cache.folder" in said and "latents 8 of 1" in said
    assert losses(plain) == losses(bound) == losses(partly)


def test_what_is_not_needed_any_more_leaves_the_device_and_still_draws_samples(fixed: Callable[..., Path]) -> None:
    config = fixed(train={"epochs": 1, "max_steps": 2}, samples={"every_steps": 2, "steps": 2})
    left: list[str] = []
    with patch.object(room, "leave_device", side_effect=lambda family, parts, *rest: left.extend(parts)):
        plain = train_here(config, "cache.latents=true", "cache.text=true")
    assert left == ["vae", "text_encoder"]
    away = train_here(config, "cache.latents=true", "cache.text=true")
    assert losses(plain) == losses(away)
    pictures = [sorted((run / "samples").glob("*.png")) for run in (plain, away)]
    assert pictures[0] and [path.read_bytes() for path in pictures[0]] == [path.read_bytes() for path in pictures[1]]


def test_masks_beside_images_go_with_cached_latents(fixed: Callable[..., Path], tmp_path: Path) -> None:
    config = fixed(train={"epochs": 1})
    image = sorted((tmp_path / "mine").iterdir())[0]
    half = np.zeros((80, 96), np.uint8)
    half[:, :48] = 255
    Image.fromarray(half).save(image.with_suffix(".mask.png"))
    assert losses(train_here(config)) == losses(train_here(config, "cache.latents=true"))


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"cache": {"latents": True}, "data": {"crop": "random"}}, r"data.crop: random cuts .*cache.variants"),
        ({"cache": {"latents": True}, "data": {"flip_p": 0.5}}, r"11 images, mine/.* flipped by chance .*variants: 2"),
        ({"cache": {"latents": True, "variants": 3}}, "cache.variants: 3 has no effect"),
        ({"cache": {"variants": 3}}, "no effect"),
        ({"cache": {"text": True, "variants": 3}}, "variants: no effect without latents"),
        ({"cache": {"latents": True}, "data": {"masks": "alpha"}}, "data.masks: alpha needs every image decoded"),
        ({"cache": {"text": True}, "text_encoder": {"train": True}}, "cache.text: text_encoder.train: true"),
        ({"cache": {"text": True}, "captions": {"shuffle_tags": True}}, "captions.shuffle_tags makes another caption"),
        ({"cache": {"text": True}, "captions": {"tag_dropout": 0.1}}, "captions.tag_dropout"),
        ({"cache": {"text": True}, "captions": {"wildcards": True}}, "captions.wildcards"),
        (
            {"cache": {"text": True}, "method": "textual_inversion",
             "textual_inversion": {"words": [{"token": "<x>", "init": "cat"}]}},
            "cache.text: method: textual_inversion",
        ),
    ],
)  # fmt: skip
def test_what_would_silently_stay_as_first_drawn_is_refused(
    fixed: Callable[..., Path], sections: dict[str, Any], told: str
) -> None:
    sections = {**sections, "data": {"crop": "center", **sections.get("data", {})}}
    with pytest.raises(ConfigError, match=re.compile(told, re.DOTALL)):
        train_here(fixed(**sections))


def test_tags_shuffled_by_a_folder_and_wildcards_of_kohyas_captions_are_refused(
    fixed: Callable[..., Path], tmp_path: Path
) -> None:
    sources = [{"path": str(tmp_path / "mine"), "shuffle_tags": True}]
    with pytest.raises(ConfigError, match="cache.text: 6 images, mine/.* captioned anew"):
        train_here(fixed(data={"crop": "center", "sources": sources}, cache={"text": True}))
    images = make_images(tmp_path / "kohya" / "1_thing", 2, ONE_SIZE)
    sorted(images.iterdir())[0].with_suffix(".txt").write_text("a {red|blue} thing", encoding="utf-8")
    sources = [{"path": str(tmp_path / "kohya"), "captions": "kohya"}]
    with pytest.raises(ConfigError, match="cache.text: kohya/1_thing/.* is captioned anew"):
        train_here(fixed(data={"crop": "center", "sources": sources}, cache={"text": True}))


def test_a_model_that_is_shown_pixels_is_refused(fixed: Callable[..., Path], tmp_path: Path) -> None:
    tiny.save_pipeline(tmp_path / "inpainting", channels=9)
    with pytest.raises(ConfigError, match="cache.latents: this sd1 model is shown something of the pixels"):
        train_here(fixed(model={"path": str(tmp_path / "inpainting")}, cache={"latents": True}))


def test_further_encoders_sizes_and_flow_models_are_cached_alike(
    fixed: Callable[..., Path], sdxl_folder: Path, flow_folders: dict[str, Path]
) -> None:
    """SDXL is told each crop beside cached captions; SD3 has three encoders; both have pooled vectors."""
    for model in (sdxl_folder, flow_folders["sd3"]):
        config = fixed(model={"path": str(model)}, train={"epochs": 1, "max_steps": 2}, captions={"dropout": 0.3})
        plain = train_here(config)
        cached = train_here(config, "cache.latents=true", "cache.text=true")
        assert losses(cached) == pytest.approx(losses(plain), rel=1e-6), model


def test_the_processes_of_a_run_share_the_work(fixed: Callable[..., Path], tmp_path: Path) -> None:
    keys = as_keys([content_hash(str(number).encode()) for number in range(50)] * 2)
    parts = [filling._missing(keys, Store(tmp_path / "cache"), (rank, 3)).tolist() for rank in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(50))
    assert all(len(part) > 5 for part in parts)
