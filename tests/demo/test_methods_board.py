"""The page on methods: its tables from given numbers, sizes at full shape, its YAML, and the demo's configs."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from demo import methods, sizes
from demo.board import with_table
from demo.methods import (
    PAGE,
    WAYS,
    Result,
    Way,
    bytes_of,
    differences,
    export_of,
    opened,
    opened_by_diffusers,
    share_right,
)  # fmt: skip
from demo.score import exam
from demo.shapes import Subject, draw
from everydream.config import RunConfig, load_config, parse_yaml, resolve
from everydream.methods import METHODS
from everydream.plan import plan_run

TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
RESULTS = {
    "full": Result(1.0, 0.989, 54.4, 13_400_000, (1.2e-7, 0)),
    "dreambooth": Result(1.0, 0.42, 72.6, 13_400_000, (0.0, 0)),
    "lora: LoHa": Result(0.75, 0.9, 61.6, 400_123, None),
}


def between(start: str, end: str) -> list[str]:
    """Return the lines of the page's table between two markers."""
    return TEXT.partition(start)[2].partition(end)[0].strip().splitlines()


def snippet_of(method: str) -> dict[str, Any]:
    (found,) = (raw for raw in (parse_yaml(text, PAGE.name) for text in SNIPPETS) if raw["method"] == method)
    return found


def test_the_table_has_a_row_for_each_way() -> None:
    rows = methods.table((0.0, 0.989), RESULTS).splitlines()
    assert rows[2:] == [
        "| before training | 0 % | 99 % | | | |",
        "| full | 100 % | 99 % | 54 | 13.4 MB | 1e-07, 0 of 255 |",
        "| dreambooth | 100 % | 42 % | 73 | 13.4 MB | 0, 0 of 255 |",
        "| lora: LoHa | 75 % | 90 % | 62 | 400 kB | not opened there |",
    ]
    assert len({row.count("|") for row in rows}) == 1


def test_the_page_holds_both_tables() -> None:
    scores = between(methods.START, methods.END)
    assert [row.split(" | ")[0].removeprefix("| ") for row in scores[3:]] == [way.name for way in WAYS]
    for row in scores[3:]:
        assert re.fullmatch(
            r"\| [\w :,]+ \| \d+ % \| \d+ % \| \d+ \| [\d.]+ \w+ \| (.+, \d of 255|not opened .*) \|", row
        )
        assert int(row.split(" | ")[3]) < 300, "every method takes under five minutes"
    compared = [re.search(r"(\S+), (\d) of 255", row) for row in scores[3:]]
    found = [(float(match[1]), int(match[2])) for match in compared if match]
    assert len(found) == sum(way.is_for_diffusers for way in WAYS)
    assert all(prediction <= 1e-5 and pixels <= 1 for prediction, pixels in found), "diffusers draws the same"


def test_the_page_is_changed_between_its_markers_only() -> None:
    page = "before\nA\n\nold\n\nB\nbetween\nC\n\nold\n\nD\nafter\n"
    assert with_table(page, "new", "C", "D") == page.replace("C\n\nold", "C\n\nnew")
    with pytest.raises(SystemExit, match="lacks the line C or E"):
        with_table(page, "new", "C", "E")


def test_sizes_at_the_shape_of_stable_diffusion_1_5() -> None:
    found = {name: sizes.size_of(sections) for name, sections in sizes.DEFAULTS.items()}
    assert between(methods.SIZES_START, methods.SIZES_END) == sizes.table(found).splitlines(), "run `make methods`"
    unet, text_encoder, vae = 859_520_964, 123_060_480, 83_653_863
    full = found["full, dreambooth"]
    assert (full.trained, full.state_bytes) == (
        unet + text_encoder,
        4 * (unet + text_encoder + vae) + 12 * full.trained,
    )
    assert full.file_bytes == 2 * (unet + text_encoder + vae)
    # 32 attention layers of the UNet and 12 of the text encoder: rank times both widths of each projection.
    widths = {320: 5, 640: 5, 1280: 6}
    on_itself = sum(num * 4 * 2 * width for width, num in widths.items())
    on_text = sum(num * (2 * 2 * width + 2 * (width + 768)) for width, num in widths.items())
    lora = found["lora, rank 16"]
    assert lora.trained == 16 * (on_itself + on_text + 12 * 4 * 2 * 768)
    assert 2 * lora.trained < lora.file_bytes < 2 * lora.trained + 10_000
    assert found["textual_inversion, one vector"].trained == 768


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(616, "616 bytes"), (43_900_000, "43.9 MB"), (2_132_470_614, "2.13 GB")]
)
def test_sizes_in_words(num_bytes: int, text: str) -> None:
    assert sizes.told(num_bytes) == text


