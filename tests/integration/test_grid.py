"""`everydream grid` on a tiny run: what is drawn, what is drawn again, what fails, and what the files say."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import make_images, train_here
from PIL import Image
from tools.tool_app import run as command

from everydream.config import RunConfig
from everydream.errors import ConfigError, FormatError
from everydream.formats.pngs import settings_in, write_png
from everydream.methods import METHODS
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.sampling.sampler import sample_images
from everydream.tools.grid import drawing, make
from everydream.tools.grid.make import Request, planned, request_in
from everydream.tools.grid.weights import Bench
from everydream.training.state import read_checkpoint

SMALL: dict[str, Any] = {"steps": 1, "width": 64, "height": 64}
OPTIONS = ("--steps", "1", "--width", "64", "--height", "64")
PROMPT = "a picture of thing <one>"


def trained(folder: Path, model_folder: Path, **sections: Any) -> Path:
    """Return a short run with an average and three exports."""
    config: dict[str, Any] = {
        "project": "trial", "runs_dir": str(folder / "runs"), "model": {"path": str(model_folder)},
        "data": {
            "resolution": 64, "bucket_step": 16, "workers": 0,
            "sources": [{"path": str(make_images(folder / "mine", 4))}],
        },
        "train": {"epochs": 3, "batch_size": 4, "precision": "fp32"}, "ema": {"decay": 0.5},
        "checkpoints": {"formats": ["safetensors"], "keep": None, "dtype": "fp32", "use_ema": False},
        "samples": {"every_steps": None}, "trackers": [], **sections,
    }  # fmt: skip
    path = folder / "project.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return train_here(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    rates = {"unet": {"lr": 1e-2}, "text_encoder": {"lr": 1e-3}}
    return trained(tmp_path_factory.mktemp("full"), model_folder, **rates)


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    rates = {"method": "lora", "lora": {"rank": 2}, "unet": {"lr": 3e-1}, "text_encoder": {"train": False}}
    return trained(tmp_path_factory.mktemp("lora"), model_folder, **rates)


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Bench]]:
    """The benches that grids were drawn on."""
    made: list[Bench] = []

    class Counted(Bench):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(drawing, "Bench", Counted)
    yield made


def picture(path: Path) -> Any:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def steps_of(run: Path) -> list[int]:
    return sorted(int(re.findall(r"-s(\d+)", path.name)[0]) for path in (run / "checkpoints").glob("*.safetensors"))


def test_a_grid_over_a_runs_checkpoints(run: Path, tmp_path: Path, benches: list[Bench]) -> None:
    out = tmp_path / "out"
    axes = ("-x", "seed: 1-2", "-y", "guidance: 1-3 (+2)", "-z", "checkpoint: all, base")
    told = command("grid", "--run", run, "--prompt", PROMPT, *axes, *OPTIONS, "--out", out).stdout
    assert "16 drawn; all together in" in told
    assert benches[0].num_loads == 4, "three exports and the base, each once, though they are the third axis"
    files = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    said = [settings_in(path) for path in files]
    labels = [f"step {step}" for step in steps_of(run)] + ["base"]
    assert sorted({one["checkpoint"] for one in said}) == sorted(labels)
    assert str(tmp_path) not in json.dumps(said) and str(run) not in json.dumps(said)
    export = max((run / "checkpoints").glob("*.safetensors"))
    family = load(ModelSettings(path=str(export)))
    (expected,) = sample_images(family, [PROMPT], [2], width=64, height=64, steps=1, guidance=3.0)
    (path,) = (p for p in files if (s := settings_in(p))["checkpoint"] == labels[2] and s["seed"] == 2
               and s["guidance"] == 3)  # fmt: skip
    assert np.array_equal(picture(path), expected)
    # What is there stays, what is missing or changed is drawn, and nothing is loaded for the rest.
    path.unlink()
    assert "1 drawn, 15 were there already" in command("grid", "--again", out / "sheet.png").stdout
    assert benches[1].num_loads == 1 and np.array_equal(picture(path), expected)
    after = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    assert {p for p in files if after[p] == files[p]} == set(files) - {path}
    sheet = picture(out / "sheet.png")
    assert sheet.shape[0] > 8 * 64 and sheet.shape[1] > 2 * 64
    starts = np.argwhere((sheet[:-63, :-63] == expected[0, 0]).all(axis=-1))
    assert any(np.array_equal(sheet[y : y + 64, x : x + 64], expected) for y, x in starts), "pixel for pixel"


class Page(HTMLParser):
    """What a page holds."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_a_failed_cell_is_told(run: Path, tmp_path: Path) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken.safetensors"
    good = max((run / "checkpoints").glob("*.safetensors"))
    broken.write_bytes(good.read_bytes()[:5000])
    prompt = "<script>alert(1)</script> & thing"
    axes = ("-x", f'checkpoint: "{broken}", "{good}"', "-y", "prompt: thing, ring", "-z", "size: 64, 60")
    said = command("grid", "--prompt", prompt, *axes, "--steps", "1", "--out", out, check=1).stdout
    assert "2 drawn, 6 failed" in said and "failed, 4 times" in said and "is not a whole safetensors file" in said
    assert "60 is no multiple of 8" in said
    text = (out / "sheet.html").read_text(encoding="utf-8")
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 and all(str(image["src"]).startswith("data:image/webp;base64,") for image in images)
    assert [tag for tag, _ in page.tags].count("section") == 2, "one for each checkpoint"
    assert sum(tag == "script" for tag, _ in page.tags) == 1 and "<script>alert(1)" in page.text
    assert not re.search(r"https?://", text) and page.text.count("failed: ") == 6
    (slider,) = (attributes for tag, attributes in page.tags if tag == "input")
    assert (slider["type"], slider["max"]) == ("range", "1")
    assert request_in(out / "sheet.png").axes[0].startswith("checkpoint: ")


