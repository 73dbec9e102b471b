"""The preservation monitor in whole runs: it resumes to the bit, leaves training alone, and says what it compares."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lines_of, make_images, metrics_of, run_cli, train_here
from integration.test_resume import Killed, die_after

from everydream.config import load_config
from everydream.errors import ConfigError, ResumeError
from everydream.evaluation import measuring
from everydream.formats.files import write_pickle
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.plan import plan_run
from everydream.training.runs import find_checkpoint
from everydream.training.state import read_checkpoint

Project = Callable[..., Path]
LAST = Path("checkpoints") / "last.ckpt"
HELD_OUT = {"images": 2, "every_epochs": 1}


def measurements(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(run) if "preservation/loss" in line]


def measured_again(config: Path, model: Path) -> float:
    """Return the mean loss of a model in a file, by the config's held-out images."""
    settings = load_config(config)
    measured = plan_run(settings).watched["preservation"]
    family = load(ModelSettings(path=str(model)))
    found, _ = measuring.losses(family, measured, settings.data, settings.seed, 4, torch.device("cpu"))
    return sum(loss.all for loss in found.values()) / len(found)


def test_the_base_and_the_trained_model_are_what_is_measured(
    project: Project, model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = project(preservation=HELD_OUT, train={"epochs": 3}, trackers=["tensorboard"])
    run = train_here(config)
    said = capfd.readouterr().err
    ends = [
        line["step"]
        for line, after in zip(metrics_of(run), metrics_of(run)[1:], strict=False)
        if after["epoch"] > line["epoch"]
    ]
    lines = measurements(run)
    assert [line["step"] for line in lines] == [0, *ends, metrics_of(run)[-1]["step"]] and len(ends) == 2
    first, last = lines[0], lines[-1]
    assert first["preservation/loss"] == first["preservation/base"] and first["preservation/change"] == 0
    assert first["preservation/loss"] == pytest.approx(measured_again(config, model_folder), rel=1e-6)
    assert last["preservation/loss"] == pytest.approx(measured_again(config, run / LAST), rel=1e-6)
    assert last["preservation/base"] == first["preservation/loss"] != last["preservation/loss"]
    assert last["preservation/change"] == pytest.approx(last["preservation/loss"] - first["preservation/loss"])
    assert last["preservation/images"] == 2 and last["preservation/margin"] > 0
    assert (
        "2 held-out images (real 2), each at 4 noise levels: before training, after each epoch and at the end" in said
    )
    assert "real (ground truth): 5 images, 2 of them held out, share 0.25: 4 draws an epoch = 25.0 %" in said
    assert f"Preservation at step {last['step']}: {last['preservation/loss']:.4f} on 2 held-out images, base " in said
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = EventAccumulator(str(next((run / "trackers").rglob("events.out*")).parent)).Reload()
    for name in ("loss", "base", "change"):
        values = [(event.step, event.value) for event in logged.Scalars(f"preservation/{name}")]
        assert values == [(line["step"], pytest.approx(line[f"preservation/{name}"])) for line in lines]


@pytest.mark.parametrize(("kill_at", "every_steps"), [(1, 1), (5, 2), (6, None), (8, None)])
def test_killed_and_resumed_is_the_same_to_the_byte(
    project: Project, monkeypatch: pytest.MonkeyPatch, kill_at: int, every_steps: int | None
) -> None:
    """Measurements included: those after the last save are taken back and made again against the same base."""
    from everydream.training import accumulating

    often = {"every_steps": every_steps} if every_steps else {"every_epochs": 1}
    config = project(
        preservation={"images": 2, **often}, checkpoints={"every_steps": 2 if kill_at > 1 else 1},
        ema={"decay": 0.9}, train={"epochs": 2},
    )  # fmt: skip
    straight = train_here(config)
    with monkeypatch.context() as patch:
        die_after(patch, accumulating, "training_step", kill_at)
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and straight not in last.parents
    resumed = train_here(config, resume=last)
    for name in (LAST, Path("metrics.jsonl")):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name
    assert len(measurements(resumed)) >= 3


def test_measuring_a_folder_of_its_own_does_not_change_the_training(project: Project, tmp_path: Path) -> None:
    make_images(tmp_path / "apart", 3, seed=9)
    plain = train_here(project())
    watched = train_here(project(preservation={"images": 3, "path": str(tmp_path / "apart"), "every_steps": 1}))
    assert len(measurements(watched)) == len(metrics_of(watched)) + 1
    assert metrics_of(watched) == metrics_of(plain)
    ours, theirs = (torch.load(run / LAST, weights_only=True) for run in (watched, plain))
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    assert all(torch.equal(tensor, theirs["state_dict"][key]) for key, tensor in ours["state_dict"].items())
    for name, state in ours["optimizer"].items():
        assert all(torch.equal(value, theirs["optimizer"][name][key]) for key, value in state.items() if key != "step")


def test_its_folder_may_move_and_its_images_may_not_change_unsaid(project: Project, tmp_path: Path) -> None:
    apart = make_images(tmp_path / "apart", 3, seed=9)
    watch = {"images": 3, "path": str(apart)}
    config = project(preservation=watch, train={"max_steps": 2})
    straight = train_here(project(preservation=watch, train={"max_steps": 4}, runs_dir=str(tmp_path / "straight")))
    last = train_here(config) / LAST
    moved = apart.rename(tmp_path / "moved")
    run = train_here(config, f"preservation.path={moved}", "train.max_steps=4", resume=last, allow_changes=True)
    assert [line for line in measurements(run) if line["step"] != 2] == measurements(straight)
    next(moved.iterdir()).unlink()
    with pytest.raises(ResumeError, match=r"image gone: preservation\.path/"):
        train_here(config, f"preservation.path={moved}", "train.max_steps=4", resume=last)
    with pytest.raises(ResumeError, match=r"preservation\.path: was .*apart, is None"):
        train_here(config, "preservation.path=null", "preservation.images=2", "train.max_steps=4", resume=last)


def test_the_cadence_may_change_on_a_resume(project: Project) -> None:
    config = project(preservation=HELD_OUT, train={"epochs": 2}, checkpoints={"every_steps": 3})
    stopped = train_here(config, "train.max_steps=3")
    run = train_here(
        config,
        "preservation.every_epochs=null",
        "preservation.every_steps=1",
        "train.max_steps=5",
        resume=stopped / LAST,
        allow_changes=True,
    )
    assert [line["step"] for line in measurements(run)] == [0, 3, 4, 5]
    read = read_checkpoint(run / LAST)
    from everydream.training.state import Facts, changes

    other = json.loads(json.dumps(read.facts.config))
    other["preservation"]["every_steps"] = 7
    assert changes(read.facts, Facts(other, read.facts.images)) == []


def older(last: Path) -> None:
    """Make of a last.ckpt what this version's predecessor wrote: it knew of no preservation."""
    contents = torch.load(last, weights_only=True)
    ours = contents["everydream"]
    del ours["base_identities"], ours["base_losses"], ours["base_coarse"], ours["watch"]
    config = json.loads(ours["config"])
    del config["preservation"]
    ours["config"] = json.dumps(config, sort_keys=True)
    write_pickle(last, contents)


def test_an_older_checkpoint_goes_on(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    config = project(train={"epochs": 2}, lr_schedule={"name": "constant"})
    straight = train_here(config)
    stopped = train_here(project(train={"max_steps": 3, "epochs": 2}, lr_schedule={"name": "constant"}))
    older(stopped / LAST)
    assert read_checkpoint(stopped / LAST).base == {}
    config = project(train={"epochs": 2}, lr_schedule={"name": "constant"})
    resumed = train_here(config, resume=stopped / LAST, allow_changes=True)
    ours, theirs = (torch.load(run / LAST, weights_only=True) for run in (resumed, straight))
    assert ours["everydream"].pop("watch").keys() == theirs["everydream"].pop("watch").keys()
    for name, contents in (("ours.ckpt", ours), ("theirs.ckpt", theirs)):
        write_pickle(resumed / name, contents)
    assert (resumed / "ours.ckpt").read_bytes() == (resumed / "theirs.ckpt").read_bytes()

    older(resumed / LAST)
    longer = project(train={"epochs": 3}, preservation=HELD_OUT)
    with pytest.raises(ResumeError, match=r"preservation\.images: was 0, is 2"):
        train_here(longer, resume=resumed / LAST)
    capfd.readouterr()
    run = train_here(longer, resume=resumed / LAST, allow_changes=True)
    assert (
        "on 2 held-out images; no base to compare with, since this run did not measure them" in capfd.readouterr().err
    )
    assert [set(line) for line in measurements(run)] == [{"step", "preservation/loss", "preservation/images"}]


def test_an_unchanged_older_checkpoint_needs_no_permission(project: Project) -> None:
    config = project(train={"max_steps": 2})
    last = train_here(config) / LAST
    older(last)
    train_here(config, resume=last)


def test_folders_may_come_and_go_between_runs(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The training goes on with the new set; of the base what was measured on the images that are left counts."""
    make_images(tmp_path / "more", 4, seed=3)
    make_images(tmp_path / "real", 5, seed=2)
    sources = [{"path": str(tmp_path / "mine"), "repeats": 2}]
    truth = [{"path": str(tmp_path / name), "share": 0.2, "role": "ground_truth"} for name in ("real", "more")]
    before = project(data={"sources": sources + truth[:1]}, preservation=HELD_OUT, train={"max_steps": 3})
    last = train_here(before) / LAST
    assert len(read_checkpoint(last).base) == 2
    after = project(data={"sources": sources + truth}, preservation=HELD_OUT, train={"max_steps": 6, "epochs": 3})
    with pytest.raises(ResumeError, match=r"image new: more/"):
        train_here(after, resume=last)
    capfd.readouterr()
    run = train_here(after, resume=last, allow_changes=True)
    said = capfd.readouterr().err
    assert "2 held-out images (real 1, more 1)" in said and "Changed since the checkpoint: image new: more/" in said
    assert "(known for 1 of them)" in said
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4, 5, 6]
    plain = project(data={"sources": sources}, train={"max_steps": 8, "epochs": 9})
    run = train_here(plain, resume=run / LAST, allow_changes=True)
    assert [line["step"] for line in metrics_of(run)] == list(range(1, 9))
    assert len(read_checkpoint(run / LAST).base) == 2, "kept, should the folders come back"


def test_a_failure_is_told_and_training_goes_on(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = train_here(project(preservation=HELD_OUT))
    original, calls = measuring.image_loss, [0]

    def short_of_memory(*arguments: Any) -> float:
        calls[0] += 1
        if calls[0] == 3:  # in the second measurement
            raise RuntimeError("out of memory")
        return original(*arguments)

    monkeypatch.setattr(measuring, "image_loss", short_of_memory)
    run = train_here(project(preservation=HELD_OUT))
    assert "Preservation at step" in (said := capfd.readouterr().err)
    assert said.count("failed, training goes on: RuntimeError: out of memory") == 1
    assert "preservation failed" in (run / "events.jsonl").read_text()
    assert metrics_of(run) == metrics_of(plain)
    assert measurements(run) == [line for number, line in enumerate(measurements(plain)) if number != 1]


def test_an_image_that_cannot_be_read_any_more_is_named_and_left_out(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = measuring.losses

    def then_gone(family: Any, measured: Any, *rest: Any) -> Any:
        found = original(family, measured, *rest)
        (tmp_path / measured.index.key(0)).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(measuring, "losses", then_gone)
    lines = measurements(train_here(project(preservation=HELD_OUT, train={"max_steps": 2})))
    assert [line["preservation/images"] for line in lines] == [2, 1]
    assert "cannot be measured" in capfd.readouterr().err
    assert lines[1]["preservation/base"] != lines[0]["preservation/base"], "the base of that image alone"


def test_a_run_stopped_before_its_first_step_measures_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bad steps at the start leave a last.ckpt of step 0, from which the run goes on."""
    from everydream.errors import TrainingError
    from everydream.training import accumulating

    config = project(preservation=HELD_OUT)
    straight = train_here(config)
    with monkeypatch.context() as patch:
        original = accumulating.training_step

        def bad(*arguments: Any) -> Any:
            found = original(*arguments)
            return type(found)(
                found.loss * float("nan"), found.per_image_B * float("nan"), found.t_B, found.weight_B, found.keys
            )

        patch.setattr(accumulating, "training_step", bad)
        with pytest.raises(TrainingError):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and read_checkpoint(last).progress.step == 0
    resumed = train_here(config, resume=last)
    for name in (LAST, Path("metrics.jsonl")):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name


def test_the_average_is_measured_where_it_is_what_is_exported(project: Project) -> None:
    config = project(
        preservation=HELD_OUT, ema={"decay": 0.99}, checkpoints={"formats": ["safetensors"], "dtype": "fp32"}
    )
    run = train_here(config)
    (export,) = [path for path in (run / "checkpoints").glob("*.safetensors") if "e0002" in path.name]
    found = measurements(run)[-1]["preservation/loss"]
    assert found == pytest.approx(measured_again(config, export), rel=1e-6)
    assert found != pytest.approx(measured_again(config, run / LAST), rel=1e-4)


def test_inspect_says_what_is_held_out(project: Project, tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    said = run_cli("inspect", "--config", project(preservation={"images": 2, "every_steps": 50}), "--json", out).stdout
    assert "real (ground truth): 5 images, 2 of them held out, share 0.25: 4 draws" in said
    assert "each at 4 noise levels: before training, every 50 steps and at the end" in said
    images = json.loads(out.read_text(encoding="utf-8"))["images"]
    held_out = [image for image in images if image.get("held_out")]
    assert len(images) == 11 and [image["draws"] for image in held_out] == [0, 0]
    assert sum(image["draws"] for image in images) == 16
    assert "0 times" not in said
    make_images(tmp_path / "apart", 3)
    (tmp_path / "apart" / "broken_1.png").write_bytes(b"no")
    both = [{"path": str(tmp_path / "mine")}, {"path": str(tmp_path / "mine"), "share": 0.5, "role": "ground_truth"}]
    config = project(preservation={"images": 9, "path": str(tmp_path / "apart")}, data={"sources": both})
    said = run_cli("inspect", "--config", config).stdout
    assert f"Measured  preservation: 3 images of {tmp_path / 'apart'}" in said and "not measured: broken_1.png" in said
    assert "mine and mine (2) (ground truth) have 6 files in common, which are drawn for both" in said


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"preservation": {"images": 2}, "data": {"sources": [{"path": "mine"}]}}, r"no source has role: ground_truth"),
        ({"preservation": {"path": "mine"}}, r"preservation\.images: 0, so nothing of preservation\.path"),
        ({"preservation": {"images": 2, "path": "nowhere"}}, r"preservation\.path: there is nothing at"),
        ({"preservation": {"images": 3}}, r"preservation\.images: 3 images cannot be held out.*here 2 in all"),
        ({"preservation": {"images": -1}}, r"preservation\.images: "),
        ({"preservation": {"image": 1}}, r"preservation\.image: unknown key; did you mean images\?"),
    ],
)
def test_mistakes(project: Project, sections: dict[str, Any], said: str) -> None:
    config = project(**sections)
    with pytest.raises(ConfigError, match=said):
        train_here(config)
    assert not list((config.parent / "runs").glob("*"))
    if "cannot be held out" in said:
        done = run_cli("inspect", "--config", config, check=2)
        assert "2 of them held out" in done.stdout and "cannot be held out" in done.stderr


