"""The data of five classic command lines trains here as it is laid out for them: exact captions, draws and weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import typer
from conftest import metrics_of, train_here
from PIL import Image
from typer.testing import CliRunner

from everydream.config import load_config
from everydream.data.loader import PieceDataset, load_pieces
from everydream.data.plan import pieces_for_rank
from everydream.plan import Planned, plan_run
from everydream.tools.importing.cli import import_settings

Project = Callable[..., Path]
SMALL = ("data.resolution=64", "data.bucket_step=16", "data.workers=0", "trackers=[]", "samples.every_steps=null",
         "train.precision=fp32", "checkpoints.formats=[]")  # fmt: skip
"""What fits imported settings to the tiny model."""


class Drawn(NamedTuple):
    """What the plan makes of an image: its caption, and its draws in the first epoch."""

    caption: str
    draws: int


def drawn(planned: Planned) -> dict[str, Drawn]:
    """Return what is drawn, by path relative to the source; sources of an example hold different names."""
    index = planned.index
    return {
        path: Drawn(index.captions[index.caption_offsets[n]], int(count))
        for n, (path, count) in enumerate(zip(index.paths, planned.mix.counts(0).tolist(), strict=True))
    }


def place(folder: Path, *names: str) -> Path:
    """Write a small picture under each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * number, 90, 200)).save(path)
    return folder


def trained(config: Path, steps: int, *overrides: str) -> list[dict[str, Any]]:
    """Train, and return the metrics of a run that ended after `steps` steps with finite losses."""
    lines = metrics_of(train_here(config, *overrides))
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert all(math.isfinite(line["loss"]) for line in lines)
    return lines