def test_the_average_and_the_trained_weights_of_one_file(run: Path, tmp_path: Path, benches: list[Bench]) -> None:
    out = tmp_path / "out"
    request = Request(PROMPT, ("ema: off, on", "seed: 3"), run=str(run), **SMALL)
    make.make(request, out)
    assert benches[0].num_loads == 1
    said = {settings_in(path)["ema"]: picture(path) for path in (out / "cells").iterdir()}
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    family = load(ModelSettings(path=str(run / "checkpoints" / "last.ckpt")))
    live = {f"{part}.{name}": p for part, net in family.modules().items() for name, p in net.named_parameters()}
    drawn = sample_images(family, [PROMPT], [3], **{**SMALL, "guidance": 7.0})
    for name, averaged in checkpoint.ema.items():
        live[name].data.copy_(averaged)
    averaged_drawn = sample_images(family, [PROMPT], [3], **{**SMALL, "guidance": 7.0})
    assert np.array_equal(said[False], drawn[0]) and np.array_equal(said[True], averaged_drawn[0])
    assert not np.array_equal(said[False], said[True])


def test_adapters_come_and_go_to_the_bit(lora_run: Path, tmp_path: Path, benches: list[Bench]) -> None:
    out = tmp_path / "out"
    export = max((lora_run / "checkpoints").glob("*.safetensors"))
    axes = ("checkpoint: base, all", "lora strength: 0, 0.5, 1", "guidance: 1")
    made = make.make(Request(PROMPT, axes, run=str(lora_run), **SMALL), out)
    assert benches[0].num_loads == 1, "all are adapters of one base model"
    found = {(c.checkpoint, c.lora_strength): picture(path) for c, path in made.pictures.items()}
    last = f"step {steps_of(lora_run)[-1]}"
    assert all(np.array_equal(found[key], found["base", 0.0]) for key in found if key[0] == "base" or key[1] == 0.0)
    assert len({found[last, strength].tobytes() for strength in (0.0, 0.5, 1.0)}) == 3
    base = str(make.settings_of(lora_run).model.path)
    files = make.make(Request(PROMPT, (f"lora: none, {export}, {export}:0.5",), model=base, guidance=1.0, **SMALL), out)
    by_label = {cell.lora: picture(path) for cell, path in files.pictures.items()}
    assert np.array_equal(by_label[()], found["base", 0.0])
    assert np.array_equal(by_label[str(export),], found[last, 1.0])
    assert np.array_equal(by_label[f"{export}:0.5",], found[last, 0.5])


