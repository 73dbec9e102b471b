"""Class images that are missing are made by the chosen model, kept, found again, and never among the user's own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from conftest import make_images, metrics_of, run_cli, train_here
from parity.test_step_against_diffusers import make_batch
from PIL import Image

from everydream import class_images
from everydream.config import load_config, resolve_saved
from everydream.errors import ConfigError, ResumeError, TrainingError
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.plan import plan_run
from everydream.sampling.sampler import sample_images
from everydream.step import LossSettings, training_step
from everydream.train import train
from everydream.training.state import peek_config

PROMPT = "a photo of a thing"


@pytest.fixture
def subject(project: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a project of six photos of a subject and a class source."""

    def write(source: dict[str, Any], **sections: Any) -> Path:
        make_images(tmp_path / "mine", 6, seed=1)
        sources = [{"path": str(tmp_path / "mine"), "label": "a photo of rex thing"}, {"role": "class", **source}]
        data = {"sources": sources, "resolution": 64, "bucket_step": 16, "workers": 0}
        return project(
            method="dreambooth", data=data, train={"epochs": 1}, class_images={"steps": 2, "batch_size": 3}, **sections
        )

    return write


def made_in(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs" / "class_images").iterdir()
    return folder


def test_made_by_the_chosen_model_kept_and_found_again(
    subject: Callable[..., Path], tmp_path: Path, model_folder: Path
) -> None:
    """Defect 19: elsewhere they come from another model than the chosen one, and too few or too many go wrong."""
    config = subject({"generate": 5, "label": PROMPT})
    told = run_cli("inspect", "--config", config).stdout
    assert f"5 of 5 class images of '{PROMPT}' are to be made, in {tmp_path}" in told
    assert not (tmp_path / "runs").exists()

    run = train_here(config)
    folder = made_in(tmp_path)
    names = [f"{number:05d}.png" for number in range(5)]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "class_images.json"]
    family = load(load_config(config).model)
    size = {"width": 64, "height": 64, "steps": 2, "guidance": 7.0}
    expected = [
        *sample_images(family, [PROMPT] * 3, [0, 1, 2], **size),
        *sample_images(family, [PROMPT] * 2, [3, 4], **size),
    ]
    for name, picture in zip(names, expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / name)), picture)

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    planned = plan_run(class_images.with_class_images(load_config(config))[0])
    drawn = planned.mix.counts(0)
    assert drawn[planned.index.source_N == 0].sum() == drawn[planned.index.source_N == 1].sum() == 6
    (folder / "00003.png").unlink()
    again = train_here(config)
    assert {path for path in folder.iterdir() if path.stat().st_mtime_ns == before[path]} >= {
        folder / names[0], folder / names[1], folder / names[2]
    }  # fmt: skip
    for name in ("metrics.jsonl", "checkpoints/last.ckpt"):
        assert (again / name).read_bytes() == (run / name).read_bytes()


def test_another_model_has_a_folder_of_its_own(subject: Callable[..., Path], tmp_path: Path) -> None:
    config = load_config(subject({"generate": 2, "label": PROMPT}))
    # As an export of `unet.only: [attention]` or a merged adapter differs: in some weights in the middle of a file.
    pipeline = tiny.make_pipeline()
    pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.data[3, 5] += 1e-3
    pipeline.save_pretrained(tmp_path / "other")
    plain = tmp_path / "plain"
    tiny.make_pipeline().save_pretrained(plain)
    (plain / ".DS_Store").write_bytes(b"x")
    assert class_images.fingerprint(plain) != class_images.fingerprint(tmp_path / "other")
    (plain / ".DS_Store").unlink()
    before = class_images.fingerprint(plain)
    (plain / ".DS_Store").write_bytes(b"x")
    assert class_images.fingerprint(plain) == before
    other = config.model_copy(update={"model": config.model.model_copy(update={"path": str(tmp_path / "other")})})
    colder = config.model_copy(update={"class_images": config.class_images.model_copy(update={"guidance": 1.0})})
    folders = [class_images.with_class_images(chosen)[1][0].path for chosen in (config, other, colder, config)]
    assert folders[0] == folders[3] and len(set(folders)) == 3


