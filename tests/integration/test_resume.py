"""A run that is stopped or killed anywhere, and resumed, ends with the bits of the run that was not."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, metrics_of, run_cli, train_here

from everydream.errors import ResumeError, TrainingError
from everydream.formats import atomic, files
from everydream.training import accumulating, loop
from everydream.training.metrics import cut_after
from everydream.training.runs import find_checkpoint, run_of
from everydream.training.state import read_checkpoint

Project = Callable[..., Path]


def digest(run: Path) -> tuple[str, str]:
    """Return hashes of the whole state (weights, optimizer, EMA, progress) and of the metrics."""
    last, metrics = run / "checkpoints" / "last.ckpt", run / "metrics.jsonl"
    return hashlib.sha256(last.read_bytes()).hexdigest(), hashlib.sha256(metrics.read_bytes()).hexdigest()


class Killed(BaseException):
    """Stands for a process that ends without another word."""


def die_after(monkeypatch: pytest.MonkeyPatch, target: object, name: str, calls: int) -> None:
    """Let `target.name` work `calls` times and die at the next."""
    original, count = getattr(target, name), [0]

    def dying(*args: object, **kwargs: object) -> object:
        count[0] += 1
        if count[0] > calls:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, dying)


@pytest.mark.parametrize(
    ("kill_at", "train"),
    [
        (1, {}),
        (6, {}),  # the last batch of the first epoch
        (7, {"gradient_accumulation": 2}),
        (4, {"gradient_checkpointing": True}),
    ],
)
def test_killed_between_steps_and_resumed_is_the_same_to_the_bit(
    project: Project, monkeypatch: pytest.MonkeyPatch, kill_at: int, train: dict[str, Any]
) -> None:
    """Defect 1. EMA included (defect 6: elsewhere it resumes from the plain weights)."""
    config = project(
        checkpoints={"every_steps": 1},
        ema={"decay": 0.95},
        captions={"dropout": 0.3, "shuffle_tags": True},
        train=train,
    )
    straight = train_here(config)
    with monkeypatch.context() as patch:
        die_after(patch, accumulating, "training_step", kill_at)
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and straight not in last.parents
    resumed = train_here(config, resume=last)
    assert resumed == last.parent.parent, "goes on in the same run folder"
    assert digest(resumed) == digest(straight)
    assert [line["step"] for line in metrics_of(resumed)] == list(range(1, len(metrics_of(straight)) + 1))


def test_killed_while_saving_keeps_the_older_checkpoint_whole(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project(checkpoints={"every_steps": 2})
    straight = train_here(config)

    def half_written(contents: object, file: object) -> None:
        file.write(b"PK\x03\x04 half a checkpoint")  # type: ignore[attr-defined]
        file.flush()  # type: ignore[attr-defined]
        os.kill(os.getpid(), 0)
        raise Killed

    saves = [0]
    original = files.torch.save

    def save(contents: object, file: object) -> None:
        saves[0] += 1
        half_written(contents, file) if saves[0] == 3 else original(contents, file)

    with monkeypatch.context() as patch:
        patch.setattr(files.torch, "save", save)
        patch.setattr(atomic.Path, "unlink", lambda self, missing_ok=False: None)  # a killed process tidies nothing
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and (last.parent / "last.ckpt.partial").exists()
    assert read_checkpoint(last).progress.step == 4
    assert digest(train_here(config, resume=last)) == digest(straight)
    assert not (last.parent / "last.ckpt.partial").exists()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.005)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_sigkill_of_the_real_process_with_workers_and_during_saves(project: Project, tmp_path: Path) -> None:
    """Kill -9 at two moments, one of them inside a save, then resume by the file alone, from another folder."""
    config = project(train={"epochs": 4}, checkpoints={"every_steps": 1}, data={"workers": 1})
    straight = train_here(config)
    straight.parent.rename(tmp_path / "straight-runs")
    straight = tmp_path / "straight-runs" / straight.name
    runs = tmp_path / "runs"

    process = start("--config", config)
    wait_for(
        lambda: any(runs.glob("*/checkpoints/last.ckpt.partial")) and any(runs.glob("*/checkpoints/last.ckpt")), process
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(runs.glob("*/checkpoints/last.ckpt.partial")), "killed inside a save"
    last = next(runs.glob("*/checkpoints/last.ckpt"))
    first_step = read_checkpoint(last).progress.step

    process = start("--resume", last)
    wait_for(lambda: (last.parent.parent / "metrics.jsonl").read_bytes().count(b"\n") >= first_step + 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()

    done = run_cli("train", "--resume", last)
    assert "Finished" in done.stderr
    assert digest(last.parent.parent) == digest(straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    project: Project, tmp_path: Path, number: signal.Signals
) -> None:
    config = project(train={"epochs": 50}, data={"workers": 1})
    process = start("--config", config)
    metrics = tmp_path / "runs"
    wait_for(lambda: any(path.stat().st_size for path in metrics.glob("*/metrics.jsonl")), process)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 128 + number
    last = next(metrics.glob("*/checkpoints/last.ckpt"))
    assert f"Stopped by {number.name}" in said and f"--resume {last}" in said and "Traceback" not in said
    assert read_checkpoint(last).progress.step == len(metrics_of(last.parent.parent)) > 0


def test_stopped_by_a_signal_and_resumed_is_the_same_to_the_bit(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everydream.config import load_config
    from everydream.train import train

    config = project()
    straight = train_here(config)

    original, steps = loop._advance, [0]

    def advance(*args: object) -> object:
        steps[0] += 1
        if steps[0] == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "_advance", advance)
    run, ended_by = train(load_config(config), None)
    assert ended_by == signal.SIGTERM
    assert digest(train_here(config, resume=run / "checkpoints" / "last.ckpt")) == digest(straight)


def test_a_moved_checkpoint_goes_on_in_a_new_run_folder(project: Project, tmp_path: Path) -> None:
    config = project(train={"epochs": 2, "max_steps": 3})
    first = train_here(config)
    moved = tmp_path / "elsewhere.ckpt"
    (first / "checkpoints" / "last.ckpt").rename(moved)
    assert run_of(moved) is None
    run = train_here(config, "train.max_steps=5", resume=moved, allow_changes=True)
    assert run != first
    assert [line["step"] for line in metrics_of(run)] == [4, 5]


def test_relative_paths_are_found_again_from_another_folder(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project(data={"sources": [{"path": "mine"}]}, runs_dir="runs", train={"epochs": 1})
    monkeypatch.chdir(tmp_path)
    last = (train_here(config) / "checkpoints" / "last.ckpt").absolute()
    (tmp_path / "elsewhere").mkdir()
    assert "is complete" in run_cli("train", "--resume", last, cwd=tmp_path / "elsewhere").stderr


def test_a_resume_says_where_it_goes_on_and_whether_to_the_bit(
    project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from everydream.training.launch import Launch

    last = train_here(project(train={"max_steps": 2})) / "checkpoints" / "last.ckpt"
    config = project(train={"max_steps": 3})
    capfd.readouterr()
    train_here(config, resume=last, allow_changes=True)
    said = capfd.readouterr().err
    assert "Going on after step 2 of 3, epoch 1." in said and "to rounding" not in said
    monkeypatch.setattr(Launch, "machine", lambda self: {"processes": 1, "threads": 99})
    train_here(config, "train.max_steps=4", resume=last, allow_changes=True)
    assert "now 99; it goes on with the same images and noise" in capfd.readouterr().err


def test_a_stop_in_the_last_step_is_a_finished_run_with_its_export(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:

    original, steps = loop._advance, [0]

    def advance(*args: Any) -> object:
        steps[0] += 1
        if steps[0] == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(loop, "_advance", advance)
    run = train_here(project(train={"max_steps": 2}, checkpoints={"formats": ["safetensors"]}))
    assert len(list((run / "checkpoints").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("name", ["_export", "_save"])
def test_killed_around_the_final_export_the_resumed_run_writes_it(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from everydream.outputs import Writer

    config = project(train={"max_steps": 3}, checkpoints={"every_steps": 2, "formats": ["safetensors"]})
    straight = train_here(config)
    with monkeypatch.context() as patch:
        die_after(patch, Writer, name, 1)
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and last.parent.parent != straight
    resumed = train_here(config, resume=last)
    assert digest(resumed) == digest(straight)
    names = sorted(path.name for path in (straight / "checkpoints").iterdir())
    assert sorted(path.name for path in (resumed / "checkpoints").iterdir()) == names
    assert len(names) == 5, "two exports with their cards"


def test_auto_takes_runs_of_the_very_project(project: Project, tmp_path: Path) -> None:
    train_here(project(project="cat-v2", train={"max_steps": 1}))
    runs = tmp_path / "runs"
    assert find_checkpoint("auto", runs, "cat") is None
    odd = train_here(project(project="my[1]", train={"max_steps": 1}))
    assert find_checkpoint("auto", runs, "my[1]") == odd / "checkpoints" / "last.ckpt"


def test_a_resume_needs_no_room_for_what_is_there(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    from everydream import train as module

    asked: list[int] = []
    monkeypatch.setattr(module, "require_space", lambda folder, needed, what: asked.append(needed))
    run = train_here(project(train={"max_steps": 2}))
    (run / "checkpoints" / "trial-e0000-s000001.partial").write_bytes(b"left by a killed process")
    last = run / "checkpoints" / "last.ckpt"
    size = last.stat().st_size
    train_here(project(train={"max_steps": 3}), resume=last, allow_changes=True)
    assert asked[0] - asked[1] == size
    assert not list((run / "checkpoints").glob("*.partial"))


def test_another_optimizer_starts_with_a_state_of_its_own(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    for before, after in (("adamw", "adafactor"), ("sgd", "adamw")):
        run = train_here(project(train={"max_steps": 2}, optimizer={"name": before}))
        config = project(train={"max_steps": 4}, optimizer={"name": after})
        train_here(config, resume=run / "checkpoints" / "last.ckpt", allow_changes=True)
        assert "start without optimizer state" in capfd.readouterr().err
        assert all("skipped" not in line for line in metrics_of(run))


def test_a_finished_run_is_left_as_it_is(project: Project) -> None:
    run = train_here(project())
    before = digest(run)
    assert train_here(project(), resume=run / "checkpoints" / "last.ckpt") == run
    assert digest(run) == before


def test_changed_settings_and_images_are_named_one_by_one(project: Project, tmp_path: Path) -> None:
    config = project(train={"max_steps": 2})
    last = train_here(config) / "checkpoints" / "last.ckpt"
    names = sorted(path.name for path in (tmp_path / "mine").iterdir())
    (tmp_path / "mine" / names[0]).unlink()
    (tmp_path / "mine" / names[1]).with_suffix(".txt").write_text("another caption")
    (tmp_path / "mine" / "a new one.png").write_bytes((tmp_path / "mine" / names[2]).read_bytes())
    with pytest.raises(ResumeError) as caught:
        train_here(config, "unet.lr=1e-5", "train.max_steps=4", resume=last)
    said = str(caught.value)
    assert "unet.lr: was 0.001, is 1e-05" in said and "train.max_steps: was 2, is 4" in said
    assert f"image gone: mine/{names[0]}" in said and f"image or caption changed: mine/{names[1]}" in said
    assert "image new: mine/a new one.png" in said and "--allow-changes" in said
    run = train_here(config, "unet.lr=1e-5", "train.max_steps=4", resume=last, allow_changes=True)
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4]


def test_names_with_line_breaks_survive_a_resume(project: Project, tmp_path: Path) -> None:
    config = project(train={"max_steps": 2})
    first = min((tmp_path / "mine").iterdir())
    first.rename(first.with_name("two\nlines_(1).png"))
    last = train_here(config) / "checkpoints" / "last.ckpt"
    assert "mine/two\nlines_(1).png" in read_checkpoint(last).facts.images.keys
    train_here(config, resume=last)


def test_what_does_not_change_the_numbers_may_change(project: Project, tmp_path: Path) -> None:
    config = project(train={"max_steps": 2})
    last = train_here(config) / "checkpoints" / "last.ckpt"
    moved = tmp_path / "moved"
    (tmp_path / "mine").rename(moved / "mine") if moved.mkdir() is None else None
    overrides = [
        f"data.sources.0.path={moved / 'mine'}",
        "data.workers=1",
        "checkpoints.keep=9",
        "train.gradient_checkpointing=true",
    ]
    train_here(config, *overrides, resume=last)


def test_switching_samples_and_saves_on_does_not_change_the_training(project: Project, tmp_path: Path) -> None:
    plain = train_here(project(train={"max_steps": 4}))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n# not this\na dog\n", encoding="utf-8")
    busy = train_here(
        project(
            train={"max_steps": 4}, checkpoints={"every_steps": 1, "formats": ["safetensors"], "keep": 1},
            samples={"every_steps": 2, "prompts": str(prompts), "steps": 2}, trackers=["tensorboard"],
        )
    )  # fmt: skip
    assert metrics_of(busy) == metrics_of(plain)
    assert sorted(path.name for path in (busy / "samples").glob("*grid.png")) == [
        f"s{n:06d}-grid.png" for n in (0, 2, 4)
    ]
    assert len(list((busy / "samples").glob("*-p*.png"))) == 6
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = EventAccumulator(str(next((busy / "trackers").rglob("events.out*")).parent)).Reload()
    assert [event.value for event in logged.Scalars("loss")] == pytest.approx([x["loss"] for x in metrics_of(busy)])
    assert [event.step for event in logged.Images("samples")] == [0, 2, 4]


@pytest.mark.parametrize("setting", ["data.workers=2", "train.gradient_checkpointing=true"])
def test_workers_and_checkpointing_do_not_change_the_numbers(project: Project, setting: str) -> None:
    config = project(train={"max_steps": 3, "gradient_checkpointing": False})
    assert metrics_of(train_here(config, setting)) == metrics_of(train_here(config))


def test_a_foreign_checkpoint_and_a_foreign_folder_are_refused(
    project: Project, model_folder: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "model.ckpt"
    files.write_pickle(weights, {"state_dict": {"a": files.torch.zeros(2)}})
    with pytest.raises(ResumeError, match=r"holds no training state.*model\.path"):
        read_checkpoint(weights)
    done = run_cli("train", "--config", project(), "--resume", tmp_path, check=2)
    assert "is not a run folder of EveryDream" in done.stderr and "Traceback" not in done.stderr
    done = run_cli("train", "--resume", tmp_path / "nothing.ckpt", check=2)
    assert "There is no checkpoint at" in done.stderr
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(ResumeError, match=r"cut\.ckpt cannot be read"):
        read_checkpoint(cut)


def test_metrics_are_cut_at_the_checkpoint_and_at_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    cut_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"step": 1, "images": ["a\u2028b"]}\n{"st', encoding="utf-8")
    cut_after(path, 9)
    assert path.read_text(encoding="utf-8") == '{"step": 1, "images": ["a\u2028b"]}\n'


def test_three_bad_steps_stop_the_run_with_a_checkpoint_from_before(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defect 9's guard: the images are named, the step is skipped, nothing is trained on."""
    original = accumulating.training_step
    bad_steps = {2, 4, 5, 6}
    step = [0]

    def poisoned(*step_arguments):  # type: ignore[no-untyped-def]
        step[0] += 1
        result = original(*step_arguments)
        if step[0] not in bad_steps:
            return result
        per_image = result.per_image_B.clone()
        per_image[0] = float("nan")
        return replace(result, loss=result.loss * float("nan"), per_image_B=per_image)

    monkeypatch.setattr(accumulating, "training_step", poisoned)
    with pytest.raises(TrainingError, match=r"Too many steps in a row.*\(loss or.*last\.ckpt is from step 3"):
        train_here(project(train={"epochs": 3}))
    last = find_checkpoint("auto", project().parent / "runs", "trial")
    assert last is not None
    checkpoint = read_checkpoint(last)
    assert checkpoint.progress.step == 3
    assert all(bool(tensor.isfinite().all()) for tensor in checkpoint.tensors.values() if tensor.is_floating_point())
    lines = metrics_of(last.parent.parent)
    assert [("skipped" in line) for line in lines] == [False, True, False, True, True, True]
    assert all(
        len(line["images"]) == 1 and line["images"][0].split("/")[0] in ("mine", "real")
        for line in lines
        if "skipped" in line
    )


