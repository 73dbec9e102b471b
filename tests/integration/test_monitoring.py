"""The monitors in whole runs: what they see, that they resume to the bit, and what follows from them."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from conftest import lines_of, make_images, metrics_of, train_here
from integration.test_resume import Killed, die_after
from PIL import Image

from everydream import plan
from everydream.config import load_config
from everydream.control import PromptSets, prompt_sets
from everydream.errors import ConfigError
from everydream.evaluation.judging import LEARNED, Judge, best_of, points_of
from everydream.plan import plan_run
from everydream.training.export import exports_in
from everydream.training.runs import find_checkpoint

Project = Callable[..., Path]
LAST = Path("checkpoints") / "last.ckpt"
EVERY = {
    "validation": {"images": 2, "every_steps": 2},
    "preservation": {"images": 2, "every_steps": 3},
    "control": {"every_steps": 4, "concept": ["a thing"], "captions": 1},
    "samples": {"every_steps": None, "steps": 2, "guidance": [1.5]},
    "ema": {"decay": 0.9},
}


TOGETHER = {name: {**EVERY[name], "every_steps": 2} for name in ("validation", "preservation", "control")} | {
    name: EVERY[name] for name in ("samples", "ema")
}


def of(run: Path, name: str) -> dict[int, dict[str, Any]]:
    """Return the lines that hold a number of this name, by step."""
    return {line["step"]: line for line in lines_of(run) if name in line}


def validation(run: Path) -> dict[int, dict[str, Any]]:
    return of(run, "validation/loss")


def test_killed_and_resumed_with_everything_on_is_the_same_to_the_byte(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everydream.training import accumulating

    config = project(
        **TOGETHER, checkpoints={"every_steps": 3, "keep_best": True, "keep": 1, "formats": ["safetensors"]},
        stop={"when": "overfit", "patience": 9},
    )  # fmt: skip
    straight = train_here(config)
    with monkeypatch.context() as patch:
        die_after(patch, accumulating, "training_step", 6)
        with pytest.raises(Killed):
            train_here(config)
    last = find_checkpoint("auto", straight.parent, "trial")
    assert last is not None and straight not in last.parents
    resumed = train_here(config, resume=last)
    names = [LAST, Path("metrics.jsonl"), Path("ledger.json")]
    names += sorted(path.relative_to(straight) for path in straight.glob("c*/s*.png"))
    names += sorted(path.relative_to(straight) for path in straight.glob("checkpoints/*.safetensors"))
    for name in names:
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name
    assert sum(name.suffix == ".png" for name in names) >= 3 * 5
    assert sum(name.suffix == ".safetensors" for name in names) in (1, 2), "the newest and the best"


def test_what_is_measured_and_written(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    control = {**EVERY["control"], "every_steps": 8}
    run = train_here(project(**{**EVERY, "control": control}, train={"epochs": 6}), reviewed=True)
    said = capfd.readouterr().err
    steps, total = metrics_of(run), metrics_of(run)[-1]["step"]
    found = validation(run)
    assert list(found) == [0, *range(2, total, 2), total]
    last = found[total]
    assert last["validation/images"] == last["train/images"] == 2
    assert last["overfit/gap"] == pytest.approx(last["validation/coarse_change"] - last["train/coarse_change"])
    assert last["validation_trained/loss"] != last["validation/loss"], "the average is what is shown"
    assert last["validation_trained/base"] == last["validation/base"] == found[0]["validation/loss"]
    assert list(of(run, "control/bleed")) == [0, *range(8, total, 8), total]
    assert of(run, "control/bleed")[0]["control/bleed"] == pytest.approx(0, abs=1e-5)
    assert {"copying/cosine", "copying/ssim", "copying/hash", "control/moved"} <= set(of(run, "control/bleed")[total])
    assert of(run, "moved/unet")[total]["moved/unet"] > of(run, "moved/unet")[total]["moved/text_encoder"] > 0
    assert all(line["clipped"] == (line["grad_norm"] > 1.0) for line in steps)
    assert all(line["loss_weight"] == 1.0 for line in steps)
    for line in steps:
        bands = [value for name, value in line.items() if name.startswith("loss/noise_")]
        assert bands and min(bands) <= line["loss"] <= max(bands) * (1 + 1e-9)
    assert steps[-1]["seen/mine"] + steps[-1]["seen/real"] == steps[-1]["images_seen"]
    ledger = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    assert ledger["step"] == total and {entry["key"].split("/")[0] for entry in ledger["high"]} == {"mine", "real"}
    assert "Over-fit gap at step" in said and "Control pictures at step" in said
    grids = sorted(path.name for path in (run / "control").glob("*-grid.png"))
    assert len(grids) == len(of(run, "control/bleed"))
    before, after = (width_of(run / "control" / name) for name in (grids[0], grids[-1]))
    assert after > before, "the base's pictures stand beside"
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    assert f"Verdict: {verdict['headline']}" in said and f"Page:            {run / 'verdict.html'}" in said
    assert (run / "charts.png").stat().st_size > 10_000 and (run / "charts.svg").stat().st_size > 10_000


def test_nothing_that_watches_changes_the_training(project: Project, tmp_path: Path) -> None:
    make_images(tmp_path / "apart", 3, seed=9)
    plain = train_here(project())
    watch = {"images": 3, "path": str(tmp_path / "apart"), "every_steps": 1}
    watched = train_here(project(**{**EVERY, "ema": {}, "validation": watch, "preservation": watch}))
    assert metrics_of(watched) == metrics_of(plain)
    ours, theirs = (torch.load(run / LAST, weights_only=True)["state_dict"] for run in (watched, plain))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_without_learning_the_interval_holds_zero(project: Project) -> None:
    run = train_here(project(validation={"images": 2, "every_steps": 2}, unet={"lr": 0.0}, text_encoder={"lr": 0.0}))
    for line in validation(run).values():
        assert line["validation/change"] == line["validation/coarse_change"] == 0 and line["validation/margin"] == 0
        assert line["overfit/gap"] == 0


def twin(path: Path, to: Path) -> None:
    """Write the picture again, smaller and lossy."""
    with Image.open(path) as image:
        image.convert("RGB").resize((image.width * 3 // 4, image.height * 3 // 4)).save(to, quality=85)


def test_no_twin_of_a_held_out_image_trains(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = project(validation={"images": 3}, preservation={"images": 2})
    mine = sorted((tmp_path / "mine").iterdir())
    twin(mine[0], tmp_path / "mine" / "again_1.jpg")
    twin(mine[1], tmp_path / "mine" / "again_2.jpg")
    twin(mine[2], tmp_path / "real" / "again_3.jpg")
    pairs = [{f"mine/{mine[n].name}", f"mine/again_{n + 1}.jpg"} for n in (0, 1)]
    across = {f"mine/{mine[2].name}", "real/again_3.jpg"}
    leaks, together = 0, 0
    for seed in range(12):
        held_out = held_out_of(config, seed)
        assert len([key for key in held_out if key.startswith("mine/")]) in (2, 3) and not held_out & across
        assert all(len(pair & held_out) in (0, 2) for pair in pairs)
        together += any(pair <= held_out for pair in pairs)
        without = held_out_of(config, seed, "data.twins=ignore")
        leaks += any(len(pair & without) == 1 for pair in pairs) or bool(without & across)
    assert leaks and together, "or this would show nothing"
    monkeypatch.setattr(plan, "_MOST_LOOKED_AT", 10)
    kin = [plan_run(load_config(config, [f"data.twins={how}"])).kin for how in ("auto", "together", "ignore")]
    assert [len(found) for found in kin] == [0, 3, 0], "auto looks in small sets alone"


def held_out_of(config: Path, seed: int, *overrides: str) -> set[str]:
    planned = plan_run(load_config(config, [f"seed={seed}", *overrides]))
    return {planned.index.key(record) for record in planned.held_out().nonzero()[0].tolist()}


def test_the_best_is_kept_beside_the_newest(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {1: -0.1, 2: -0.3, 3: -0.1, 4: -0.05, 5: -0.2}
    note = Judge.note

    def as_planned(judge: Judge, step: int, numbers: Mapping[str, float]) -> None:
        note(judge, step, {**numbers, LEARNED: costs[step]} if step and LEARNED in numbers else numbers)

    monkeypatch.setattr(Judge, "note", as_planned)
    config = project(
        validation={"images": 2, "timesteps": 1, "every_steps": 1}, train={"max_steps": 5},
        checkpoints={"every_steps": 1, "keep_best": True, "keep": 1, "formats": ["safetensors"]},
    )  # fmt: skip
    assert sorted(exports_in(train_here(config) / "checkpoints", "trial")) == [2, 5]


def test_a_run_that_gets_no_better_ends_and_can_be_told_to_go_on(
    project: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    config = project(
        validation={"images": 2, "every_steps": 1}, unet={"lr": 0.0}, text_encoder={"lr": 0.0},
        stop={"when": "overfit", "patience": 2}, train={"epochs": 2, "max_steps": 5},
    )  # fmt: skip
    run = train_here(config)
    assert metrics_of(run)[-1]["step"] == 3, "the first is the best of equals, then two more"
    assert "Stopping at step 3" in capfd.readouterr().err
    assert '"reason": "overfit"' in (run / "events.jsonl").read_text(encoding="utf-8")
    history = torch.load(run / LAST, weights_only=True)["everydream"]["watch"]["judge"]
    best = best_of(points_of({int(step): numbers for step, numbers in history.items()}))
    assert best is not None and best.step == 1
    planned = plan_run(load_config(config))
    train_here(config, "stop.when=null", "stop.patience=5", resume=run / LAST)
    assert metrics_of(run)[-1]["step"] == planned.total_steps > 3


def test_what_control_pictures_show_and_are_compared_with(
    project: Project, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same pictures by latents, by one training image, by a CLIP; other ones have no base to compare with."""
    tiny.save_clip(tmp_path / "clip")
    control = {"every_steps": 1, "concept": ["a thing"], "control": ["", "a dog"], "captions": 1}
    config = project(control=control, samples=EVERY["samples"], train={"max_steps": 2})
    plain, one, by_clip = (
        train_here(config, "train.max_steps=1", *more)
        for more in ([], ["control.compared=1"], [f"control.features={tmp_path / 'clip'}"])
    )
    numbers = [of(run, "copying/cosine") for run in (plain, one, by_clip)]
    assert all(list(found) == [0, 1] for found in numbers)
    assert len({found[0]["copying/cosine"] for found in numbers}) == 3
    assert numbers[1][0]["copying/cosine"] == 0, "one image alone differs in nothing from their mean"
    assert len({(run / "control" / "s000001-c03.png").read_bytes() for run in (plain, one, by_clip)}) == 1
    assert numbers[0][1]["control/moved"] != numbers[2][1]["control/moved"] > 0
    capfd.readouterr()
    other = train_here(config, "control.control=['', a cat]", resume=plain / LAST, allow_changes=True)
    assert "Control pictures at step 2: nothing to compare with" in capfd.readouterr().err
    assert list(of(other, "control/bleed")) == [0, 1] and list(of(other, "copying/cosine")) == [0, 1, 2]
    before, beside, alone = (width_of(other / "control" / f"s{step:06d}-grid.png") for step in (0, 1, 2))
    assert beside > before == alone, "no base that was drawn otherwise stands beside"


