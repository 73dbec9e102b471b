"""The recipes in configs/ are valid settings, open with the command that runs them, and train."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_images, metrics_of, train_here

from everydream.config import RunConfig, load_config, parse_yaml, resolve
from everydream.training.memory import resolved, static_bytes
from everydream.yaml_text import apply_override

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


CARDS = (8, 12, 16, 24, 80)
PARAMETERS = {  # trained, frozen; of the recipe as it is
    "sd15_subject": (982_581_444, 83_653_863),
    "sd21_768v": (940_000_000, 350_000_000),
    "sdxl": (2_567_463_684, 901_000_000),
    "sd3": (20_000_000, 2_028_000_000),
    "flux": (40_000_000, 11_900_000_000),
}
"""Of flow transformers only what stays on the device at every level is counted as frozen: the transformer."""


def card_rows() -> list[tuple[str, int, list[str], float | None]]:
    """Return (recipe, GB of the card, overrides, peak in GB, None where it does not fit) of docs/recipes.md."""
    rows, recipe = [], ""
    for line in (CONFIGS.parent / "docs" / "recipes.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## .*`configs/(\w+)\.yaml`", line):
            recipe = heading[1]
        if row := re.match(r"\| (\d+) GB \| (.*?) \| (?:([\d.]+) GB)? ?\|", line):
            rows.append((recipe, int(row[1]), row[2].strip("`").split(), float(row[3]) if row[3] else None))
    return rows


def with_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return settings with a card's over them."""
    for override in overrides if overrides != ["as", "it", "is"] else []:
        assert apply_override(raw, override) is None
    return raw


def test_every_family_has_a_row_for_every_card() -> None:
    found = [(recipe, card) for recipe, card, _, _ in card_rows()]
    assert found == [(recipe, card) for recipe in PARAMETERS for card in CARDS]
    too_large = {recipe for recipe, _, overrides, peak in card_rows() if peak is None}
    assert too_large == {"flux"}
    assert all((peak is None) == (overrides == ["does", "not", "fit"]) for _, _, overrides, peak in card_rows())


@pytest.mark.parametrize(
    ("recipe", "card", "overrides", "peak"),
    [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in card_rows() if row[3] is not None],
)
def test_a_cards_settings_are_valid_and_leave_room(
    recipe: str, card: int, overrides: list[str], peak: float, tmp_path: Path
) -> None:
    """Nothing smaller than what the weights, gradients and state take can be the peak, and 1.5 GB stay free."""
    raw = parse_yaml((CONFIGS / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe)
    raw["model"]["path"] = str(tmp_path)
    for source in raw["data"]["sources"]:
        source["path"] = str(tmp_path)
    config = resolve(with_overrides(raw, overrides), tmp_path, to_train=True)
    use = resolved(config.memory, config.train, config.optimizer)
    trained, frozen = PARAMETERS[recipe]
    held = static_bytes({"trained": trained, "frozen": 0, "largest": 0}, use)
    if recipe in ("sd3", "flux") or not use.offload_frozen:
        held["frozen"] = frozen * (2 if use.frozen == "bf16" else 4)
    assert sum(held.values()) / 1e9 <= peak <= card - 1.5


@pytest.mark.usefixtures("any_precision")
@pytest.mark.parametrize(("recipe", "card"), [("sdxl", 8), ("sd3", 8)])
def test_a_small_cards_recipe_trains(recipe: str, card: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    fixtures = {"sd21_768v": "sd2_folder", "sdxl": "sdxl_folder", "sd3": "flow_folders"}
    found = request.getfixturevalue(fixtures[recipe])
    (overrides,) = (row[2] for row in card_rows() if row[:2] == (recipe, card))
    model = found[recipe] if isinstance(found, dict) else found
    raw = with_overrides(raw_with_images(CONFIGS / f"{recipe}.yaml", tmp_path, model), overrides)
    batch, accumulation = raw["train"]["batch_size"], raw["train"].get("gradient_accumulation", 1)
    raw = made_small(raw, tmp_path)
    raw["train"] |= {"precision": "bf16", "batch_size": batch, "max_steps": 1}
    raw["samples"] |= {"every_steps": None}
    raw.pop("preservation")
    config = tmp_path / "card.yaml"
    config.write_text(yaml.safe_dump(raw), encoding="utf-8")
    (line,) = (line for line in metrics_of(train_here(config)) if "loss" in line)
    assert math.isfinite(line["loss"]) and load_config(config).train.gradient_accumulation == accumulation
