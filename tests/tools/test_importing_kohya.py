"""`everydream import`: kohya's TOML of a run, of a data set, and both."""

from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from everydream.config import RunConfig, load_config
from everydream.plan import plan_run
from everydream.tools.importing.cli import import_settings
from everydream.tools.importing.kohya_tables import MISSING, NEEDLESS

app = typer.Typer(pretty_exceptions_enable=False)
app.command()(import_settings)

RUN = """
[model]
pretrained_model_name_or_path = "model"
v_parameterization = false
[folders]
train_data_dir = "img"
reg_data_dir = "reg"
output_dir = "out"
output_name = "rex"
[steps]
resolution = "512"
enable_bucket = true
bucket_reso_steps = 32
max_train_steps = 100
train_batch_size = 2
gradient_accumulation_steps = 3
seed = 42
learning_rate = 1e-4
unet_lr = 2e-4
text_encoder_lr = 5e-5
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99", "decouple=True"]
lr_scheduler = "polynomial"
lr_scheduler_power = 1.5
lr_warmup_steps = 10
mixed_precision = "bf16"
max_grad_norm = 0.0
gradient_checkpointing = true
clip_skip = 2
noise_offset = 0.05
min_snr_gamma = 5
prior_loss_weight = 0.7
[captions]
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1
caption_dropout_rate = 0.1
flip_aug = true
[saving]
save_every_n_epochs = 2
save_last_n_epochs = 4
save_precision = "fp16"
sample_every_n_steps = 50
sample_sampler = "euler_a"
cache_latents = true
xformers = true
wandb_api_key = "secret"
frobnicate = 3
color_aug = false
ip_noise_gamma = 0.1
"""
LORA = """
network_module = "networks.lora"
network_dim = 8
network_alpha = 4
network_dropout = 0.1
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that holds kohya's folders and a model."""
    (tmp_path / "model").mkdir()
    for name in ("img/5_rex dog/1.png", "img/5_rex dog/2.png", "reg/1_dog/1.png"):
        picture(tmp_path / name)
    monkeypatch.chdir(tmp_path)