def test_two_processes_measure_as_one(project: Project, tmp_path: Path) -> None:
    """One measures while the other waits; batches that leave the other with less to do included."""
    from integration.test_processes import TORCHRUN, launch_two

    config = project(
        preservation={"images": 2, "every_steps": 2}, validation={"images": 2, "every_steps": 2},
        control={"every_steps": 2, "captions": 1}, samples={"steps": 1, "guidance": [1.0]}, ema={"decay": 0.9},
        checkpoints={"keep_best": True, "formats": ["safetensors"]}, stop={"when": "overfit", "patience": 50},
        train={"epochs": 2, "batch_size": 3}, data={"workers": 1},
    )  # fmt: skip
    one = train_here(config)
    one.parent.rename(tmp_path / "one")
    said = launch_two(TORCHRUN, "--config", config)
    (two,) = (tmp_path / "runs").iterdir()
    ours, theirs = measurements(tmp_path / "one" / one.name), measurements(two)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] and len(ours) > 3
    for a, b in zip(ours, theirs, strict=True):
        assert a["preservation/loss"] == pytest.approx(b["preservation/loss"], rel=1e-3)
    assert said.count("Preservation at step 0: ") == 1
    both = [{line["step"]: line for line in lines_of(run) if "validation/loss" in line or "control/bleed" in line}
            for run in (tmp_path / "one" / one.name, two)]  # fmt: skip
    assert both[0].keys() == both[1].keys() and len(both[0]) > 3
    for step, line in both[0].items():
        assert line == pytest.approx(both[1][step], rel=1e-2, abs=1e-3)
    seen = [metrics_of(run)[-1]["seen/mine"] for run in (tmp_path / "one" / one.name, two)]
    assert seen[0] == seen[1] > 0
