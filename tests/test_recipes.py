"""The recipes in configs/ are valid settings, and open with the command that runs them."""

from pathlib import Path
from typing import Any

import pytest

from everydream.config import RunConfig, load_config, parse_yaml, resolve

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


def opening(path: Path) -> str:
    """Return the comment a file starts with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))])


def placed(path: Path, somewhere: Path) -> RunConfig:
    """Validate a recipe as a run would, with what it needs from elsewhere put there."""
    raw: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    raw["model"]["path"] = str(somewhere)
    for source in raw["data"]["sources"]:
        source["path"] = str(somewhere)
    if raw.get("samples", {}).get("prompts") is not None:
        (somewhere / "prompts.txt").write_text("a cat\n", encoding="utf-8")
        raw["samples"]["prompts"] = str(somewhere / "prompts.txt")
    return resolve(raw, path, to_train=True)


def test_there_are_recipes() -> None:
    assert {"demo.yaml", "sd15_subject.yaml", "sd15_style_large.yaml", "sd21_768v.yaml"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid(name: str, tmp_path: Path) -> None:
    config = placed(CONFIGS / name, tmp_path)
    assert config.project != "project", "a recipe names its runs"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_opens_with_its_command_and_its_needs(name: str) -> None:
    comment = opening(CONFIGS / name)
    assert f"python train.py --config configs/{name}" in comment
    assert "Needs" in comment


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("demo")])
def test_the_demo_s_recipes_need_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert Path(load_config(CONFIGS / name, to_train=True).model.path).is_dir()


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.startswith("demo")])
def test_a_full_fine_tune_keeps_its_rates_low_and_has_ground_truth(name: str, tmp_path: Path) -> None:
    config = placed(CONFIGS / name, tmp_path)
    assert 1e-6 <= config.unet.lr <= 2e-6 and config.text_encoder.lr <= config.unet.lr / 2
    assert any(source.role == "ground_truth" and source.share for source in config.data.sources)
    assert config.data.resolution in (512, 768) and config.train.batch_size >= 6
