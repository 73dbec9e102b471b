"""`everydream import`: JoePenna's and EveryDream2trainer's settings, what is told of the rest, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from everydream.config import RunConfig, load_config
from everydream.tools.importing.cli import import_settings

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(import_settings)

JOEPENNA: dict[str, Any] = {
    "class_word": "person",
    "config_date_time": "2023-04-08T16-54-00",
    "debug": False,
    "flip_percent": 0.25,
    "gpu": 0,
    "learning_rate": 2e-06,
    "max_training_steps": 350,
    "model_path": "model",
    "model_repo_id": "",
    "project_config_filename": "my-config.json",
    "project_name": "effy project",
    "regularization_images_folder_path": "people",
    "save_every_x_steps": 50,
    "schema": 1,
    "seed": 7,
    "token": "effy",
    "token_only": False,
    "training_images": ["001@a photo of S.png"],
    "training_images_count": 1,
    "training_images_folder_path": "effy",
}
OPTIMIZER: dict[str, Any] = {
    "doc": {"base": "what it is"},
    "base": {
        "optimizer": "adamw", "lr": 3e-6, "lr_scheduler": "cosine", "lr_decay_steps": None, "lr_warmup_steps": 20,
        "betas": [0.9, 0.99], "epsilon": 1e-7, "weight_decay": 0.02,
    },
    "text_encoder_overrides": {"optimizer": None, "lr": 5e-7, "lr_scheduler": "cosine", "betas": None},
    "text_encoder_freezing": {"unfreeze_last_n_layers": 6},
    "apply_grad_scaler_step_tweaks": True,
}  # fmt: skip
EVERYDREAM2: dict[str, Any] = {
    "batch_size": 4, "ckpt_every_n_minutes": None, "clip_grad_norm": None, "clip_skip": 2, "cond_dropout": 0.1,
    "data_root": "effy", "disable_amp": False, "disable_textenc_training": False, "flip_p": 0.5, "gpuid": 0,
    "gradient_checkpointing": True, "grad_accum": 2, "loss_type": "mse", "max_epochs": 30,
    "optimizer_config": "optimizer.json", "project_name": "ted", "resolution": 768, "resume_ckpt": "model",
    "sample_prompts": "sample_prompts.txt", "sample_steps": 100, "save_ckpts_from_n_epochs": 5,
    "save_every_n_epochs": 10, "save_full_precision": True, "seed": 99, "shuffle_tags": True, "keep_tags": 2,
    "timestep_end": 1000, "pyramid_noise_discount": 0.03, "validation_config": None, "wandb": False, "lr": None,
    "zero_frequency_noise_ratio": 0.05, "min_snr_gamma": 5.0, "ema_decay_rate": 0.99, "ema_update_interval": 10,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds the paths of the examples."""
    for name in ("effy", "people", "model"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)


def run(*arguments: object, check: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=check != 0)
    assert result.exit_code == check, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def imported(*arguments: object) -> tuple[RunConfig, str]:
    """Import to a file, and return it as a run would read it, and the report."""
    report = run(*arguments, "--out", "project.yaml", "--overwrite").stderr
    return load_config(Path("project.yaml"), to_train=True), report


def saved(raw: object, name: str = "settings.txt") -> Path:
    """Write JSON under a name that says nothing."""
    Path(name).write_text(json.dumps(raw), encoding="utf-8")
    return Path(name)


def section(report: str, heading: str) -> str:
    """Return the report's lines below a heading."""
    after = report.partition(heading)[2].splitlines()
    return "\n".join(line for line in after[1:] if line.startswith("  ")) if after else ""


