"""The recipes in configs/ are valid settings, open with the command that runs them, and train."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_images, metrics_of, train_here

from everydream.config import RunConfig, load_config, parse_yaml, resolve

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
KINDS = {
    "micro": "full",
    "subject": "full",
    "style_large": "full",
    "dreambooth": "dreambooth",
    "lora": "lora",
    "textual_inversion": "textual_inversion",
    "hypernetwork": "hypernetwork",
}
"""Each guide's recipe for Stable Diffusion 1.5, and its method."""


def opening(path: Path) -> str:
    """Return the comment a file starts with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def raw_with_images(path: Path, somewhere: Path, model: Path) -> dict[str, Any]:
    """Return a recipe's settings with what it needs from elsewhere put there: a few images for each source."""
    raw: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    raw["model"]["path"] = str(model)
    for number, source in enumerate(raw["data"]["sources"]):
        if source.get("captions") == "manifest":
            source["path"] = str(CONFIGS.parent / source["path"])
        elif "path" in source:
            source["path"] = str(make_images(somewhere / f"images {number}", 4, seed=number))
    if raw.get("samples", {}).get("prompts") is not None:
        (somewhere / "prompts.txt").write_text("a cat\n", encoding="utf-8")
        raw["samples"]["prompts"] = str(somewhere / "prompts.txt")
    return raw


def placed(path: Path, somewhere: Path) -> RunConfig:
    """Validate a recipe as a run would."""
    return resolve(raw_with_images(path, somewhere, somewhere), path, to_train=True)


def made_small(raw: dict[str, Any], somewhere: Path) -> dict[str, Any]:
    """Return settings that train as they would, with all that takes time or a GPU cut down."""
    raw["runs_dir"] = str(somewhere / "runs")
    raw["data"] |= {"resolution": 64, "bucket_step": 16, "workers": 0}
    raw["train"] |= {"precision": "fp32", "batch_size": 2, "max_steps": 2}
    if any(source.get("role") == "class" for source in raw["data"]["sources"]):
        raw["class_images"] = {**raw.get("class_images", {}), "steps": 1, "batch_size": 2}
    raw["samples"] |= {"steps": 1, "batch_size": 2}
    raw["trackers"] = []
    if "train_last_layers" in raw.get("text_encoder", {}):
        raw["text_encoder"]["train_last_layers"] = 1  # the tiny model has two
    if "preservation" in raw:
        raw["preservation"] |= {"images": 1, "timesteps": 1}
    for source in raw["data"]["sources"]:
        source.update({"generate": 2} if "generate" in source else {})
    return raw


def test_there_is_a_recipe_for_every_guide() -> None:
    assert {
        "demo.yaml",
        "sd21_768v.yaml",
        "sdxl.yaml",
        "sd3.yaml",
        "flux.yaml",
        *(f"sd15_{kind}.yaml" for kind in KINDS),
    } <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid(name: str, tmp_path: Path) -> None:
    config = placed(CONFIGS / name, tmp_path)
    assert config.project != "project", "a recipe names its runs"


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_trains_by_its_method(kind: str, tmp_path: Path) -> None:
    assert placed(CONFIGS / f"sd15_{kind}.yaml", tmp_path).method == KINDS[kind]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command_and_its_needs(name: str) -> None:
    comment = opening(CONFIGS / name)
    assert f"python train.py --config configs/{name}" in comment
    assert "Needs" in comment


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("demo")])
def test_the_demo_s_recipes_need_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert Path(load_config(CONFIGS / name, to_train=True).model.path).is_dir()


@pytest.mark.parametrize("name", ["sd15_subject.yaml", "sd15_style_large.yaml", "sd21_768v.yaml"])
def test_a_full_fine_tune_keeps_its_rates_low_and_has_ground_truth(name: str, tmp_path: Path) -> None:
    config = placed(CONFIGS / name, tmp_path)
    assert config.unet.lr is not None and config.text_encoder.lr is not None
    assert 1e-6 <= config.unet.lr <= 2e-6 and config.text_encoder.lr <= config.unet.lr / 2
    assert any(source.role == "ground_truth" and source.share for source in config.data.sources)
    assert config.data.resolution in (512, 768) and config.train.batch_size >= 6


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("demo")])
def test_a_recipe_trains(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The demo's are trained by the demo's own tests."""
    stem = Path(name).stem
    if stem in ("sd3", "flux"):
        model = request.getfixturevalue("flow_folders")[stem]
    else:
        model = request.getfixturevalue({"sd21_768v": "sd2_folder", "sdxl": "sdxl_folder"}.get(stem, "model_folder"))
    raw = made_small(raw_with_images(CONFIGS / name, tmp_path, model), tmp_path)
    config = tmp_path / name
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    run = train_here(config)
    lines = [line for line in metrics_of(run) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2] and all(math.isfinite(line["loss"]) for line in lines)
    assert list((run / "samples").iterdir())