@pytest.mark.parametrize(
    "setting",
    ["negative_prompt=blur", "sampler=euler", "steps=3", "guidance=1.5", "seed=9", "folder=elsewhere"],
)
def test_each_way_of_making_has_a_folder_of_its_own(subject: Callable[..., Path], setting: str) -> None:
    config = subject({"generate": 2, "label": PROMPT})
    (plain,), (changed,) = (
        class_images.with_class_images(load_config(config, overrides))[1]
        for overrides in ([], [f"class_images.{setting}"])
    )
    assert plain.path != changed.path
    if setting == "folder=elsewhere":
        assert changed.path.parent == Path("elsewhere") and changed.recipe == plain.recipe
    else:
        name, _, value = setting.partition("=")
        assert str(changed.recipe[name]) == value and str(plain.recipe[name]) != value


def test_what_the_users_own_folder_lacks_is_made_elsewhere(subject: Callable[..., Path], tmp_path: Path) -> None:
    own = make_images(tmp_path / "dogs", 3, seed=5)
    (own / "broken.png").write_bytes(b"\x89PNG broken")
    before = sorted(path.name for path in own.iterdir())
    config = subject({"path": str(own), "generate": 7, "label": PROMPT})
    run = train_here(config)
    assert sorted(path.name for path in own.iterdir()) == before
    assert len(list(made_in(tmp_path).glob("*.png"))) == 4, "the broken one is none of the three"
    planned = plan_run(class_images.with_class_images(load_config(config))[0])
    assert list(planned.index.names) == ["mine", "dogs", "dogs (made)"]
    assert set(planned.index.captions) == {"a photo of rex thing", PROMPT}
    counts = planned.mix.counts(0) + planned.mix.counts(1) + planned.mix.counts(2) + planned.mix.counts(3)
    assert counts[planned.index.source_N == 0].tolist() == [4] * 6
    assert sorted(counts[planned.index.source_N > 0].tolist()) == [3, 3, 3, 3, 4, 4, 4], "24 draws over 7 in turn"
    # The checkpoint names the folders themselves, so that going on needs neither making nor the model.
    resumed = train_here(config, "train.epochs=2", resume=run / "checkpoints" / "last.ckpt", allow_changes=True)
    assert resumed == run


def test_enough_of_the_users_own_need_no_model(subject: Callable[..., Path], tmp_path: Path) -> None:
    own = make_images(tmp_path / "dogs", 3, seed=5)
    config = load_config(
        subject({"path": str(own), "generate": 2, "label": PROMPT}, model={"path": str(tmp_path / "no")})
    )
    found, folders = class_images.with_class_images(config)
    assert found == config and not folders


def test_blank_pictures_are_not_kept(
    subject: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = class_images.sample_images

    def sometimes_black(family: Any, prompts: Any, seeds: list[int], **options: Any) -> Any:
        pictures = original(family, prompts, seeds, **options)
        return [picture * 0 if seed in (1, 4) else picture for seed, picture in zip(seeds, pictures, strict=True)]

    monkeypatch.setattr(class_images, "sample_images", sometimes_black)
    train_here(subject({"generate": 4, "label": PROMPT}))
    folder = made_in(tmp_path)
    assert sorted(path.name for path in folder.glob("*.png")) == ["00000.png", "00002.png", "00003.png", "00005.png"]
    assert json.loads((folder / class_images.MARKER).read_text(encoding="utf-8"))["blank"] == [1, 4]

    monkeypatch.setattr(
        class_images,
        "sample_images",
        lambda family, prompts, seeds, **_: [np.zeros((64, 64, 3), np.uint8)] * len(seeds),
    )
    with pytest.raises(TrainingError, match="drew .* blank pictures for 'a photo of nothing'"):
        train_here(subject({"generate": 4, "label": "a photo of nothing"}))


def test_a_folder_that_was_made_otherwise_is_not_mixed(subject: Callable[..., Path], tmp_path: Path) -> None:
    named = {"path": str(tmp_path / "made"), "generate": 2, "label": PROMPT}
    run = train_here(subject(named))
    assert len(list((tmp_path / "made").glob("*.png"))) == 2, "made in the folder that was named"
    index = plan_run(class_images.with_class_images(load_config(subject(named)))[0]).index
    assert index.captions.count(PROMPT) == 2
    with pytest.raises(ConfigError, match=r"made otherwise .*\(prompt: 'a photo of a thing', now 'a dog'"):
        class_images.with_class_images(load_config(subject({**named, "label": "a dog"})))
    (tmp_path / "made" / class_images.MARKER).write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="class_images.json is damaged"):
        train_here(subject(named), resume=run / "checkpoints" / "last.ckpt")