def picture(path: Path, caption: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def run(*arguments: object, check: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=check != 0)
    assert result.exit_code == check, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result


def imported(text: str, **files: str) -> tuple[RunConfig, str]:
    """Import a TOML, with others beside it; return it as a run would read it, and the report."""
    for name, other in files.items():
        Path(f"{name}.toml").write_text(other, encoding="utf-8")
    Path("settings.txt").write_text(text, encoding="utf-8")
    report = run("settings.txt", "--out", "project.yaml", "--overwrite").stderr
    return load_config(Path("project.yaml"), to_train=True), report


def captions_of(config: RunConfig) -> dict[str, tuple[str, float]]:
    """Return {source name/path: (caption, repeats)} of all images."""
    index = plan_run(config).index
    repeats = [source.repeats or 1.0 for source in config.data.sources]
    return {
        f"{index.names[source]}/{path}": (
            index.captions[index.caption_offsets[n]],
            index.repeats_N[n] * repeats[source],
        )
        for n, (source, path) in enumerate(zip(index.source_N.tolist(), index.paths, strict=True))
    }


def test_a_whole_run() -> None:
    config, report = imported(RUN)
    subject, dogs = config.data.sources
    assert (subject.path, subject.captions, subject.role) == ("img", "kohya", "training")
    assert (dogs.path, dogs.captions, dogs.role, dogs.loss_scale) == ("reg", "kohya", "class", 0.7)
    assert config.method == "dreambooth" and config.project == "rex" and config.runs_dir == "out" and config.seed == 42
    train = config.train
    assert (train.max_steps, train.batch_size, train.gradient_accumulation) == (100, 2, 3)
    assert train.max_grad_norm is None and train.precision == "bf16" and train.gradient_checkpointing
    assert plan_run(config).total_steps == 100  # so the epochs suffice
    assert config.data.resolution == 512 and config.data.bucket_step == 32 and config.data.crop == "center"
    assert (config.unet.lr, config.text_encoder.lr, config.text_encoder.clip_skip) == (1e-4, 1e-4, 1)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw", [0.9, 0.99], 0.1)
    schedule = config.lr_schedule
    assert (schedule.name, schedule.power, schedule.warmup_steps) == ("polynomial", 1.5, 10)
    assert (config.loss.offset_noise, config.loss.weighting, config.loss.gamma) == (0.05, "min_snr", 5.0)
    assert not config.loss.normalize_weights, "kohya's scripts do not"
    captions = config.captions
    assert (captions.shuffle_tags, captions.keep_tags, captions.dropout, config.data.flip_p) == (True, 1, 0.1, 0.5)
    checkpoints = config.checkpoints
    assert (checkpoints.every_epochs, checkpoints.every_minutes, checkpoints.dtype) == (2, None, "fp16")
    assert config.samples.every_steps == 50 and config.samples.sampler == "ddim"
    assert "secret" not in report
    for line in ("frobnicate: 3", "ip_noise_gamma: 0.1; noise", "decouple=True", "AdamW8bit is adamw",
                 "euler_a is ddim", "cache_latents: images are", "xformers: "):  # fmt: skip
        assert line in report


def test_every_key_of_a_run_is_taken_over_or_told() -> None:
    Path("settings.txt").write_text(RUN + LORA, encoding="utf-8")
    result = run("settings.txt")
    said = result.stdout + result.stderr
    in_sources = {"train_data_dir", "reg_data_dir", "caption_extension"}
    keys = {line.partition(" = ")[0] for line in (RUN + LORA).splitlines() if " = " in line} - in_sources
    assert len(keys) >= 45 and not {key for key in keys if key not in said}
    assert not NEEDLESS.keys() & MISSING.keys()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LORA, ("lora", ["attention", "feed_forward"])),
        ('network_module = "lycoris.kohya"\nnetwork_dim = 8\nnetwork_alpha = 4\nnetwork_dropout = 0.1\n'
         'network_args = ["algo=lokr", "preset=attn-mlp"]', ("lokr", ["attention", "feed_forward"])),
        ('network_module = "lycoris.kohya"\nnetwork_dim = 8\nnetwork_alpha = 4\nnetwork_dropout = 0.1\n'
         'network_args = ["algo=loha"]', ("loha", ["attention", "feed_forward", "convolution"])),
        (LORA + 'network_args = ["conv_dim=8", "conv_alpha=4"]',
         ("lora", ["attention", "feed_forward", "convolution"])),
    ],
)  # fmt: skip
def test_networks(text: str, expected: tuple[str, list[str]]) -> None:
    config, report = imported(RUN + text)
    lora = config.lora
    assert config.method == "lora" and (lora.kind, lora.targets) == expected
    assert (lora.rank, lora.alpha, lora.dropout) == (8, 4.0, 0.1)
    assert (config.unet.lr, config.text_encoder.lr) == (2e-4, 5e-5)
    assert config.checkpoints.formats == ["safetensors"] and "conv_" not in report


def test_networks_as_far_as_they_go() -> None:
    text = RUN + LORA.replace("networks.lora", "networks.dylora") + "network_train_unet_only = true\n"
    config, report = imported(text + 'network_args = ["conv_dim=4", "unit=2"]\nsave_model_as = "ckpt"\n')
    assert config.method == "lora" and config.lora.kind == "lora" and not config.text_encoder.train
    for line in ("dylora is plain LoRA", "conv_dim=4 is 8 here", "unit=2", "ckpt is safetensors here"):
        assert line in report


def test_defaults_are_kohyas() -> None:
    config, _ = imported('pretrained_model_name_or_path = "model"\ntrain_data_dir = "img"')
    assert (config.unet.lr, config.text_encoder.lr) == (2e-6, 2e-6) and config.method == "full"
    assert config.train.max_steps == 1600 and config.train.batch_size == 1 and config.train.precision == "fp32"
    assert config.captions.dropout == 0.0 and config.lr_schedule.name == "constant"
    assert config.data.max_aspect == 1.0 and config.checkpoints.dtype == "fp32"
    assert config.checkpoints.formats == ["diffusers"] and config.samples.every_steps is None


