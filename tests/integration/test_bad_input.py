"""What a user can get wrong: one clear message, exit code 2, no traceback."""

import io
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_images, metrics_of, run_cli, train_here
from PIL import Image

from everydream.errors import ConfigError, DataError, DiskError, FormatError
from everydream.formats import atomic
from everydream.formats.files import write_pickle

Project = Callable[..., Path]


def test_a_mistake_is_one_message_and_exit_code_2(project: Project) -> None:
    done = run_cli(
        "train", "--config", project(), "trian.epochs=3", "optimizer.name=adamv", "train.batch_size=0", check=2
    )
    for said in ("trian: unknown key; did you mean train?", "did you mean adam?", "train.batch_size"):
        assert said in done.stderr
    assert "3 problems" in done.stderr and "Traceback" not in done.stderr


def test_debug_shows_the_traceback(project: Project) -> None:
    done = run_cli("train", "--config", project(), "trian.epochs=3", "--debug", check=1)
    assert "Traceback" in done.stderr and "ConfigError" in done.stderr


def test_nothing_to_train_is_said(project: Project) -> None:
    assert "--config project.yaml" in run_cli("train", check=2).stderr
    assert "cannot be read" in run_cli("train", "--config", "nowhere.yaml", check=2).stderr


@pytest.mark.parametrize(
    ("sections", "error", "said"),
    [
        (
            {"model": {"path": "/nowhere/model.safetensors"}},
            ConfigError,
            "there is nothing at /nowhere/model.safetensors",
        ),
        (
            {"samples": {"prompts": "/nowhere/prompts.txt"}},
            ConfigError,
            "samples.prompts: there is nothing at /nowhere",
        ),
        ({"train": {"precision": "fp16"}}, ConfigError, "fp16 needs a GPU"),
        ({"runs_dir": __file__}, ConfigError, "is a file, and runs need a folder"),
        ({"text_encoder": {"train_last_layers": 9}}, ConfigError, "only 2 layers"),
    ],
)
def test_wrong_settings(project: Project, sections: dict[str, Any], error: type[Exception], said: str) -> None:
    if "precision" in str(sections) and torch.cuda.is_available():
        pytest.skip("fp16 is fine where there is a GPU")
    with pytest.raises(error, match=said):
        train_here(project(**sections))


def test_a_model_of_an_unknown_family(project: Project, tmp_path: Path) -> None:
    write_pickle(tmp_path / "odd.ckpt", {"state_dict": {"some.weight": torch.zeros(3)}})
    with pytest.raises(FormatError, match=r"odd\.ckpt is not a Stable Diffusion 1\.x or 2\.x checkpoint.*some\.weight"):
        train_here(project(model={"path": str(tmp_path / "odd.ckpt")}))


def test_no_usable_image(project: Project, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"(?s)No usable image.*broken\.jpg"):
        train_here(project(data={"sources": [{"path": str(tmp_path / "empty")}]}))


def test_nothing_that_would_be_drawn(project: Project, tmp_path: Path) -> None:
    make_images(tmp_path / "mine", 3)
    with pytest.raises(DataError, match="3 images are usable, but none would be drawn"):
        train_here(project(data={"sources": [{"path": str(tmp_path / "mine"), "repeats": 0}]}))


def truncated_jpeg() -> bytes:
    held = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(held, "JPEG")
    return held.getvalue()[: len(held.getvalue()) // 2]


def test_a_rejected_image_is_named_and_the_run_goes_on_unless_strict(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "mine", 6, seed=1)
    (tmp_path / "mine" / "cut short.jpg").write_bytes(truncated_jpeg())
    run = train_here(project(train={"max_steps": 1}))
    assert "mine/cut short.jpg: truncated" in capfd.readouterr().err
    assert "cut short.jpg" in (run / "events.jsonl").read_text()
    with pytest.raises(DataError, match=r"cut short\.jpg: truncated"):
        train_here(project(data={"strict": True}))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_in_mid_run_leaves_its_batch_and_is_named(
    project: Project, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Headers do not show a truncated body; elsewhere it kills the run, or another image takes its place."""
    make_images(tmp_path / "mine", 6, seed=1)
    (tmp_path / "mine" / "cut short.jpg").write_bytes(truncated_jpeg())
    config = project(
        data={"check": "headers", "workers": workers, "sources": [{"path": str(tmp_path / "mine")}]},
        train={"epochs": 1},
    )
    run = train_here(config)
    assert "Rejected mine/cut short.jpg: truncated" in capfd.readouterr().err
    assert metrics_of(run)[-1]["images_seen"] == 6, "seven were planned, one was left out"


def test_an_image_alone_in_its_batch_that_breaks_is_a_step_of_nothing(project: Project, tmp_path: Path) -> None:
    make_images(tmp_path / "one", 1)
    (tmp_path / "one" / "cut short.jpg").write_bytes(truncated_jpeg())
    config = project(
        data={"check": "headers", "sources": [{"path": str(tmp_path / "one")}]}, train={"epochs": 1, "batch_size": 1}
    )
    lines = metrics_of(train_here(config))
    assert [line["images_seen"] for line in lines] in ([0, 1], [1, 1])
    assert sorted(line.get("skipped", "") for line in lines) == ["", "no image of the step could be read"]


def test_no_space_is_found_out_before_the_run_starts(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**6))
    with pytest.raises(DiskError, match=r"This run needs .* MB in .*runs, but only 1\.0 MB are free"):
        train_here(project())
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from everydream import outputs

    calls = [0]
    original = outputs.require_space

    def full_from_the_second(folder: Path, needed: int, what: str) -> None:
        calls[0] += 1
        if calls[0] > 1:
            raise DiskError(f"{what} needs more")
        original(folder, needed, what)

    monkeypatch.setattr(outputs, "require_space", full_from_the_second)
    with pytest.raises(DiskError, match="last.ckpt at step 6 could not be written"):
        train_here(project(train={"max_steps": 6}, checkpoints={"every_steps": 2}))
    from everydream.training.state import read_checkpoint

    (last,) = (tmp_path / "runs").glob("*/checkpoints/last.ckpt")
    assert read_checkpoint(last).progress.step == 2
    assert "What was saved before is still there" in capfd.readouterr().err


def test_sampling_that_fails_is_told_and_training_goes_on(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    config = project(
        train={"max_steps": 4}, samples={"every_steps": 2, "prompts": str(prompts), "steps": 2, "width": 60}
    )
    run = train_here(config)
    said = capfd.readouterr().err
    assert said.count("training goes on") == 3 and "60 x 64 px: both sides must be multiples of 8" in said
    assert metrics_of(run)[-1]["step"] == 4
    assert "sampling failed" in (run / "events.jsonl").read_text()


def test_a_prompt_file_may_change_while_it_runs(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everydream.training import loop

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    original = loop._sample

    def then_change(c: Any, step: int) -> None:
        original(c, step)
        prompts.write_text("a dog\na bird\n", encoding="utf-8") if step == 0 else prompts.unlink(missing_ok=True)

    monkeypatch.setattr(loop, "_sample", then_change)
    run = train_here(project(train={"max_steps": 4}, samples={"every_steps": 2, "prompts": str(prompts), "steps": 2}))
    names = sorted(path.name for path in (run / "samples").glob("*-p*.png"))
    assert names == ["s000000-p00-g7.png", "s000002-p00-g7.png", "s000002-p01-g7.png"]
    assert "sampling failed" in (run / "events.jsonl").read_text(), "the file is gone at step 4"