def test_a_second_ctrl_c_leaves_at_once(project: Project, tmp_path: Path) -> None:
    """Here before or in the middle of a sampling that would take an hour, which the first one waits for."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a ring\n" * 1000, encoding="utf-8")
    samples = {"every_steps": 1, "prompts": str(prompts), "steps": 900}
    config = project(samples=samples, data={"workers": 1})
    process = start("--config", config)
    wait_for(lambda: any((tmp_path / "runs").glob("*/events.jsonl")), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    assert any("Once more to stop at once" in line for line in process.stderr), "the first waits for what is under way"
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT, said


def test_verify_resume_finds_a_difference(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another seed behind its back for the resumed half; only the run that is killed has a process of its own."""
    from everydream import verify
    from everydream.cli import main

    def run(arguments: list[str]) -> None:
        with contextlib.suppress(SystemExit):
            main([*arguments, "seed=7", "--allow-changes"] if "--resume" in arguments else arguments)

    monkeypatch.setattr(verify, "_run", run)
    with pytest.raises(TrainingError, match="Not the same bits after 6 steps"):
        verify.verify(project(), [], 6)


def test_verify_resume_proves_it(project: Project) -> None:
    done = run_cli("verify-resume", "--config", project(ema={"decay": 0.9}), "--steps", 6)
    assert "Proved: 6 steps straight" in done.stdout
