"""What a user can get wrong: one clear message, exit code 2, no traceback."""

import io
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_images, metrics_of, run_cli, train_here
from PIL import Image

from everydream.errors import ConfigError, DataError, DiskError, FormatError, TrainingError
from everydream.formats import atomic
from everydream.formats.files import write_pickle

Project = Callable[..., Path]


def test_a_mistake_is_one_message_and_exit_code_2(project: Project) -> None:
    done = run_cli(
        "train", "--config", project(), "trian.epochs=3", "optimizer.name=adamv", "train.batch_size=0", check=2
    )
    for said in ("trian: unknown key; did you mean train?", "did you mean adam or adamw", "train.batch_size"):
        assert said in done.stderr
    assert "3 problems" in done.stderr and "Traceback" not in done.stderr


def test_a_key_of_a_section_at_the_top_is_told_where_it_belongs(project: Project) -> None:
    done = run_cli("train", "--config", project(), "epochs=3", check=2)
    assert "epochs: unknown key; did you mean train.epochs?" in done.stderr


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
    with pytest.raises(FormatError, match=r"odd\.ckpt is not a checkpoint of Stable Diffusion.*some\.weight"):
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


def test_a_run_that_reads_no_image_does_not_go_on_to_its_end(project: Project, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for number in range(12):
        (tmp_path / "broken" / f"cut short {number}.jpg").write_bytes(truncated_jpeg())
    config = project(
        data={"check": "headers", "sources": [{"path": str(tmp_path / "broken")}]}, train={"epochs": 1, "batch_size": 1}
    )
    with pytest.raises(TrainingError, match=r"No image of the last 10 steps .* cut short \d+\.jpg: truncated"):
        train_here(config)


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


def test_a_write_that_really_fails_is_told_and_the_older_checkpoint_stays(project: Project, tmp_path: Path) -> None:
    """A limit on file sizes fails writes as a full disk does, inside the libraries and each in its own way."""
    config = project(
        train={"max_steps": 6}, checkpoints={"every_steps": 2, "formats": ["safetensors", "ckpt", "diffusers"]}
    )
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5 * 10**6,) * 2);"
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limited += "from everydream.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", limited, "train", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("could not be written") >= 6
    (run,) = (tmp_path / "runs").iterdir()
    assert metrics_of(run)[-1]["step"] == 6
    assert not list((run / "checkpoints").iterdir()), "nothing half-written is left"


def test_an_export_that_fails_at_the_end_is_not_a_success(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from everydream import outputs

    def full(*arguments: object) -> None:
        raise DiskError("no room")

    monkeypatch.setattr(outputs.export, "export", full)
    with pytest.raises(DiskError, match="The export at step 1 could not be written: no room"):
        train_here(project(train={"max_steps": 1}, checkpoints={"formats": ["safetensors"]}))


def test_auto_on_a_first_start_checks_what_training_needs(project: Project) -> None:
    config = project(samples={"prompts": "/nowhere/prompts.txt"})
    assert "samples.prompts" in run_cli("train", "--config", config, "--resume", "auto", check=2).stderr


@pytest.mark.parametrize(
    "override", ["data.sources.0.repeats=.inf", "data.sources.0.loss_scale=.nan", "data.sources.0.name=a/b"]
)
def test_numbers_and_names_that_cannot_be_meant(project: Project, override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=", maxsplit=1)[0].replace(".", r"\.")):
        train_here(project(), override)


def test_a_home_folder_is_the_home_folder(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run = train_here(project(runs_dir="~/my runs", train={"max_steps": 1}))
    assert run.parent == tmp_path / "my runs"


def test_the_fp16_scaler_finding_its_scale_is_told_apart_and_bounded(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a CPU scaler in the place of the GPU's; its first scale overflows, as it may."""
    from accelerate import Accelerator

    from everydream.training import loop

    def scaled(*arguments: Any, **keywords: Any) -> Accelerator:
        accelerator = Accelerator(*arguments, **keywords)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        return accelerator

    monkeypatch.setattr("everydream.training.launch.Accelerator", scaled)
    monkeypatch.setattr("everydream.training.launch.Launch.autocast", lambda self: torch.autocast("cpu", torch.float16))
    run = train_here(project(train={"epochs": 3}))
    skipped = [line.get("skipped") for line in metrics_of(run)]
    assert skipped[0] == loop.BY_SCALER and skipped[-1] is None and set(skipped) == {loop.BY_SCALER, None}
    monkeypatch.setattr(loop, "_MAX_UNSCALED_STEPS", 2)
    with pytest.raises(TrainingError, match=r"Too many steps in a row were skipped \(the fp16 loss scaler"):
        train_here(project(train={"epochs": 3}))


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
    from everydream.outputs import Sampler

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    original = Sampler.__call__

    def then_change(sampler: Sampler, step: int) -> None:
        original(sampler, step)
        prompts.write_text("a dog\na bird\n", encoding="utf-8") if step == 0 else prompts.unlink(missing_ok=True)

    monkeypatch.setattr(Sampler, "__call__", then_change)
    run = train_here(project(train={"max_steps": 4}, samples={"every_steps": 2, "prompts": str(prompts), "steps": 2}))
    names = sorted(path.name for path in (run / "samples").glob("*-p*.png"))
    assert names == ["s000000-p00-g7.png", "s000002-p00-g7.png", "s000002-p01-g7.png"]
    assert "sampling failed" in (run / "events.jsonl").read_text(), "the file is gone at step 4"