def test_joepennas_config() -> None:
    config, report = imported(saved(JOEPENNA))
    subject, people = config.data.sources
    assert (subject.captions, subject.token, subject.class_word, subject.path) == ("joepenna", "effy", "person", "effy")
    assert subject.repeats == 100 and not subject.token_only
    assert (people.role, people.captions, people.class_word, people.path) == ("class", "joepenna", "person", "people")
    assert config.method == "dreambooth" and config.seed == 7 and config.project == "effy project"
    # A step there is one image of each kind.
    assert (config.train.max_steps, config.train.batch_size, config.train.gradient_accumulation) == (350, 2, 1)
    assert config.train.epochs * 100 >= 350
    assert (config.unet.lr, config.text_encoder.lr, config.lr_schedule.name) == (2e-6, 2e-6, "constant")
    assert (config.data.flip_p, config.data.resolution, config.captions.dropout) == (0.25, 512, 0.0)
    checkpoints = config.checkpoints
    assert (checkpoints.every_steps, checkpoints.every_epochs, checkpoints.every_minutes) == (50, None, None)
    assert (checkpoints.formats, checkpoints.keep, config.train.precision) == (["ckpt"], None, "fp32")
    assert "unknown" not in report and "no counterpart" not in report
    needless = section(report, "not needed here")
    for key in ("config_date_time", "debug", "gpu", "training_images", "training_images_count", "model_repo_id"):
        assert f"  {key}: " in needless


def test_a_known_key_that_is_empty_asks_for_nothing() -> None:
    config, report = imported(saved({**JOEPENNA, "model_path": "", "model_repo_id": "org/name"}))
    assert config.model.path == "org/name" and "unknown" not in report


def test_joepennas_own_defaults_count_for_missing_keys() -> None:
    few = {key: JOEPENNA[key] for key in ("token", "class_word", "training_images_folder_path", "model_path", "schema")}
    config, _ = imported(saved(few))
    assert config.seed == 23 and config.data.flip_p == 0.5 and config.unet.lr == 1e-6
    assert config.train.max_steps == 2000 and config.checkpoints.every_steps is None
    assert config.method == "full" and config.train.batch_size == 1 and len(config.data.sources) == 1


def test_token_only_leaves_regularization_out_as_there() -> None:
    config, report = imported(saved({**JOEPENNA, "token_only": True}))
    assert config.data.sources[0].token_only and len(config.data.sources) == 1 and config.method == "full"
    assert "regularization_images_folder_path: not used with token_only" in report


COMMAND = r"""python "main.py" --project_name "ProjectName" --training_model model --regularization_images "people" \
  --training_images='effy' --max_training_steps 20 --class_word "person" --token "zwx" --flip_p 0 --token_only no
  --learning_rate 1.0e-06 --save_every_x_steps 10 --debug --frobnicate 3"""


@pytest.mark.parametrize("way", ["option", "file"])
def test_joepennas_command_line(way: str) -> None:
    Path("command.txt").write_text(f"cmd> {COMMAND}", encoding="utf-8")
    config, report = imported(*(["--joepenna", COMMAND] if way == "option" else ["command.txt"]))
    subject, people = config.data.sources
    assert (subject.path, subject.token, subject.class_word, people.path) == ("effy", "zwx", "person", "people")
    assert config.project == "ProjectName" and config.train.max_steps == 20 and config.checkpoints.every_steps == 10
    assert config.data.flip_p == 0.0 and not subject.token_only
    assert "frobnicate: '3'" in section(report, "unknown")


def test_windows_paths_and_a_bare_command() -> None:
    text = run(
        "--joepenna", r'--token effy --class_word cat --training_images "C:\new\x y" --training_model D:\m\v1.ckpt'
    ).stdout
    raw = yaml.safe_load(text)
    assert raw["data"]["sources"][0]["path"] == r"C:\new\x y" and raw["model"]["path"] == r"D:\m\v1.ckpt"


def test_a_command_line_may_name_the_config() -> None:
    path = saved(JOEPENNA, "my config.json")
    config, _ = imported("--joepenna", f'python main.py --config_file_path "{path}" --token other')
    assert config.data.sources[0].token == "effy"