def width_of(path: Path) -> int:
    with Image.open(path) as image:
        return image.width


def test_which_prompts_are_control_pictures(project: Project) -> None:
    captions = {"training": [f"thing {number}" for number in range(9)], "ground_truth": ["a tree", "a house"]}
    sources: list[dict[str, Any]] = yaml.safe_load(project().read_text(encoding="utf-8"))["data"]["sources"]
    sources[0] |= {"token": "sks", "class_word": "dog", "captions": "joepenna"}

    def sets(**control: Any) -> PromptSets:
        settings = {"every_steps": 9, **control}
        return prompt_sets(load_config(project(data={"sources": sources}, control=settings)), captions)

    usual = sets()
    assert usual.concept == ["sks dog"] and usual.control == ["", "dog", "a house", "a tree"]
    assert len(usual.captions) == 4 and set(usual.captions) <= set(captions["training"])
    assert usual.all == [*usual.concept, *usual.control, *usual.captions]
    assert sets(concept=[]).concept == [] and sets(concept=["one"]).concept == ["one"]
    assert sets(control=["two"]).control == ["two"]
    assert [len(sets(captions=num).captions) for num in (0, 2)] == [0, 2]


def test_validations_timesteps_and_epochs_change_what_is_measured(project: Project) -> None:
    config = project(validation={"images": 2, "every_epochs": 1}, train={"epochs": 2})
    rough, fine = (
        train_here(config, f"validation.timesteps={number}", f"train.max_steps={steps}")
        for number, steps in ((1, 5), (6, 1))
    )
    assert validation(rough)[0]["validation/loss"] != validation(fine)[0]["validation/loss"]
    first, *_ = (line["step"] for line in metrics_of(rough) if line["epoch"] == 1)
    assert list(validation(rough)) == [0, first - 1, 5], "after an epoch, and at the end"