def test_an_adapters_average_is_in_its_last_ckpt(lora_run: Path) -> None:
    sources, *_ = planned(Request(PROMPT, ("ema: off, on",), run=str(lora_run)))
    checkpoint, bench = read_checkpoint(lora_run / "checkpoints" / "last.ckpt"), Bench()
    assert checkpoint.ema.keys() == checkpoint.added.keys() and not equal(checkpoint.ema, checkpoint.added)
    for ema in (True, False, True, None):
        unet = bench.place(sources.found["last"], ema, ()).modules()["unet"]
        live = {f"unet.{name}": parameter for name, parameter in unet.named_parameters()}
        assert equal({name: live[name] for name in checkpoint.ema}, checkpoint.ema if ema else checkpoint.added)
    assert bench.num_loads == 1


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("method", ["textual_inversion", "hypernetwork"])
def test_what_other_methods_export_is_put_in(method: str, model_folder: Path, tmp_path: Path) -> None:
    words = {"words": [{"token": "<one>", "init": "dog", "vectors": 2}]}
    sections = {"textual_inversion": words} if method == "textual_inversion" else {}
    config = RunConfig.model_validate(
        {
            "project": "trial", "method": method, "model": {"path": str(model_folder)}, **sections,
            "data": {"sources": [{"path": "gone"}]}, "checkpoints": {"formats": ["pt"]},
        }
    )  # fmt: skip
    family = load(ModelSettings(path=str(model_folder)))
    method_of_run = METHODS[method](config)
    for group in method_of_run.attach(family, 0, ["a <one>"]):
        for parameter in group.parameters:
            parameter.data.add_(0.05)
    (tmp_path / "checkpoints").mkdir()
    method_of_run.export(family, tmp_path / "checkpoints" / "trial-e0001-s000003", "pt", torch.float32)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
    for module in family.modules().values():
        module.eval()
    made = make.make(Request(PROMPT, ("checkpoint: base, 3",), run=str(tmp_path), **SMALL), tmp_path / "out")
    assert not made.failed
    shown = {cell.checkpoint: picture(path) for cell, path in made.pictures.items()}
    (expected,) = sample_images(family, [PROMPT], [555], **{**SMALL, "guidance": 7.0})
    assert np.array_equal(shown["step 3"], expected) and not np.array_equal(shown["base"], expected)


def test_stopped_half_way_it_goes_on(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls = tmp_path / "out", [0]
    original: Callable[..., Any] = drawing.sample_images

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    request = Request(PROMPT, ("seed: 1-4",), run=str(run), **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(drawing, "sample_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make.make(request, out)
    assert len(list((out / "cells").iterdir())) == 2
    cut = next((out / "cells").iterdir())
    cut.write_bytes(cut.read_bytes()[:60])
    made = make.make(request, out)
    assert made.num_new == 3 and len(made.pictures) == 4


def test_another_files_contents_are_drawn_anew(run: Path, tmp_path: Path) -> None:
    first, last = sorted((run / "checkpoints").glob("*.safetensors"))[:: len(steps_of(run)) - 1]
    model = tmp_path / "model.safetensors"
    shutil.copyfile(first, model)
    request = Request(PROMPT, ("seed: 1",), model=str(model), **SMALL)
    before = picture(next(iter(make.make(request, tmp_path / "out").pictures.values())))
    shutil.copyfile(last, model)
    made = make.make(request, tmp_path / "out")
    assert made.num_new == 1 and not np.array_equal(picture(next(iter(made.pictures.values()))), before)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"axes": ("checkpoint: 7",)}, r"no export of step 7; nearest is \d+\. There are"),
        ({"axes": ("checkpoint: bass",)}, "there is no 'bass'. Did you mean base"),
        ({"axes": ("lora strength: 1",)}, "lora strength: has no effect without an adapter"),
        ({"run": None}, "Say what to draw with"),
        ({"run": "nowhere"}, "nowhere is no run folder of EveryDream"),
        ({"run": None, "model": "nowhere.ckpt"}, "There is no model at"),
    ],
)
def test_requests_that_cannot_be_drawn(run: Path, request_: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(Request(**{"prompt": PROMPT, "axes": ("seed: 1",), "run": str(run), **request_}))


def test_what_is_no_sheet_is_refused(run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "x.png")
    assert "does not say how it was made" in command("grid", "--again", tmp_path / "x.png", check=2).stderr
    write_png(tmp_path / "odd.png", np.zeros((4, 4, 3), np.uint8), {"grid": {"prompt": "a", "steps": "many"}})
    with pytest.raises(FormatError, match=r"odd\.png says of its steps what no grid does"):
        request_in(tmp_path / "odd.png")
    assert "Say what varies" in command("grid", "--run", run, "--prompt", "a", check=2).stderr
    assert "Say what to draw: --prompt" in command("grid", "--run", run, check=2).stderr
    assert "--again takes everything" in command("grid", "m", "--again", "x.png", check=2).stderr
    without = tmp_path / "run"
    shutil.copytree(run, without)
    config = yaml.safe_load((without / "config.yaml").read_text(encoding="utf-8"))
    config["ema"]["decay"] = None
    (without / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="ema: the run keeps no average"):
        planned(Request(PROMPT, ("ema: on, off",), run=str(without)))