def test_everydream2() -> None:
    saved(OPTIMIZER, "optimizer.json")
    Path("sample_prompts.txt").write_text("a cat\n", encoding="utf-8")
    config, report = imported(saved(EVERYDREAM2))
    assert [source.path for source in config.data.sources] == ["effy"] and config.project == "ted"
    assert config.method == "full" and config.seed == 99 and config.data.resolution == 768 and config.data.flip_p == 0.5
    train = config.train
    assert (train.epochs, train.batch_size, train.gradient_accumulation, train.precision) == (30, 4, 2, "fp16")
    assert train.max_grad_norm is None and train.max_steps is None and train.gradient_checkpointing
    assert (config.unet.lr, config.text_encoder.lr, config.text_encoder.train_last_layers) == (3e-6, 5e-7, 6)
    assert config.text_encoder.clip_skip == 1  # 2 there is the next-to-last layer
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.eps, optimizer.weight_decay) == (
        "adamw",
        [0.9, 0.99],
        1e-7,
        0.02,
    )
    assert (config.lr_schedule.name, config.lr_schedule.warmup_steps) == ("cosine", 20)
    captions = config.captions
    assert (captions.dropout, captions.shuffle_tags, captions.keep_tags) == (0.1, True, 2)
    assert (config.loss.offset_noise, config.loss.weighting, config.loss.gamma) == (0.05, "min_snr", 5.0)
    assert not config.loss.normalize_weights, "EveryDream2 does not"
    assert config.ema.decay == pytest.approx(0.99**0.1)
    checkpoints = config.checkpoints
    assert (checkpoints.every_epochs, checkpoints.every_minutes, checkpoints.from_epoch) == (10, None, 5)
    assert checkpoints.dtype == "fp32" and checkpoints.keep is None
    assert (config.samples.every_steps, config.samples.prompts) == (100, "sample_prompts.txt")

    assert config.loss.pyramid_noise == 0.03 and "pyramid_noise_discount: grains" in section(report, "otherwise")
    assert "ema_decay_rate: 0.99 every 10 steps is 0.998995 every step here" in section(report, "otherwise")
    assert "lr_decay_steps: not set" in section(report, "otherwise")
    assert "gpuid: " in section(report, "not needed here") and "wandb" in report.splitlines()[-2]
    assert (
        "text_encoder_overrides.lr_scheduler" in report.splitlines()[-2]
    )  # the same as base's, so it asks for nothing


def test_every_key_of_everydream2_is_taken_over_or_told() -> None:
    """No key is dropped in silence: each stands in the YAML's comments, or in the report."""
    raw = {**EVERYDREAM2, "loss_type": "huber", "my_fork_key": [1], "seed": -1, "lr_warmup_steps": 5}
    saved({**OPTIMIZER, "base": {**OPTIMIZER["base"], "optimizer": "prodigy", "lr": 1.0}}, "optimizer.json")
    result = run(saved(raw))
    said = result.stdout + result.stderr
    aliases = {
        "optimizer_config": "optimizer",
        "data_root": "effy",
        "lr": "prodigy",
        "ema_update_interval": "every 10",
    }
    for key in raw:
        assert aliases.get(key, key) in said, key
    assert "my_fork_key: [1]" in section(result.stderr, "unknown")
    assert "seed: -1, random there" in result.stderr
    # Of the rates there (1 and 5e-7) prodigy takes one for all.
    config, report = imported(saved(raw))
    assert config.unet.lr == config.text_encoder.lr == 1.0 and config.optimizer.name == "prodigy"
    assert "prodigy finds one rate for all parts (unet.lr 1, text_encoder.lr 5e-07 there)" in report
    # Rates of optimizers that find their own otherwise would wreck a run.
    saved({**OPTIMIZER, "base": {**OPTIMIZER["base"], "optimizer": "dadapt_adam", "lr": 1.0}}, "optimizer.json")
    config, report = imported(saved(raw))
    assert config.unet.lr == 1e-6 and config.optimizer.name == "adamw" and "dadapt_adam finds its own" in report


def test_everydream2_noise_levels_attention_and_a_text_encoders_own_optimizer() -> None:
    text = {"lr": 5e-7, "betas": [0.8, 0.95], "epsilon": 1e-6, "weight_decay": 0.02}
    saved({"base": {**OPTIMIZER["base"], "optimizer": "adamw8bit"}, "text_encoder_overrides": text}, "optimizer.json")
    more = {"timestep_start": 100, "timestep_end": 900, "enable_zero_terminal_snr": True, "attn_type": "slice"}
    config, report = imported(saved({**EVERYDREAM2, **more, "loss_type": "mse_huber"}))
    assert (config.timesteps.min, config.timesteps.max, config.model.zero_terminal_snr) == (0.1, 0.9, True)
    assert config.memory.attention == "sliced" and config.optimizer.name == "adamw_8bit"
    own = config.text_encoder.optimizer
    assert (own.betas, own.eps, own.weight_decay) == ([0.8, 0.95], 1e-6, None), "0.02 is base's too"
    assert config.optimizer.betas == [0.9, 0.99] and config.loss.kind == "mse"
    assert "mse_huber; the loss is" in section(report, "no counterpart")