def test_an_alarm_is_told_once(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    run = train_here(
        project(unet={"lr": 1e-5}, text_encoder={"lr": 3e-2}, train={"epochs": 3}, trackers=["tensorboard"])
    )
    events = [json.loads(line) for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    alarms = [event for event in events if event["event"] == "alarm"]
    assert [event["alarm"] for event in alarms].count("text encoder too fast") == 1
    assert capfd.readouterr().err.count("Alarm at step") == len(alarms)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = EventAccumulator(str(next((run / "trackers").rglob("events.out*")).parent)).Reload()
    assert len(logged.Scalars("alarm/text_encoder_too_fast")) == 1


def test_by_default_measuring_takes_a_twentieth(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    """16 draws an epoch are 64 passes; measuring 2 images and 2 twins counts 36: more than a twentieth of 11 epochs."""
    config = project(validation={"images": 2}, train={"epochs": 13, "batch_size": 16})
    run = train_here(config)
    said = capfd.readouterr().err
    assert "validation: 2 held-out images (mine 2) and 2 that are trained on" in said
    lines = validation(run)
    ends = [line["step"] for line, after in zip(metrics_of(run), metrics_of(run)[1:], strict=False)
            if after["epoch"] > line["epoch"]]  # fmt: skip
    draws = plan_run(load_config(config)).mix.mean_counts().sum()
    every = math.ceil(36 / (0.2 * draws))
    assert f"before training, every {every} epochs and at the end" in said
    assert list(lines) == [0, *ends[every - 1 :: every], metrics_of(run)[-1]["step"]]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"validation": {"images": 4}}, r"validation\.images: 4 images cannot be held out.* here 3 in all"),
        ({"validation": {"path": "mine"}}, r"validation\.images: 0, so nothing of validation\.path"),
        ({"validation": {"timesteps": 8}}, r"validation\.timesteps: has no effect, since validation\.images is 0"),
        ({"validation": {"images": 2, "every_steps": 5, "every_epochs": 1}}, r"validation: give one of every_steps"),
        ({"validation": {"images": 2, "path": "nowhere"}}, r"validation\.path: there is nothing at"),
        ({"stop": {"when": "overfit"}}, r"stop\.when: goes by images of the subject.*validation\.images is 0"),
        ({"stop": {"patience": 3}}, r"stop\.patience: has no effect, since stop\.when is null"),
        ({"checkpoints": {"keep_best": True}}, r"checkpoints\.keep_best: goes by images"),
        (
            {"checkpoints": {"keep_best": True, "formats": []}, "validation": {"images": 2}},
            r"checkpoints\.keep_best: has no effect, since checkpoints\.formats is empty",
        ),
        (
            {"validation": {"images": 2}, "preservation": {"images": 2, "every_steps": 9}, "stop": {"when": "overfit"}},
            r"preservation: has another cadence than valid.*the same cadence, e\.g\. preservation\.every_steps=100",
        ),
        ({"control": {"captions": 2}}, r"control\.captions: has no effect, since control\.every_steps is null"),
        ({"control": {"every_steps": 5, "features": "nowhere"}}, r"control\.features: there is nothing at"),
        ({"control": {"every_steps": 5, "control": [], "captions": 0}}, r"control: there is nothing to draw"),
    ],
)
def test_mistakes(project: Project, sections: dict[str, Any], said: str) -> None:
    config = project(**sections)
    with pytest.raises(ConfigError, match=said):
        train_here(config)
    assert not list((config.parent / "runs").glob("*"))