@pytest.mark.parametrize("method", METHODS)
def test_the_page_s_yaml_is_valid(method: str, tmp_path: Path) -> None:
    raw = {"data": {"sources": [{"path": "photos"}]}, **snippet_of(method), "model": {"path": str(tmp_path)}}
    for source in raw["data"]["sources"]:
        if "path" in source:
            source["path"] = str(tmp_path)
    config = resolve(raw, tmp_path / "project.yaml", to_train=True)
    assert config.method == method


def test_the_page_tells_the_defaults() -> None:
    defaults = RunConfig.model_validate({"model": {"path": "x"}, "data": {"sources": [{"path": "x"}]}})
    shown = snippet_of("hypernetwork")["hypernetwork"]
    assert (shown["lr"], shown["layer_structure"]) == (1e-4, defaults.hypernetwork.layer_structure)
    assert snippet_of("textual_inversion")["textual_inversion"]["lr"] == 5e-3
    assert snippet_of("lora")["lora"]["rank"] == defaults.lora.rank
    assert snippet_of("dreambooth")["class_images"]["prior_weight"] == defaults.class_images.prior_weight


def test_every_method_is_on_the_board_and_can_be_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {way.method for way in WAYS} == set(METHODS)
    for way in WAYS:
        config = load_config(Path(way.config), list(way.overrides), to_train=True)
        assert config.checkpoints.dtype == "fp32" and len(config.checkpoints.formats or ()) == 1
        if not any(source.generate for source in config.data.sources):
            assert 0 < plan_run(config).total_steps <= 1500, way.name


@pytest.mark.parametrize("way", [way for way in WAYS if way.method == "textual_inversion"], ids=lambda way: way.shape)
def test_the_new_word_stands_in_the_captions_of_the_same_pictures(way: Way) -> None:
    config = load_config(ROOT / way.config, list(way.overrides))
    (source,), (word,) = config.data.sources, config.textual_inversion.words
    assert word.token == way.word == f"<{way.shape}>"
    data = ROOT / "datasets" / "demo"
    with (ROOT / str(source.path)).open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row["caption"] for row in csv.DictReader(file)}
    folder = data / ("concept" if way.shape == "ring" else f"ground_truth/{way.shape}")
    captions = {path.relative_to(data).as_posix(): path.name.partition("_")[0] for path in folder.glob("*.png")}
    assert rows == {name: caption.replace(way.shape, way.word) for name, caption in captions.items()} and rows


def test_shares_are_of_the_shapes_asked_for() -> None:
    ring, circle, square = (Subject(shape, "red", "blue") for shape in ("ring", "circle", "square"))
    asked, shown = [ring, ring, circle, square], [draw(s, 0) for s in (ring, circle, ring, square)]
    assert share_right(shown, asked, {"ring"}) == 0.5
    assert (share_right(shown, asked, {"circle"}), share_right(shown, asked, {"circle", "square"})) == (0.0, 0.5)


def test_the_base_model_is_the_same_in_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison itself: no difference from the same model, and one that shows from another."""
    monkeypatch.chdir(ROOT)
    asked, seeds = exam()
    some = slice(0, None, 46)
    prompts = [subject.caption for subject in asked[some]]
    family, pipeline = opened("full", Path(methods.MODEL)), opened_by_diffusers(WAYS[0], Path(methods.MODEL))
    prediction, pixels = differences(family, pipeline, prompts, seeds[some])
    assert prediction < 1e-5 and pixels <= 1
    with torch.no_grad():
        pipeline.unet.conv_out.weight *= 1.01
    prediction, pixels = differences(family, pipeline, prompts, seeds[some])
    assert prediction > 1e-3 and pixels > 1


def test_exports_are_found_and_weighed(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    model = checkpoints / "demo-e0001-s000001"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "config.json").write_bytes(b"{}")
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(bytes(10))
    (model / "vae.safetensors").write_bytes(bytes(5))
    (checkpoints / "last.ckpt").write_bytes(bytes(3))
    assert export_of(tmp_path) == model and bytes_of(model) == 15
    assert bytes_of(checkpoints / "last.ckpt") == 3