@pytest.mark.parametrize(
    ("text", "keep"),
    [("", 4), ("save_every_n_steps = 10\nsave_last_n_steps = 30", 4), ("save_last_n_steps = 30", None)],
)
def test_as_many_files_stay(text: str, keep: int | None) -> None:
    kept = "save_every_n_epochs = 2\nsave_last_n_epochs = 4"
    config, report = imported(RUN.replace(kept, text) if text else RUN)
    assert config.checkpoints.keep == keep
    assert ("save_last_n_steps" in report) == (keep is None)


def test_conversions_between_steps_and_epochs_say_that_they_are_about() -> None:
    # 2 images x 5 repeats, and as many of the class: 20 draws, 10 steps of 2.
    text = RUN.replace("max_train_steps = 100", "max_train_epochs = 8").replace("gradient_accumulation_steps = 3", "")
    text = text.replace("lr_warmup_steps = 10", "lr_warmup_steps = 0.1")
    text = text.replace("sample_every_n_steps = 50", "sample_every_n_epochs = 3\nstop_text_encoder_training = 25")
    config, report = imported(text + "save_n_epoch_ratio = 4\n")
    assert config.train.epochs == 8 and config.train.max_steps is None
    assert plan_run(config).total_steps == 80
    assert config.lr_schedule.warmup_steps == 8 and config.samples.every_steps == 30
    assert config.text_encoder.epochs == 3 and config.checkpoints.every_epochs == 2
    assert report.count(" about ") == 4


SUBSETS = """
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1
[[datasets]]
resolution = 256
batch_size = 3
keep_tokens = 2
  [[datasets.subsets]]
  image_dir = "plain"
  class_tokens = "rex dog"
  num_repeats = 4
  [[datasets.subsets]]
  image_dir = "captioned"
  keep_tokens = 3
  flip_aug = true
  [[datasets.subsets]]
  image_dir = "img/5_rex dog"
  class_tokens = "rex dog"
  num_repeats = 10
  [[datasets.subsets]]
  image_dir = "reg/1_dog"
  class_tokens = "a dog"
  is_reg = true
"""


def test_subsets_are_captioned_and_repeated_as_their_toml_says() -> None:
    picture(Path("plain/IMG_1.png"))
    picture(Path("captioned/IMG_2.png"), "rex sits, on a lawn")
    config, report = imported(RUN + 'dataset_config = "set.toml"', set=SUBSETS)
    assert captions_of(config) == {
        "plain/IMG_1.png": ("rex dog", 4),
        "captioned/IMG_2.png": ("rex sits, on a lawn", 1),
        "5_rex dog/1.png": ("rex dog", 10),  # the folder's own number does not count there
        "5_rex dog/2.png": ("rex dog", 10),
        "1_dog/1.png": ("a dog", 1),
    }
    assert [source.role for source in config.data.sources] == ["training", "training", "training", "class"]
    assert [source.keep_tags for source in config.data.sources] == [2, 3, 2, 2] and config.captions.keep_tags == 1
    assert [source.flip_p for source in config.data.sources] == [None] * 4  # flip_aug of the run is on already
    assert config.data.resolution == 256 and config.train.batch_size == 3
    assert "asking for nothing" in report and "train_data_dir" in report.splitlines()[-2]


def test_a_data_set_alone_and_a_mixed_folder() -> None:
    picture(Path("plain/IMG_1.png"))
    picture(Path("captioned/IMG_2.png"), "rex sits")
    picture(Path("captioned/IMG_3.png"))
    text = SUBSETS.replace('image_dir = "captioned"', 'image_dir = "captioned"\n  class_tokens = "rex"')
    Path("set.toml").write_text(text, encoding="utf-8")
    result = run("set.toml")
    assert "1 of 2 images have no caption file; there they are captioned 'rex'" in result.stderr
    assert "pretrained_model_name_or_path: names no model" in result.stderr
    Path("p.yaml").write_text(result.stdout, encoding="utf-8")
    config = load_config(Path("p.yaml"))
    assert config.method == "dreambooth" and len(config.data.sources) == 4