@pytest.mark.parametrize(
    ("own", "expected", "told"),
    [
        ({}, (2, None, 1), "auto_split_proportion: 0.15 of 10 images is 2 here"),
        ({"auto_split_proportion": 0.3, "every_n_epochs": 4}, (3, None, 4), "0.3 of 10 images is 3 here"),
        ({"val_split_proportion": 0.3, "every_n_epochs": 0.5}, (3, None, 1), "for more often set validation.every_st"),
        ({"val_split_mode": "manual", "val_data_root": "people"}, (3, "people", 1), None),
        ({"val_split_mode": "none", "extra_manual_datasets": {"santa": "people"}}, (3, "people", 1), None),
        ({"extra_manual_datasets": {"santa": "people"}}, (2, None, 1), "people; one set of images is validated"),
        ({"val_split_mode": "manual", "val_data_root": "model"}, (0, None, None), "model; no images are there"),
        ({"val_split_mode": "none"}, (0, None, None), None),
        ({"validate_training": False, "stabilize_training_loss": True}, (0, None, None), "as many training images are"),
    ],
)
def test_everydream2_validation(
    own: dict[str, Any], expected: tuple[int, str | None, int | None], told: str | None
) -> None:
    for name in [
        *(f"effy/{n}.png" for n in range(8)),
        "effy/a/8.png",
        "effy/a/9.jpg",
        *(f"people/{n}.png" for n in (1, 2, 3)),
    ]:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    saved(OPTIMIZER, "optimizer.json")
    saved({"documentation": {}, "batch_size": 4, "seed": 555, **own}, "validation.json")
    config, report = imported(saved({**EVERYDREAM2, "validation_config": "validation.json"}))
    validation = config.validation
    assert (validation.images, validation.path, validation.every_epochs) == expected
    assert told is None or told in report
    assert "validation.json: seed: which images are held out" in report


def test_everydream2_validation_that_cannot_be_counted() -> None:
    saved(OPTIMIZER, "optimizer.json")
    _, report = imported(saved({**EVERYDREAM2, "validation_config": "validation.json"}))
    assert "validation_config: validation.json is not there; see the section validation" in report
    saved({}, "validation.json")
    config, report = imported(saved({**EVERYDREAM2, "validation_config": "validation.json"}))
    assert config.validation.images == 0 and "the images are not there to be counted" in report


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({"optimizer": "lion", "betas": [0.9, 0.98], "weight_decay": 0.1}, ("lion", [0.9, 0.98], 0.1, {})),
        (
            {"optimizer": "prodigy", "lr": 1.0, "d0": 1e-5, "decouple": True},
            ("prodigy", [0.9, 0.999], 0.01, {"d0": 1e-5, "decouple": True}),
        ),
    ],
)
def test_everydream2_optimizers(base: dict[str, Any], expected: tuple[Any, ...]) -> None:
    saved({"base": base}, "optimizer.json")
    config, report = imported(saved(EVERYDREAM2))
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay, optimizer.args) == expected
    assert "no such argument" not in report


def test_everydream2_learning_rates_as_its_code_resolves_them() -> None:
    def rates(train_lr: float | None, base: float | None, text: float | None, **more: Any) -> tuple[float, float]:
        saved({"base": {"lr": base, **more}, "text_encoder_overrides": {"lr": text}}, "optimizer.json")
        config, _ = imported(saved({**EVERYDREAM2, "lr": train_lr}))
        assert config.unet.lr is not None and config.text_encoder.lr is not None
        return config.unet.lr, config.text_encoder.lr

    assert rates(None, 2e-6, 1e-6) == (2e-6, 1e-6)
    assert rates(None, 2e-6, None) == (2e-6, 2e-6)
    assert rates(9e-6, 2e-6, 1e-6) == (9e-6, 9e-6)
    assert rates(None, None, None) == (1e-6, 1e-6)
    assert rates(None, 2e-6, None, text_encoder_lr_scale=0.5) == (2e-6, 1e-6)


