"""What a run's files say of how they were made: true, without a path, the same after a resume."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import train_here
from huggingface_hub import ModelCard
from rich.console import Console
from safetensors import safe_open
from test_resume import Killed, die_after

from everydream.config import load_config
from everydream.errors import ConfigError
from everydream.formats.files import read_file
from everydream.formats.provenance import provenance_in
from everydream.plan import plan_run
from everydream.provenance import made_of
from everydream.tools.info.read import info
from everydream.tools.info.show import show
from everydream.training import accumulating
from everydream.training.runs import find_checkpoint
from everydream.training.state import read_checkpoint

Project = Callable[..., Path]


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder by their names."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def licensed(folder: Path) -> None:
    """Say of two of a folder's images what a scrape would say of them."""
    first, second, third = sorted(path.name for path in folder.glob("*.png"))[:3]
    rows = [
        {"path": first, "licence": "CC BY 2.0", "licence_url": ""},
        {"path": second, "licence": "?", "licence_url": "https://creativecommons.org/publicdomain/zero/1.0/"},
        {"path": third, "licence": "", "licence_url": ""},
    ]
    text = "\n".join([*map(json.dumps, rows), "no json"])
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8")


def test_every_export_says_what_made_it_and_no_path(project: Project, tmp_path: Path, model_folder: Path) -> None:
    formats = ["safetensors", "ckpt", "diffusers"]
    config = project(checkpoints={"formats": formats, "keep": 1}, train={"max_steps": 7})
    licensed(tmp_path / "real")
    run = train_here(config)
    folder = run / "checkpoints"
    stem = next(folder.glob("*.safetensors")).stem
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [stem, f"{stem}.safetensors", f"{stem}.ckpt", f"{stem}.md", "last.ckpt"]
    ), "the cards of deleted exports go with them"
    said = [
        provenance_in(metadata_of(folder / f"{stem}.safetensors")),
        provenance_in(read_file(folder / f"{stem}.ckpt").metadata),
        json.loads((folder / stem / "everydream.json").read_text(encoding="utf-8")),
        provenance_in(read_file(folder / "last.ckpt").metadata),
    ]
    assert all(one == said[0] for one in said)
    about = said[0]
    seen = read_checkpoint(folder / "last.ckpt").progress.images_seen
    assert (about["method"], about["step"], about["images_seen"]) == ("full", 7, seen)
    assert about["base"]["name"] == model_folder.name and len(about["base"]["sha256"]) == 64
    mine, real = about["data"]["sources"]
    assert (mine["name"], mine["images"], mine["draws_per_epoch"], mine["licences"]) == ("mine", 6, 12, {"unknown": 6})
    assert real["role"] == "ground_truth"
    assert real["licences"] == {
        "unknown": 3, "CC BY 2.0": 1, "https://creativecommons.org/publicdomain/zero/1.0/": 1
    }  # fmt: skip
    assert about["config"]["train"]["max_steps"] == 7 and about["config"]["model"]["path"] == model_folder.name
    for one in said:
        assert str(tmp_path) not in json.dumps(one) and str(model_folder.parent) not in json.dumps(one)
    for name in (f"{stem}.safetensors", f"{stem}.md"):
        assert str(tmp_path).encode() not in (folder / name).read_bytes()
    spec = metadata_of(folder / f"{stem}.safetensors")
    assert (spec["modelspec.title"], spec["modelspec.resolution"]) == ("trial", "64x64")
    card = ModelCard(ModelCard.load(folder / stem / "README.md").content)
    assert card.data.library_name == "diffusers" and card.data.base_model is None and card.data.license is None
    assert "| mine | 6 | 12 | training |" in card.text and "CC BY 2.0 (1)" in card.text
    assert "a picture of thing" in card.text


def test_a_resumed_run_says_the_same_to_the_byte_though_the_base_is_gone(
    project: Project, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    checkpoints = {"formats": ["safetensors"], "every_steps": 4, "keep": None}
    config = project(model={"path": str(base)}, method="lora", lora={"rank": 2}, checkpoints=checkpoints)
    straight = train_here(config)
    with monkeypatch.context() as patch:
        die_after(patch, accumulating, "training_step", 5)
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and last.parent.parent != straight
    resumed = train_here(config, resume=last)
    ours, theirs = contents(resumed / "checkpoints"), contents(straight / "checkpoints")
    assert ours == theirs and len(ours) >= 5
    said = read_checkpoint(resumed / "checkpoints" / "last.ckpt").provenance
    weights = {name: data for name, data in contents(base).items() if name.endswith(".safetensors")}
    listed = [[name, hashlib.sha256(data).hexdigest()] for name, data in weights.items()]
    assert said["base"]["sha256"] == hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    adapter = metadata_of(max((resumed / "checkpoints").glob("*.safetensors")))
    steps = said["step"]
    assert (adapter["ss_steps"], adapter["ss_sd_model_name"]) == (str(steps), "base")
    assert (adapter["ss_base_model_version"], adapter["ss_v2"]) == ("sd_v1", "False")
    assert (adapter["ss_network_dim"], adapter["ss_num_train_images"]) == ("2", "16")
    assert "ss_new_sd_model_hash" not in adapter, "kohya's hash is of a file, and the base is a folder"


def test_the_setting_says_how_much(project: Project) -> None:
    found: dict[str, Path] = {}
    for how in ("short", "none"):
        config = project(
            checkpoints={"formats": ["safetensors"], "provenance": how}, train={"max_steps": 1},
            preservation={"images": 2, "timesteps": 1},
        )  # fmt: skip
        found[how] = train_here(config) / "checkpoints"
    short = provenance_in(metadata_of(next(found["short"].glob("*.safetensors"))))
    assert [source["images"] for source in short["data"]["sources"]] == [6, 3], "those that are trained on"
    assert (short["data"]["images"], short["data"]["held_out"]) == (9, 2) and not {"config", "examples"} & short.keys()
    assert "a picture of thing" not in next(found["short"].glob("*.md")).read_text(encoding="utf-8")
    silent = metadata_of(next(found["none"].glob("*.safetensors")))
    assert provenance_in(silent) == {} and "modelspec.title" not in silent and not list(found["none"].glob("*.md"))
    with pytest.raises(ConfigError, match="checkpoints.provenance: has no effect with checkpoints.formats"):
        train_here(project(checkpoints={"formats": [], "provenance": "none"}))
    facts = info(found["short"] / "last.ckpt")
    assert facts["kind"] == "last.ckpt of a run" and facts["provenance"]["config"]["project"] == "trial"
    console = Console(file=io.StringIO(), width=300)
    show(facts, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Made by EveryDream" in shown and "project: trial" in shown
    assert facts["provenance"]["data"]["fingerprint"] in shown and facts["sha256"] in shown


def test_a_run_from_before_says_that_its_base_is_not_known(project: Project) -> None:
    config = load_config(project(train={"max_steps": 1}))
    checkpoint = read_checkpoint(train_here(project(train={"max_steps": 1})) / "checkpoints" / "last.ckpt")
    planned = plan_run(config)
    made = made_of(planned, checkpoint.facts.images, replace(checkpoint, provenance={}))
    assert made["base"] == {"name": "sd1", "hub_id": None, "sha256": None, "of": "not noted at the start"}
    assert made_of(planned, checkpoint.facts.images, checkpoint)["base"] == checkpoint.provenance["base"]