def test_another_run_that_wants_more_does_not_disturb_this_one(subject: Callable[..., Path], tmp_path: Path) -> None:
    few, more = ({"generate": count, "label": PROMPT} for count in (2, 4))
    straight = train_here(subject(few))
    train_here(subject(more))
    assert len(list(made_in(tmp_path).glob("*.png"))) == 4
    again = train_here(subject(few))
    for name in ("metrics.jsonl", "checkpoints/last.ckpt"):
        assert (again / name).read_bytes() == (straight / name).read_bytes()
    with pytest.raises(ResumeError, match="data.sources.1.generate: was 2, is 9"):
        train_here(subject({**few, "generate": 9}), resume=straight / "checkpoints" / "last.ckpt")
    assert len(list(made_in(tmp_path).glob("*.png"))) == 4, "refused before anything was made"


def test_going_on_where_the_base_model_is_not(subject: Callable[..., Path], tmp_path: Path) -> None:
    """With all class images there, or the model to make them anew; the folder alone may be gone."""
    tiny.save_pipeline(tmp_path / "base")
    config = subject({"generate": 2, "label": PROMPT}, model={"path": str(tmp_path / "base")})
    run = train_here(config)
    last = run / "checkpoints" / "last.ckpt"
    shutil.rmtree(made_in(tmp_path))
    saved = resolve_saved(peek_config(last), last, ["train.epochs=2"])
    train(saved, last, allow_changes=True)
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    train(resolve_saved(peek_config(last), last, ["train.epochs=3"]), last, allow_changes=True)
    assert max(line["step"] for line in metrics_of(run)) == 3 * len([x for x in metrics_of(run) if x["epoch"] == 0])


def test_what_does_not_fit_the_model_is_told_before_anything_is_made(
    subject: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="train_last_layers is 5, but only 2 layers"):
        train_here(subject({"generate": 2, "label": PROMPT}, text_encoder={"train_last_layers": 5}))
    assert not (tmp_path / "runs").exists()


def test_dreambooth_without_class_images(project: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="no source has role: class"):
        load_config(project(method="dreambooth"))


def test_every_class_image_weighs_the_prior_weight(subject: Callable[..., Path], tmp_path: Path) -> None:
    """Defect 4: elsewhere the weight has no effect; here it is each image's, and the plan shows it."""
    own = make_images(tmp_path / "dogs", 3, seed=5)
    config = subject({"path": str(own), "label": PROMPT})
    weighed = load_config(config, ["class_images.prior_weight=0.25"])
    index = plan_run(weighed).index
    assert index.loss_scale_N.tolist() == [1.0] * 6 + [0.25] * 3
    told = run_cli("inspect", "--config", config, "class_images.prior_weight=0.25").stdout
    assert "loss_scale 0.25" in told
    said = load_config(config, ["class_images.prior_weight=0.25", "data.sources.1.loss_scale=0.5"])
    assert plan_run(said).index.loss_scale_N.tolist() == [1.0] * 6 + [0.5] * 3


def test_prior_preservation_goes_with_loss_weights(model_folder: Path) -> None:
    """Defect 10: elsewhere weights of one length meet a loss of another. Here each image brings its own of both."""
    family = load(ModelSettings(path=str(model_folder)))
    settings, scales = LossSettings(min_snr_gamma=0.1), [1.0, 1.0, 0.3, 0.3]
    whole = training_step(make_batch([0, 1, 2, 3], scales), family, settings, 4)
    parts = [training_step(make_batch([n], [scales[n]]), family, settings, 4) for n in range(4)]
    torch.testing.assert_close(whole.loss, torch.stack([part.loss for part in parts]).sum())
    plain = training_step(make_batch([0, 1, 2, 3], scales), family, LossSettings(), 4)
    assert not torch.isclose(whole.loss, plain.loss)