def test_everydream2_without_optimizer_and_with_several_roots() -> None:
    Path("list.json").write_text("[]", encoding="utf-8")
    raw = {**EVERYDREAM2, "data_root": ["effy", {"resolver": "json", "path": "list.json"}], "optimizer_config": None}
    config, report = imported(saved({**raw, "disable_textenc_training": True}))
    assert [(source.path, source.captions) for source in config.data.sources] == [
        ("effy", None),
        ("list.json", "manifest"),
    ]
    assert not config.text_encoder.train and config.unet.lr == 1e-6
    assert "optimizer.json: not beside settings.txt" in report


def test_a_model_that_is_not_named_is_a_stand_in() -> None:
    result = run(saved({**EVERYDREAM2, "resume_ckpt": "findlast", "optimizer_config": None}))
    assert "findlast" in section(result.stderr, "no counterpart") and "say which one" in result.stdout
    Path("p.yaml").write_text(result.stdout, encoding="utf-8")
    assert load_config(Path("p.yaml")).model.path == "models/v1-5-pruned.safetensors"


def test_nothing_is_overwritten_unless_asked() -> None:
    path = saved(JOEPENNA)
    run(path, "--out", "p.yaml")
    Path("p.yaml").write_text("mine", encoding="utf-8")
    assert "is there already" in run(path, "--out", "p.yaml", check=2).stderr
    assert Path("p.yaml").read_text(encoding="utf-8") == "mine"
    run(path, "--out", "p.yaml", "--overwrite")
    assert load_config(Path("p.yaml")).seed == 7


@pytest.mark.parametrize(
    "token", ["1e5", "true", "a: b", "[x", "it's", "a # b", "日本", "12", "null", "a\nb", "{a}, b", "\x07"]
)
def test_texts_come_back_as_they_were(token: str) -> None:
    config, _ = imported(saved({**JOEPENNA, "token": token}))
    assert config.data.sources[0].token == token


WRONG: list[tuple[str, list[str]]] = [
    ("{not json", ["is not valid JSON: Expecting property name", "Correct that place"]),
    ("a = [1", ["neither JSON, nor TOML", "Known are"]),
    ("just words\n", ["neither JSON, nor TOML", "Known are"]),
    ('dir = "C:\\hoge"', ["'single quotes'"]),
    ("[1, 2]", ["Known are"]),
    ("", ["holds nothing", "Known are"]),
    ('{"width": 3, "height": 4}', ["holds 'width', 'height'", "Known are"]),
    (json.dumps(OPTIMIZER), ["is EveryDream2trainer's optimizer.json", "Import its train.json"]),
    (json.dumps({**JOEPENNA, "schema": 2}), ["schema: is 2, and only schema 1"]),
    (
        json.dumps({**JOEPENNA, "max_training_steps": "many", "flip_percent": [1], "token_only": 3, "gpu": None}),
        ["max_training_steps: should be a whole number (it is 'many')", "flip_percent: should be a number (it is [1])",
         "token_only: should be true or false (it is 3)", "nothing was written"],
    ),
    ('{"schema": 1, "token": "x"}', ["training_images_folder_path: missing"]),
    (json.dumps({"class_word": "cat", "model_path": "x"}), ["training_images_folder_path: missing", "token: missing"]),
    (json.dumps({**JOEPENNA, "flip_percent": 1.5}), ["flip_percent: data.flip_p:", "1.5"]),
    (json.dumps({**EVERYDREAM2, "optimizer_config": "gone.json"}), ["optimizer_config is gone.json", "learning rates"]),
    (json.dumps({**EVERYDREAM2, "data_root": 5, "optimizer_config": None}), ["data_root: should be a folder"]),
    ("--token 'effy --class_word x", ["no command line: No closing quotation"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "told"), WRONG)
def test_what_cannot_be_imported_is_told_at_once(text: str, told: list[str]) -> None:
    Path("broken.txt").write_text(text, encoding="utf-8")
    said = run("broken.txt", "--out", "p.yaml", check=2).stderr
    assert all(part in said for part in told), said
    assert not Path("p.yaml").exists()


def test_unreadable_files_and_no_file() -> None:
    Path("latin.json").write_bytes(b'{"token": "caf\xe9"}')
    assert "cannot be read" in run("latin.json", check=2).stderr
    assert "cannot be read" in run("gone.json", check=2).stderr
    assert "Say what to import" in run(check=2).stderr
    assert "holds no --flag" in run("--joepenna", "python main.py", check=2).stderr