def imported(tmp_path: Path, *arguments: object) -> Path:
    """Run `everydream import` and return the YAML."""
    app, out = typer.Typer(pretty_exceptions_enable=False), tmp_path / "project.yaml"
    app.command()(import_settings)
    result = CliRunner().invoke(app, [*map(str, arguments), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = out.read_text(encoding="utf-8").replace("project: imported", "project: trial")
    out.write_text(f"runs_dir: {json.dumps(str(tmp_path / 'runs'))}\n{text}", encoding="utf-8")
    return out


def test_imaginairys_concept_and_class_folders(project: Project, tmp_path: Path) -> None:
    """`train-concept`: a folder and a label of the concept, a folder and a label of its class."""
    concept = place(tmp_path / "concept", "a.jpg", "b.png", "IMG_3.png")
    people = place(tmp_path / "class", "0001.png", "0002.png")
    sources = [
        {"path": str(concept), "captions": "label", "label": "photo of billhamilton man", "repeats": 2},
        {"path": str(people), "captions": "label", "label": "photo of a man", "role": "class"},
    ]
    config = project(method="dreambooth", data={"sources": sources}, train={"epochs": 1, "batch_size": 4})
    assert drawn(plan_run(load_config(config))) == {
        **dict.fromkeys(("a.jpg", "b.png", "IMG_3.png"), Drawn("photo of billhamilton man", 2)),
        **dict.fromkeys(("0001.png", "0002.png"), Drawn("photo of a man", 3)),
    }
    trained(config, 3)


def test_dreambooths_instance_and_regularization_folders(project: Project, tmp_path: Path) -> None:
    """`--data_root`, `--reg_data_root` and the prior's weight, as XavierXiao's and gammagec's DreamBooth have them."""
    instances = place(tmp_path / "instances", "1.png", "2.png", "3.png")
    dogs = place(tmp_path / "dogs", *(f"dog {n}.png" for n in range(5)))
    sources = [
        {"path": str(instances), "label": "a photo of sks dog", "repeats": 4},
        {"path": str(dogs), "label": "a photo of dog", "role": "class"},
    ]
    config = project(
        method="dreambooth", data={"sources": sources}, train={"epochs": 2, "batch_size": 4},
        class_images={"prior_weight": 0.7}, captions={"dropout": 0.0},
    )  # fmt: skip
    settings = load_config(config)
    planned = plan_run(settings)
    for epoch in range(2):
        weights = weights_of_steps(planned, epoch)
        assert [len(step) for step in weights] == [4] * 6
        assert sorted(caption_weight for step in weights for caption_weight in step) == sorted(
            [("a photo of sks dog", 1.0)] * 12 + [("a photo of dog", 0.7)] * 12
        )
    trained(config, 12)


def weights_of_steps(planned: Planned, epoch: int) -> list[list[tuple[str, float]]]:
    """Return the caption and the weight of each image of each step."""
    plan, config = planned.epoch(epoch), planned.config
    pieces = list(pieces_for_rank(plan, 0, 1))
    dataset = PieceDataset(pieces, plan, planned.index, planned.buckets, config.data, config.seed)
    batches = [loaded.batch for loaded in load_pieces(dataset, 0)]
    return [
        [(caption, round(weight, 6)) for caption, weight in zip(b.captions, b.loss_scale_B.tolist(), strict=True)]
        for b in batches
    ]


def test_everydreams_folder(project: Project, tmp_path: Path) -> None:
    """Version 1: captions in names, nested folders, multiply.txt for the folder that it lies in."""
    root = place(
        tmp_path / "training_samples",
        "a photo of cloud_1.png", "ff7/a photo of tifa, smiling_(2).PNG", "ff7/deep/a street in midgar__x.png",
    )  # fmt: skip
    (root / "ff7" / "multiply.txt").write_text("3", encoding="utf-8")
    config = project(data={"sources": [{"path": str(root)}]}, train={"epochs": 1, "batch_size": 2})
    assert drawn(plan_run(load_config(config))) == {
        "a photo of cloud_1.png": Drawn("a photo of cloud", 1),
        "ff7/a photo of tifa, smiling_(2).PNG": Drawn("a photo of tifa, smiling", 3),
        "ff7/deep/a street in midgar__x.png": Drawn("a street in midgar", 1),
    }
    trained(config, 3)


JOEPENNA = {
    "img-001.png": "effy person",
    "img-002@a photo of S.png": "a photo of effy",
    "bingo/dog/3@S being a good C.png": "bingo being a good dog",
}


def test_joepennas_json(tmp_path: Path, model_folder: Path) -> None:
    subject = place(tmp_path / "effy", *JOEPENNA)
    people = place(tmp_path / "person_ddim", "00001.png", "person/00002.png")
    raw = {
        "schema": 1, "project_name": "trial", "max_training_steps": 3, "save_every_x_steps": 0,
        "training_images_folder_path": str(subject), "regularization_images_folder_path": str(people),
        "token": "effy", "class_word": "person", "flip_percent": 0.0, "learning_rate": 1e-4, "seed": 3,
        "model_path": str(model_folder),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    config = imported(tmp_path, tmp_path / "config.json")
    assert drawn(plan_run(load_config(config, list(SMALL)))) == {
        **{path: Drawn(caption, 100) for path, caption in JOEPENNA.items()},
        **dict.fromkeys(("00001.png", "person/00002.png"), Drawn("person", 150)),
    }
    lines = trained(config, 3, *SMALL)
    assert {(line["lr/unet"], line["lr/text_encoder"]) for line in lines} == {(1e-4, 1e-4)}


def test_joepennas_flags(tmp_path: Path, model_folder: Path) -> None:
    subject = place(tmp_path / "effy", *JOEPENNA)
    command = (
        f'python "main.py" --project_name trial --training_model "{model_folder}" --training_images "{subject}" '
        '--max_training_steps 2 --class_word "person" --token "effy" --flip_p 0 --save_every_x_steps 1'
    )
    config = imported(tmp_path, "--joepenna", command)
    assert drawn(plan_run(load_config(config, list(SMALL)))) == {
        path: Drawn(caption, 100) for path, caption in JOEPENNA.items()
    }
    trained(config, 2, *SMALL)


def test_kohyas_folders_by_its_toml(tmp_path: Path, model_folder: Path) -> None:
    images = place(tmp_path / "img", "5_rex dog/1.png", "5_rex dog/2.png", "1_rex on grass/3.png")
    (images / "5_rex dog" / "2.txt").write_text("rex, sitting", encoding="utf-8")
    dogs = place(tmp_path / "reg", "1_dog/4.png", "1_dog/5.png")
    (tmp_path / "run.toml").write_text(
        f"""
[model]
pretrained_model_name_or_path = '{model_folder}'
[folders]
train_data_dir = '{images}'
reg_data_dir = '{dogs}'
output_name = "trial"
[training]
resolution = "64"
max_train_epochs = 1
train_batch_size = 2
network_module = "networks.lora"
network_dim = 4
network_alpha = 2
unet_lr = 1e-3
text_encoder_lr = 5e-4
prior_loss_weight = 0.5
save_model_as = "safetensors"
""",
        encoding="utf-8",
    )
    config = imported(tmp_path, tmp_path / "run.toml")
    small = [item for item in SMALL if not item.startswith("checkpoints")]
    planned = plan_run(load_config(config, small))
    # 5 + 5 + 1 draws of the subject, and as many of the class in turn.
    classes = {path: draws for path, (_, draws) in drawn(planned).items() if path.startswith("1_dog")}
    assert sorted(classes.values()) == [5, 6]
    assert drawn(planned) == {
        "5_rex dog/1.png": Drawn("rex dog", 5),
        "5_rex dog/2.png": Drawn("rex, sitting", 5),
        "1_rex on grass/3.png": Drawn("rex on grass", 1),
        **{path: Drawn("dog", draws) for path, draws in classes.items()},
    }
    assert sorted({weight for step in weights_of_steps(planned, 0) for _, weight in step}) == [0.5, 1.0]
    run = train_here(config, *small)
    lines = metrics_of(run)
    assert len(lines) == 11 and all(math.isfinite(line["loss"]) for line in lines)
    (adapter,) = (run / "checkpoints").glob("trial-*.safetensors")
    assert adapter.stat().st_size > 0