def test_data_sets_keep_their_own_class_images() -> None:
    picture(Path("cats/1.png"))
    picture(Path("cat class/1.png"))
    more = """
[[datasets]]
resolution = 768
  [[datasets.subsets]]
  image_dir = "cats"
  class_tokens = "tom cat"
  num_repeats = 3
  [[datasets.subsets]]
  image_dir = "cat class"
  class_tokens = "cat"
  is_reg = true
"""
    picture(Path("plain/IMG_1.png"))
    picture(Path("captioned/IMG_2.png"), "rex sits")
    config, report = imported(f'pretrained_model_name_or_path = "model"\n{SUBSETS}{more}')
    planned = plan_run(config)
    draws = {}
    for source, count in zip(planned.index.source_N.tolist(), planned.mix.counts(0).tolist(), strict=True):
        draws[planned.index.names[source]] = draws.get(planned.index.names[source], 0) + count
    assert draws == {
        "1.1 plain": 4,
        "1.2 captioned": 1,
        "1.3 5_rex dog": 20,
        "1.4 1_dog": 25,
        "2.1 cats": 3,
        "2.2 cat class": 3,
    }
    assert "datasets.1.resolution: 768; all images have that of the first" in report


def test_textual_inversion() -> None:
    text = RUN + 'token_string = "<rex>"\ninit_word = "dog"\nnum_vectors_per_token = 4\nuse_object_template = true\n'
    config, report = imported(text.replace('reg_data_dir = "reg"', ""))
    (word,) = config.textual_inversion.words
    assert (word.token, word.init, word.vectors, config.textual_inversion.lr) == ("<rex>", "dog", 4, 1e-4)
    assert config.method == "textual_inversion" and config.checkpoints.formats == ["pt"]
    assert config.data.sources[0].label == "a photo of <rex>" and "use_object_template" in report
    assert "unet_lr" in report and "prior_loss_weight" in report


@pytest.mark.parametrize(
    "sign", ['pretrained_model_name_or_path = "sd_xl_base_1.0.safetensors"', "learning_rate_te1 = 1e-5"]
)
def test_sdxl_is_told(sign: str) -> None:
    text = RUN.replace('pretrained_model_name_or_path = "model"', sign)
    Path("x.toml").write_text(text, encoding="utf-8")
    assert "SDXL models cannot be trained yet" in run("x.toml").stderr


def test_a_fine_tune_by_metadata() -> None:
    picture(Path("all/1.png"))
    Path("all/meta.json").write_text('{"1": {"caption": "a cat", "tags": "x"}}', encoding="utf-8")
    text = 'train_data_dir = "all"\nin_json = "all/meta.json"\ndataset_repeats = 2'
    config, report = imported(f'pretrained_model_name_or_path = "model"\n{text}')
    assert captions_of(config) == {"meta.json/1.png": ("a cat", 2)} and not config.text_encoder.train
    assert "looked for beside" not in report


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RUN + 'dataset_config = "gone.toml"', ["dataset_config is gone.toml", "which images are trained on"]),
        (RUN + "network_dim = 'x'\nnetwork_module = 'networks.lora'", ["network_dim: should be a whole number"]),
        (RUN.replace('resolution = "512"', 'resolution = "a,b"'), ["resolution: should be one or two whole numbers"]),
        (RUN.replace('"bf16"', '"fp8"'), ["mixed_precision: train.precision", "fp8"]),
        ("datasets = [1]", ["datasets: should be a list of tables"]),
        ("[[datasets]]\nresolution = 512", ["datasets.0.subsets: missing"]),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", ["datasets.0.subsets.0.image_dir: missing"]),
        ('pretrained_model_name_or_path = "m"', ["train_data_dir: missing"]),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_told(text: str, told: list[str]) -> None:
    Path("broken.toml").write_text(text, encoding="utf-8")
    said = run("broken.toml", "--out", "p.yaml", check=2).stderr
    assert all(part in said for part in told), said
    assert not Path("p.yaml").exists()
