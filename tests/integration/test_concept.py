"""`everydream concept`: from photos to a file that draws them, in one command that goes on where it was stopped."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_images, metrics_of
from tools.tool_app import run

from everydream.config import load_config
from everydream.formats.embeddings import read_embedding
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.tools.concept.pick import Candidate, pick
from everydream.tools.concept.project import new_words

QUICK = (
    "data.bucket_step=16", "data.workers=0", "train.epochs=2", "data.sources.0.repeats=2", "train.precision=fp32",
    "samples.every_steps=null", "trackers=[]",
)  # fmt: skip


@pytest.fixture
def teach(tmp_path: Path, model_folder: Path) -> Callable[..., Any]:
    """Return a function that runs the command on three photos."""
    make_images(tmp_path / "photos", 3, seed=1)

    def run_it(*options: object, check: int = 0, plain: bool = False) -> Any:
        quick = QUICK if plain or "class" in options else (*QUICK, "class_images.steps=2")
        return run(
            "concept", "--concept-label", "photo of billhamilton man", "--concept-images-dir", tmp_path / "photos",
            "--class-label", "photo of a man", "--class-images", 4, "--model", model_folder, "--resolution", 64,
            "--out", tmp_path / "bill", *options, *quick, check=check,
        )  # fmt: skip

    return run_it


def test_from_photos_to_a_model(teach: Callable[..., Any], tmp_path: Path) -> None:
    told = teach().stdout
    config = load_config(tmp_path / "bill" / "project.yaml")
    assert config.method == "dreambooth"
    assert [source.label for source in config.data.sources] == ["photo of billhamilton man", "photo of a man"]
    (made,) = (tmp_path / "bill" / "runs" / "class_images").iterdir()
    assert len(list(made.glob("*.png"))) == 4
    assert "step   concept loss" in told and told.count("<- kept") == 1
    assert (
        "write “photo of billhamilton man” where you would write “photo of a man”; the new is in “billhamilton”" in told
    )
    kept = tmp_path / "bill" / "bill.safetensors"
    assert f"everydream sample {kept}" in told
    exports = sorted((tmp_path / "bill" / "runs").glob("bill-*/checkpoints/bill-*.safetensors"))
    assert len(exports) == 2 and kept.read_bytes() in [path.read_bytes() for path in exports]
    assert load(ModelSettings(path=str(kept))).name == "sd1"
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    assert names == [f"a picture of thing {i}_(1).png" for i in range(3)], "nothing beside the photos"

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "bill" / "runs").rglob("*") if path.is_file()}

    before = times()
    assert "<- kept" in teach().stdout
    assert times() == before, "all that was done is found again"


def test_stopped_and_taken_up_by_the_same_command(
    teach: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everydream.training import accumulating

    original, calls = accumulating.training_step, [0]

    def stopping(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(accumulating, "training_step", stopping)
    assert "The same command goes on" in teach(check=130).stderr
    assert not (tmp_path / "bill" / "bill.safetensors").exists()
    teach()
    (run_folder,) = (tmp_path / "bill" / "runs").glob("bill-*")
    assert [line["step"] for line in metrics_of(run_folder)] == list(range(1, len(metrics_of(run_folder)) + 1))
    assert (tmp_path / "bill" / "bill.safetensors").exists()


def test_as_an_adapter_with_class_images_of_ones_own(teach: Callable[..., Any], tmp_path: Path) -> None:
    own = make_images(tmp_path / "men", 4, seed=3)
    told = teach("--method", "lora", "--class-images-dir", own).stdout
    assert not (tmp_path / "bill" / "runs" / "class_images").exists()
    assert "--lora" in told and (tmp_path / "bill" / "bill.safetensors").stat().st_size < 1_000_000


def test_as_a_word(teach: Callable[..., Any], tmp_path: Path) -> None:
    told = teach("--method", "textual_inversion", plain=True).stdout
    assert "none measured" in told and "--embedding" in told
    found = read_embedding(tmp_path / "bill" / "billhamilton.safetensors")
    assert found.keys() == {"billhamilton"} and found["billhamilton"].shape == (4, 64)
    raw = yaml.safe_load((tmp_path / "bill" / "project.yaml").read_text(encoding="utf-8"))
    assert raw["textual_inversion"]["words"] == [{"token": "billhamilton", "vectors": 4, "init": "man"}]


def test_class_images_are_made_where_asked(teach: Callable[..., Any], tmp_path: Path) -> None:
    teach("--class-images-dir", tmp_path / "made", "--skip", "pick")
    assert len(list((tmp_path / "made").glob("*.png"))) == 4
    assert not (tmp_path / "bill" / "bill.safetensors").exists()
    assert "<- kept" in teach("--class-images-dir", tmp_path / "made", "--skip", "prune").stdout


def test_labels_that_are_no_file_names(teach: Callable[..., Any], tmp_path: Path) -> None:
    odd = ("--concept-label", "photo of ../../esc man", "--method", "textual_inversion", "--skip", "class")
    teach(*odd)
    assert (tmp_path / "bill" / "....esc.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bill", "photos"]


def test_an_adapter_as_a_folder(teach: Callable[..., Any], tmp_path: Path) -> None:
    told = teach("--method", "lora", "checkpoints.formats=[diffusers]").stdout
    assert (tmp_path / "bill" / "model" / "pytorch_lora_weights.safetensors").exists() and "--lora" in told


def test_photos_and_not_what_was_prepared_once(teach: Callable[..., Any], tmp_path: Path) -> None:
    make_images(tmp_path / "bill" / "images", 1)
    teach("--skip", "pick")
    raw = yaml.safe_load((tmp_path / "bill" / "project.yaml").read_text(encoding="utf-8"))
    assert raw["data"]["sources"][0]["path"] == str(tmp_path / "photos")
    assert "no prepared images" in teach("--person", "--skip", "prepare", "--out", tmp_path / "x", check=2).stderr


def test_an_earlier_result_stays_beside_a_new_one(teach: Callable[..., Any], tmp_path: Path) -> None:
    teach("--method", "lora")
    first = (tmp_path / "bill" / "bill.safetensors").read_bytes()
    told = teach("--method", "lora", "optimizer.lr=0.02", check=2).stderr
    assert "begin anew beside the old run, with --fresh" in told and "--allow-changes" not in told
    assert "bill-2.safetensors" in teach("--method", "lora", "--fresh", "optimizer.lr=0.02").stdout
    assert (tmp_path / "bill" / "bill.safetensors").read_bytes() == first
    assert (tmp_path / "bill" / "bill-2.safetensors").read_bytes() != first
    raw = yaml.safe_load((tmp_path / "bill" / "project.yaml").read_text(encoding="utf-8"))
    assert raw["optimizer"]["lr"] == 0.02, "the project is what was trained"


def test_photos_without_a_face_are_left_out_by_name(teach: Callable[..., Any], tmp_path: Path) -> None:
    result = teach("--person", check=2)
    assert "no face was found" in result.stdout and "a picture of thing 0_(1).png" in result.stdout
    assert not list((tmp_path / "bill").glob("runs/bill-*"))


def test_slips(teach: Callable[..., Any], tmp_path: Path) -> None:
    assert "--skip tarin: no such step" in teach("--skip", "tarin", check=2).stderr
    assert "holds no run of bill" in teach("--skip", "train", check=2).stderr
    assert "--method is 'dream'" in teach("--method", "dream", check=2).stderr
    assert "training with class images" in teach("--skip", "class", check=2).stderr
    told = teach("--concept-label", "photo of a man", check=2).stderr
    assert "so nothing would name the new" in told
    assert "there is no folder" in teach("--concept-images-dir", tmp_path / "none", check=2).stderr
    assert not (tmp_path / "bill").exists() or not list((tmp_path / "bill").glob("*.safetensors"))


def test_new_words() -> None:
    assert new_words("photo of billhamilton man", "photo of a man") == ["billhamilton"]
    assert new_words("Photo of sks dog", "photo of a Dog") == ["sks"]
    assert new_words("photo of a man", "photo of a man") == []


def candidate(step: int, concept: float, change: float | None, margin: float = 0.01) -> Candidate:
    return Candidate(Path(f"{step}"), step, concept, change, margin)


def test_the_export_to_keep() -> None:
    early, best, late = candidate(1, 0.3, 0.0), candidate(2, 0.2, 0.005), candidate(3, 0.1, 0.05)
    assert pick([early, best, late]) is best, "the last has forgotten"
    assert pick([candidate(1, 0.3, 0.03), late]).step == 1, "all have: the least"
    assert pick([candidate(1, 0.3, None), candidate(2, 0.2, None)]).step == 2
