"""A whole run: golden losses, every setting changes the draw, exports open elsewhere, nothing touches the images."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_images, metrics_of, run_cli, train_here
from PIL import Image

from everydream.config import load_config
from everydream.data.loader import PieceDataset, load_pieces
from everydream.data.plan import pieces_for_rank
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.plan import plan_run
from everydream.types import Batch

Project = Callable[..., Path]
GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"


def test_golden_losses(project: Project) -> None:
    """A change that should not change numbers proves it here. The file is rewritten by hand only, with the reason."""
    lines = metrics_of(
        train_here(project(train={"gradient_accumulation": 2}, loss={"min_snr_gamma": 5.0, "offset_noise": 0.05}))
    )
    expected = json.loads(GOLDEN.read_text())
    assert [line["loss"] for line in lines] == pytest.approx(expected["loss"], rel=2e-4)
    assert [line["grad_norm"] for line in lines] == pytest.approx(expected["grad_norm"], rel=2e-3)


def test_training_learns(project: Project) -> None:
    lines = metrics_of(train_here(project(train={"epochs": 12}, lr_schedule={"name": "constant"})))
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-12:]) < 0.9 * np.mean(losses[:12])


@pytest.mark.parametrize("folder", ["model_folder", "sd2_folder"])
def test_every_format_opens_in_diffusers_after_training(
    project: Project, request: pytest.FixtureRequest, folder: str
) -> None:
    from diffusers import StableDiffusionPipeline

    base = request.getfixturevalue(folder)
    formats = {"formats": ["safetensors", "ckpt", "diffusers"], "dtype": "fp32"}
    run = train_here(project(model={"path": str(base)}, train={"max_steps": 2}, checkpoints=formats))
    last = run / "checkpoints" / "last.ckpt"
    exports = {path.suffix: path for path in (run / "checkpoints").glob("trial-*")}
    opened = [StableDiffusionPipeline.from_pretrained(exports[""])]
    opened += [
        StableDiffusionPipeline.from_single_file(str(path), config=str(base), local_files_only=True)
        for path in (exports[".safetensors"], exports[".ckpt"], last)
    ]
    trained = load(ModelSettings(path=str(last))).modules()
    untrained = load(ModelSettings(path=str(base))).modules()
    for part in ("unet", "text_encoder", "vae"):
        state = trained[part].state_dict()
        for pipeline in opened:
            other = getattr(pipeline, part).state_dict()
            assert all(torch.equal(other[key], tensor) for key, tensor in state.items()), part
        changed = any(not torch.equal(untrained[part].state_dict()[key], tensor) for key, tensor in state.items())
        assert changed == (part != "vae")
    generators = [torch.Generator().manual_seed(1) for _ in opened]
    pictures = [
        np.asarray(p("a cat", height=64, width=64, num_inference_steps=2, generator=g).images[0])
        for p, g in zip(opened, generators, strict=True)
    ]
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures[1:])


def test_what_was_trained_can_be_trained_on(project: Project) -> None:
    run = train_here(project(train={"max_steps": 1}, checkpoints={"formats": ["safetensors"]}))
    (export,) = (run / "checkpoints").glob("*.safetensors")
    again = train_here(project(model={"path": str(export)}, train={"max_steps": 1}))
    assert np.isfinite(metrics_of(again)[0]["loss"])


def test_exports_follow_their_cadence_and_only_the_newest_stay(project: Project) -> None:
    run = train_here(
        project(
            train={"epochs": 4},
            checkpoints={"formats": ["safetensors", "diffusers"], "every_epochs": 1, "from_epoch": 2, "keep": 2},
        )
    )
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    ends = {line["epoch"] + 1: line["step"] for line in metrics_of(run)}
    stems = [f"trial-e{epoch:04d}-s{ends[epoch]:06d}" for epoch in (3, 4)]
    assert names == ["last.ckpt", *sorted(f"{stem}{end}" for stem in stems for end in ("", ".md", ".safetensors"))]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    exported = [e["step"] for e in events if e["event"] == "exported" and e["path"].endswith("safetensors")]
    assert exported == [ends[2], ends[3], ends[4]]


def test_the_users_folders_are_left_alone(project: Project, tmp_path: Path) -> None:
    config = project(train={"max_steps": 2}, samples={"every_steps": 1, "steps": 1})

    def snapshot() -> dict[str, tuple[str, int]]:
        files = [path for name in ("mine", "real") for path in (tmp_path / name).rglob("*")]
        return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}

    before = snapshot()
    train_here(config)
    run_cli("inspect", "--config", config)
    assert snapshot() == before


def batches(config: Path, epoch: int = 0, workers: int = 0) -> list[Batch]:
    settings = load_config(config)
    planned = plan_run(settings)
    plan = planned.epoch(epoch)
    dataset = PieceDataset(
        list(pieces_for_rank(plan, 0, 1)), plan, planned.index, planned.buckets, settings.data, settings.seed,
        settings.captions,
    )  # fmt: skip
    return [loaded.batch for loaded in load_pieces(dataset, workers)]


def captions(config: Path, epoch: int = 0) -> dict[tuple[str, int], str]:
    return {(k, s): c for b in batches(config, epoch) for k, s, c in zip(b.keys, b.seeds, b.captions, strict=True)}


def test_tag_dropout_rises_over_the_first_part_of_the_run(project: Project) -> None:
    config = load_config(
        project(captions={"tag_dropout": 0.8, "tag_dropout_warmup": 0.5}, train={"epochs": 4, "batch_size": 2})
    )
    planned = plan_run(config)
    rates = []
    for epoch in range(4):
        plan = planned.epoch(epoch)
        pieces = list(pieces_for_rank(plan, 0, 1))
        dataset = PieceDataset(
            pieces, plan, planned.index, planned.buckets, config.data, config.seed, config.captions,
            sum(planned.steps_per_epoch[:epoch]), planned.total_steps,
        )  # fmt: skip
        rates += [dataset.jobs.tag_dropout(dataset.first_step + piece.step_in_epoch) for piece in pieces]
    half = len(rates) // 2 + 1
    assert rates[0] == 0.0 and rates[:half] == sorted(set(rates[:half])) and set(rates[half:]) == {0.8}
    assert rates[half // 2] == pytest.approx(0.4, abs=0.05)


def test_the_order_does_not_depend_on_workers(project: Project) -> None:
    config = project(captions={"dropout": 0.3})
    for alone, with_two in zip(batches(config), batches(config, workers=2), strict=True):
        assert alone.keys == with_two.keys and alone.captions == with_two.captions and alone.seeds == with_two.seeds
        assert torch.equal(alone.pixels_BCHW, with_two.pixels_BCHW) and alone.crops == with_two.crops


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"data": {"flip_p": 1.0}}, "flipped"),
        ({"data": {"crop": "center"}}, "crops"),
        ({"data": {"background": "#00ff00"}}, "pixels"),
        ({"data": {"resolution": 96}}, "shapes"),
        ({"captions": {"dropout": 1.0}}, "captions"),
        ({"captions": {"dropout": 0.0, "shuffle_tags": True}}, "captions"),
        ({"captions": {"dropout": 0.0, "shuffle_tags": True, "keep_tags": 2}}, "captions"),
        ({"captions": {"dropout": 0.0, "tag_dropout": 0.5}}, "captions"),
        ({"captions": {"dropout": 0.0, "tag_dropout": 0.5, "keep_tags": 4}}, "captions"),
        ({"captions": {"dropout": 0.0, "wildcards": True}}, "captions"),
        ({"data": {"masks": "alpha"}}, "masks"),
        ({"data": {"also_at": [{"resolution": 96, "share": 0.5}]}}, "shapes"),
        ({"seed": 556}, "keys"),
    ],
)
def test_each_setting_changes_the_draw(project: Project, tmp_path: Path, sections: dict[str, Any], what: str) -> None:
    """Defect 3: elsewhere flip_p, keep_tags and shuffle_tags have no effect."""
    folder = tmp_path / "tagged"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 256, (96, 64, 4), dtype=np.uint8)
        Image.fromarray(pixels, "RGBA").save(
            folder / f"first {i}, second, third, fourth, {{fifth#last}}_1.png".replace("#", "|")
        )
    source = {"data": {"sources": [{"path": str(folder)}]}, "captions": {"dropout": 0.0}}
    merged = {
        name: {**source.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    plain, changed = batches(project(**source)), batches(project(**{**source, **merged}))

    def look(found: list[Batch]) -> object:
        return {
            "flipped": [[crop.flipped for crop in b.crops] for b in found],
            "crops": [[(crop.top, crop.left) for crop in b.crops] for b in found],
            "pixels": [b.pixels_BCHW.tolist() for b in found],
            "shapes": [b.pixels_BCHW.shape for b in found],
            "masks": [b.mask_B1HW is not None for b in found],
            "captions": sorted(caption for b in found for caption in b.captions),
            "keys": [b.keys for b in found],
        }[what]

    assert look(plain) != look(changed)
    if what == "flipped":
        assert all(crop.flipped for b in changed for crop in b.crops) and not any(
            crop.flipped for b in plain for crop in b.crops
        )
    if sections.get("captions", {}).get("keep_tags"):
        assert all(c.startswith("first ") and c.split(", ")[1] == "second" for b in changed for c in b.captions)
    if sections.get("captions", {}).get("dropout"):
        assert {c for b in changed for c in b.captions} == {""}


def test_repeats_of_an_image_are_drawn_differently(project: Project) -> None:
    config = project(
        captions={"dropout": 0.5},
        data={"flip_p": 0.5, "sources": [{"path": str(project().parent / "mine"), "repeats": 20}]},
    )
    found = batches(config)
    by_key: dict[str, set[tuple[str, bool]]] = {}
    for b in found:
        for key, caption, crop in zip(b.keys, b.captions, b.crops, strict=True):
            by_key.setdefault(key, set()).add((caption, crop.flipped))
    assert all(len(different) == 4 for different in by_key.values())


def test_loss_scale_is_the_sources_own(project: Project, tmp_path: Path) -> None:
    make_images(tmp_path / "mine", 6, seed=1)
    make_images(tmp_path / "real", 5, seed=2)
    sources = [{"path": str(tmp_path / "mine")}, {"path": str(tmp_path / "real"), "loss_scale": 0.3}]
    for b in batches(project(data={"sources": sources})):
        expected = [pytest.approx(0.3) if key.startswith("real/") else 1.0 for key in b.keys]
        assert b.loss_scale_B.tolist() == expected


def test_flips_and_dropout_are_the_sources_own(project: Project, tmp_path: Path) -> None:
    make_images(tmp_path / "mine", 6, seed=1)
    make_images(tmp_path / "real", 5, seed=2)
    sources = [
        {"path": str(tmp_path / "mine"), "repeats": 3, "flip_p": 1.0, "dropout": 0.0},
        {"path": str(tmp_path / "real"), "share": 0.5, "flip_p": 0.0, "dropout": 1.0, "role": "ground_truth"},
    ]
    drawn = [
        (key.split("/")[0], crop.flipped, caption == "")
        for b in batches(project(data={"sources": sources, "flip_p": 0.5}, captions={"dropout": 0.5}))
        for key, crop, caption in zip(b.keys, b.crops, b.captions, strict=True)
    ]
    assert sorted(set(drawn)) == [("mine", True, False), ("real", False, True)] and len(drawn) == 36


def test_the_plan_is_printed_first(project: Project) -> None:
    done = run_cli("train", "--config", project(train={"max_steps": 2}))
    for said in (
        "mine: 6 images, repeats 2: 12 draws an epoch = 75.0 %",
        "real (ground truth): 5 images, share 0.25: 4 draws",
        "2 steps in all",
        "Disk",
    ):
        assert said in done.stderr
    assert done.stderr.index("Sources") < done.stderr.index("step 2/2")
    assert "Processes 1 (cpu" in done.stderr and run_cli("--version").stdout.strip() == "0.1.0"


def test_sides_that_the_unet_cannot_halve_evenly_train(project: Project) -> None:
    """72 px are nine latents; the UNet pads on the way down and cuts on the way up. Samples are whole latents too."""
    options = {"samples": {"every_steps": 9, "steps": 1}, "train": {"max_steps": 3}}
    config = project(data={"resolution": 75, "bucket_step": 8}, **options)
    assert {size % 16 for b in batches(config) for size in b.pixels_BCHW.shape[2:]} >= {8}
    run = train_here(config)
    assert all(np.isfinite(line["loss"]) for line in metrics_of(run))
    with Image.open(next((run / "samples").glob("*-p00-*.png"))) as sample:
        assert sample.size == (72, 72)


def test_bf16_trains_too(project: Project) -> None:
    run_cli("train", "--config", project(train={"max_steps": 2, "precision": "bf16"}))
    (run,) = (project().parent / "runs").iterdir()
    lines = metrics_of(run)
    exact = metrics_of(train_here(project(train={"max_steps": 2})))
    assert lines[0]["loss"] != exact[0]["loss"] and lines[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.05)


@pytest.mark.parametrize(
    ("sections", "trained"),
    [({"unet": {"train": False}}, "text_encoder"), ({"text_encoder": {"train": False}}, "unet")],
)
def test_parts_train_alone(project: Project, model_folder: Path, sections: dict[str, Any], trained: str) -> None:
    run = train_here(project(train={"max_steps": 2}, **sections))
    before = load(ModelSettings(path=str(model_folder))).modules()
    after = load(ModelSettings(path=str(run / "checkpoints" / "last.ckpt"))).modules()
    for part in ("unet", "text_encoder"):
        same = all(
            torch.equal(tensor, after[part].state_dict()[key]) for key, tensor in before[part].state_dict().items()
        )
        assert same == (part != trained)
    assert set(metrics_of(run)[0]) >= {f"lr/{trained}", "loss"}
