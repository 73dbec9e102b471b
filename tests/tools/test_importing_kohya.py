"""`everydream import`: kohya's TOML of a run, of a data set, and both."""

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from demo.sizes import _UNETS
from everydream.config import RunConfig, load_config
from everydream.methods.method import ParameterGroup
from everydream.models.common import layout
from everydream.plan import plan_run
from everydream.tools.importing.cli import import_settings
from everydream.tools.importing.kohya_tables import MISSING, NEEDLESS
from everydream.training.blocks import split_by_blocks

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
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw_8bit", [0.9, 0.99], 0.1)
    assert (config.memory.attention, config.loss.input_perturbation) == ("xformers", 0.1)
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
    for line in ("frobnicate: 3", "decouple=True", "euler_a is ddim", "cache_latents: images are"):
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
    assert config.lr_schedule.warmup_share == 0.1 and config.samples.every_steps == 30
    assert config.text_encoder.epochs == 3 and config.checkpoints.every_epochs == 2
    assert report.count(" about ") == 3


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


LITTLE = """
pretrained_model_name_or_path = "model"
train_data_dir = "img"
resolution = 512
mixed_precision = "bf16"
"""


def differing(config: RunConfig, *sections: str) -> dict[str, Any]:
    """Return {section.key: value} of what a config has other than the same import without the lines in question."""
    plain, _ = imported(LITTLE)
    pairs = ((name, config.plain()[name], plain.plain()[name]) for name in sections)
    return {
        f"{name}.{key}": value
        for name, ours, theirs in pairs
        for key, value in (ours or {}).items()
        if theirs is None or value != theirs[key]
    }


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('loss_type = "huber"\nhuber_c = 0.2\nhuber_schedule = "exponential"',
         {"loss.kind": "huber", "loss.huber_c": 0.2, "loss.huber_schedule": "exponential"}),
        ('loss_type = "smooth_l1"', {"loss.kind": "smooth_l1"}),
        ('loss_type = "l2"\nhuber_c = 0.3', {}),
        ("debiased_estimation_loss = true", {"loss.weighting": "debiased", "loss.normalize_weights": False}),
        ("multires_noise_iterations = 6\nmultires_noise_discount = 0.4", {"loss.pyramid_noise": 0.4}),
        ("multires_noise_discount = 0.4", {}),
        ("ip_noise_gamma = 0.05", {"loss.input_perturbation": 0.05}),
        ("noise_offset = 0.1\nnoise_offset_random_strength = true",
         {"loss.offset_noise": 0.1, "loss.offset_noise_random": True}),
        ("min_timestep = 50\nmax_timestep = 700", {"timesteps.min": 0.05, "timesteps.max": 0.7}),
        ("max_timestep = 1000", {}),
        ("alpha_mask = true", {"data.masks": "alpha"}),
        ("max_token_length = 225\nclip_skip = 2", {"text_encoder.chunks": 3, "text_encoder.clip_skip": 1}),
        ("max_token_length = 150", {"text_encoder.chunks": 2}),
        ("caption_tag_dropout_rate = 0.2\nenable_wildcard = true",
         {"captions.tag_dropout": 0.2, "captions.wildcards": True}),
        ("v_parameterization = true\nzero_terminal_snr = true",
         {"model.prediction": "v", "model.zero_terminal_snr": True}),
        ("full_bf16 = true", {"memory.weights": "bf16", "memory.frozen": "bf16", "memory.optimizer_state": "bf16"}),
        ('full_bf16 = true\noptimizer_type = "AdamW8bit"',
         {"memory.weights": "bf16", "memory.frozen": "bf16", "optimizer.name": "adamw_8bit"}),
        ("fused_backward_pass = true\nmax_grad_norm = 0.0",
         {"memory.fused_backward": True, "train.max_grad_norm": None}),
        ("sdpa = true\ngradient_checkpointing = true",
         {"memory.attention": "sdpa", "train.gradient_checkpointing": True}),
    ],
)  # fmt: skip
def test_what_is_the_same_is_taken_over(lines: str, expected: dict[str, Any]) -> None:
    config, _ = imported(LITTLE + lines)
    sections = ("loss", "timesteps", "data", "text_encoder", "captions", "model", "memory", "train", "optimizer")
    assert differing(config, *sections) == expected


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("debiased_estimation_loss = true\nv_parameterization = true", "1 / (SNR + 1) there, 1 / sqrt(SNR + 1) here"),
        ("debiased_estimation_loss = true\nmin_snr_gamma = 5", "not together with min_snr_gamma"),
        ("zero_terminal_snr = true", "zero_terminal_snr: without v_parameterization"),
        ("adaptive_noise_scale = 0.01", "adaptive_noise_scale: 0.01; the offset's strength does not follow"),
        ("alpha_mask = true", "mean over the mask's area"),
        ("masked_loss = true", "masked_loss: True; masks are files beside the images"),
        ("full_bf16 = true", "rounded by chance here"),
        ('full_bf16 = true\noptimizer_type = "Prodigy"', "full_bf16: not together with optimizer.name: prodigy"),
        ("fused_backward_pass = true", "clips each tensor by itself there"),
        ("fused_backward_pass = true\ngradient_accumulation_steps = 2", "not together with gradient_accumulation"),
        ('loss_type = "l1"', "loss_type: l1; the loss is the mean squared error"),
        ('loss_type = "huber"\nhuber_scale = 2.0', "huber_scale: 2; the scheduled"),
        ("multires_noise_iterations = 2", "multires_noise_iterations: 2; here until a side is 1"),
        ("ip_noise_gamma = 0.1\nip_noise_gamma_random_strength = true", "strength is ip_noise_gamma for every"),
        ("max_token_length = 150", "keeps its own begin and end here"),
    ],
)  # fmt: skip
def test_what_differs_is_told(lines: str, told: str) -> None:
    assert told in imported(LITTLE + lines)[1]


def test_a_validation_split_is_a_number_of_images() -> None:
    for number in range(3, 11):
        picture(Path(f"img/5_rex dog/{number}.png"))
    config, report = imported(RUN + "validation_split = 0.2\nvalidation_seed = 7\nvalidate_every_n_steps = 40\n")
    validation = config.validation
    assert (validation.images, validation.every_steps, validation.every_epochs) == (2, 40, None)
    assert "validation_split: 0.2 of 10 images is 2 here" in report and "validation_seed: which images are" in report
    planned = plan_run(load_config(Path("project.yaml"), ["data.twins=ignore"]))  # the pictures are all alike
    assert planned.held_out().sum() == 2 and set(planned.watched["validation"].index.source_N) == {0}
    config, report = imported(RUN + "validation_split = 0.9\nmax_validation_steps = 3\n")
    assert (config.validation.images, config.validation.every_epochs) == (5, 1), "half stays to train on"
    assert "max_validation_steps: 3; lower validation.images" in report


def test_a_validation_split_that_is_of_no_use_is_told() -> None:
    config, report = imported(RUN + "validate_every_n_steps = 40\n")
    assert config.validation.images == 0 and "validate_every_n_steps: 40; no images are held out" in report
    subsets = "[[datasets]]\n" + "".join(
        f"[[datasets.subsets]]\nimage_dir = 'img/5_rex dog'\nvalidation_split = {share}\n" for share in (0.1, 0.5)
    )
    config, report = imported(LITTLE + subsets)
    assert config.validation.images == 0 and "validation_split: 0.1, 0.5 of different images; set" in report
    Path("img/5_rex dog/2.png").unlink()
    config, report = imported(RUN + "validation_split = 0.5\n")
    assert config.validation.images == 0 and "validation_split: 0.5; the images are not there to be counted" in report


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('optimizer_type = "PagedAdamW8bit"', ("paged_adamw_8bit", 2e-6, [0.9, 0.999], 0.01, {})),
        ('optimizer_type = "Lion"\noptimizer_args = ["betas=.95,.98"]', ("lion", 2e-6, [0.95, 0.98], 0.0, {})),
        ('optimizer_type = "Prodigy"\nlearning_rate = 1.0\n'
         'optimizer_args = ["decouple=True", "d_coef=2", "safeguard_warmup=True"]',
         ("prodigy", 1.0, [0.9, 0.999], 0.0, {"decouple": True, "d_coef": 2, "safeguard_warmup": True})),
        ('optimizer_type = "prodigy"\nlearning_rate = 0.5', ("prodigy", 0.5, [0.9, 0.999], 0.0, {})),
        ('optimizer_type = "AdamWScheduleFree"\nlr_scheduler = "cosine"\noptimizer_args = ["warmup_steps=10"]',
         ("schedule_free_adamw", 2e-6, [0.9, 0.999], 0.0, {"warmup_steps": 10})),
        ('optimizer_type = "came_pytorch.CAME"\noptimizer_args = ["betas=(0.9, 0.99, 0.999)", "weight_decay=0.1"]',
         ("came", 2e-6, [0.9, 0.99, 0.999], 0.1, {})),
        ('optimizer_type = "RAdam"\noptimizer_args = ["decoupled_weight_decay=True"]',
         ("torch.RAdam", 2e-6, None, None, {"decoupled_weight_decay": True})),
        ('optimizer_type = "SGDNesterov"\noptimizer_args = ["momentum=0.8"]',
         ("sgd", 2e-6, [0.8, 0.999], 0.0, {"nesterov": True})),
        ('optimizer_type = "Adafactor"', ("adafactor", 0.01, None, 0.0, {})),
        ('optimizer_type = "Adafactor"\noptimizer_args = ["relative_step=False", "warmup_init=False"]',
         ("adafactor", 2e-6, None, 0.0, {})),
        ('optimizer_type = "Lion8bit"', ("lion", 2e-6, [0.9, 0.99], 0.0, {})),
    ],
)  # fmt: skip
def test_optimizers(lines: str, expected: tuple[Any, ...]) -> None:
    config, report = imported(LITTLE + lines)
    own = config.optimizer
    assert (own.name, config.unet.lr, own.betas, own.weight_decay, own.args) == expected
    assert config.text_encoder.lr == config.unet.lr and "no such argument" not in report


def test_adafactors_that_differ_are_told() -> None:
    lines = 'optimizer_type = "Adafactor"\noptimizer_args = ["relative_step=False", "scale_parameter=False"]'
    assert "a rate that suits it is about fifty times as high" in imported(LITTLE + lines)[1]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('lr_scheduler = "cosine_with_restarts"\nlr_scheduler_num_cycles = 3', {"name": "cosine", "cycles": 3}),
        ('lr_scheduler = "polynomial"\nlr_scheduler_power = 1.5', {"name": "polynomial", "power": 1.5}),
        ('lr_scheduler = "linear"\nlr_warmup_steps = 0.05', {"name": "linear", "warmup_share": 0.05}),
        ('lr_scheduler = "constant_with_warmup"\nlr_warmup_steps = 7', {"warmup_steps": 7}),
        ('lr_scheduler = "cosine_with_min_lr"\nlr_scheduler_min_lr_ratio = 0.1', {"name": "cosine", "min_factor": 0.1}),
        ('lr_scheduler_type = "torch.optim.lr_scheduler.OneCycleLR"\nlr_scheduler_args = ["pct_start=0.2"]',
         {"name": "one_cycle", "warmup_share": 0.2}),
        ('lr_scheduler = "rex"', {"name": "rex"}),
    ],
)  # fmt: skip
def test_schedules(lines: str, expected: dict[str, Any]) -> None:
    found = differing(imported(LITTLE + lines)[0], "lr_schedule")
    assert found == {f"lr_schedule.{key}": value for key, value in expected.items()}


XL = LITTLE.replace('"model"', '"sd_xl_base_1.0.safetensors"')


@pytest.mark.parametrize(
    ("lines", "rates"),
    [
        ("", (False, None)),
        ("train_text_encoder = true\nlearning_rate_te1 = 1e-6\nlearning_rate_te2 = 5e-7", (1e-6, 5e-7)),
        ("train_text_encoder = true\nlearning_rate_te1 = 1e-6\nlearning_rate_te2 = 0", (1e-6, False)),
        ("train_text_encoder = true\nlearning_rate_te1 = 0\nlearning_rate_te2 = 5e-7", (False, 5e-7)),
        (LORA + "text_encoder_lr = [3e-5, 1e-5]", (3e-5, 1e-5)),
        (LORA + "text_encoder_lr = 3e-5", (3e-5, None)),
    ],
)
def test_sdxl(lines: str, rates: tuple[Any, Any]) -> None:
    Path("sd_xl_base_1.0.safetensors").touch()
    config, report = imported(XL + lines + "\nclip_skip = 2")
    first, second = config.text_encoder, config.text_encoder_2
    found = (first.train and first.lr, None if second is None else second.train and second.lr)
    assert found == rates and config.model.empty_prompt == "encode" and first.clip_skip == 0
    assert "clip_skip: not used" in report


def block_of(single: str) -> int:
    """Return which of kohya's 23 blocks a module of a single file is in."""
    first, _, rest = single.partition(".")
    starts = {"time_embed": 0, "label_emb": 0, "input_blocks": 1, "middle_block": 10, "output_blocks": 13, "out": 22}
    return starts[first] + (int(rest.partition(".")[0]) if first.endswith(("blocks", "middle_block")) else 0)


def test_sdxls_rates_by_block_hold_for_the_modules_that_kohya_means() -> None:
    Path("sd_xl_base_1.0.safetensors").touch()
    rates = [(n + 1) * 1e-7 for n in range(23)]
    config, _ = imported(XL + f'block_lr = "{",".join(map(str, rates))}"')
    assert config.unet.lr == 23e-7
    # Names for every shape of this size; SDXL has no attention at full resolution and samples no further there.
    absent = ("down_blocks.0.attentions", "up_blocks.2.attentions", "down_blocks.2.downsam", "up_blocks.2.upsam")
    pairs = layout.unet_pairs({**_UNETS["sdxl"], "layers_per_block": 2})
    pairs = [pair for pair in pairs if not pair[0].startswith(absent)]
    names = [f"unet.{ours}.weight" for ours, _ in pairs]
    group = ParameterGroup("unet", names, [torch.nn.Parameter(torch.zeros(1)) for _ in names], config.unet.lr)
    found = {
        name: piece.lr for piece in split_by_blocks([group], {"unet": config.unet.block_lr}) for name in piece.names
    }
    assert len(found) == len(names) > 100
    expected = [rates[block_of(theirs)] for _, theirs in pairs]
    assert [found[name] for name in names] == pytest.approx(expected)


def test_rates_by_block_that_are_too_few_are_refused() -> None:
    Path("x.toml").write_text(XL + 'block_lr = "1e-6,2e-6"', encoding="utf-8")
    assert "block_lr: should be 23 rates" in run("x.toml", check=2).stderr


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", {"law": "uniform", "shift": 3.0}),
        ('timestep_sampling = "sigmoid"\nsigmoid_scale = 1.2', {"law": "logit_normal", "std": 1.2, "shift": 1.0}),
        ('timestep_sampling = "shift"\ndiscrete_flow_shift = 3.1', {"law": "logit_normal", "shift": 3.1}),
        ('timestep_sampling = "flux_shift"', {"law": "logit_normal"}),
        ('weighting_scheme = "logit_normal"\nlogit_mean = 0.5\nlogit_std = 0.8',
         {"law": "logit_normal", "mean": -0.5, "std": 0.8, "shift": 3.0}),
    ],
)  # fmt: skip
def test_flux(lines: str, expected: dict[str, Any]) -> None:
    Path("models/FLUX.1-dev").mkdir(parents=True)
    text = LITTLE.replace('"model"', '"flux1-dev.safetensors"') + 'ae = "ae.safetensors"\n' + LORA
    config, report = imported(text + lines)
    assert config.model.path == "models/FLUX.1-dev" and config.model.empty_prompt == "auto"
    found = differing(config, "timesteps")
    assert {"timesteps.law": config.timesteps.law, **found} == {f"timesteps.{k}": v for k, v in expected.items()}
    for line in ("flux1-dev.safetensors is no diffusers folder", "guidance_scale: 3.5", "sigma squared as much there"):
        assert line in report
    assert "sigma squared" not in imported(text + lines + '\nmodel_prediction_type = "raw"')[1]


def test_sd3_from_a_folder() -> None:
    Path("sd3").mkdir()
    Path("sd3/model_index.json").write_text('{"transformer": ["diffusers", "SD3Transformer2DModel"]}', encoding="utf-8")
    text = (
        LITTLE.replace('"model"', '"sd3"') + 'training_shift = 3.0\nweighting_scheme = "logit_normal"\nlogit_mean = 0.5'
    )
    config, report = imported(text)
    assert config.model.path == "sd3" and not config.text_encoder.train and "no diffusers folder" not in report
    levels = config.timesteps
    assert (levels.law, levels.mean, levels.std, levels.shift) == ("logit_normal", 0.5, 1.0, 3.0)


MANY = """
[[datasets]]
resolution = {first}
  [[datasets.subsets]]
  image_dir = "img/5_rex dog"
  num_repeats = 3
[[datasets]]
resolution = 768
  [[datasets.subsets]]
  image_dir = "img/5_rex dog"
  num_repeats = {second}
"""


def test_the_same_subsets_at_several_resolutions() -> None:
    config, report = imported(LITTLE + MANY.format(first=512, second=3))
    assert [(other.resolution, other.share) for other in config.data.also_at] == [(768, 0.5)]
    assert len(config.data.sources) == 1 and config.data.resolution == 512
    planned = plan_run(config)
    assert planned.mix.counts(0).tolist() == [6, 6], "of each image three draws at each resolution"
    assert "an image meets each as often in every epoch there" in report


def test_other_subsets_at_another_resolution_are_told() -> None:
    config, report = imported(LITTLE + MANY.format(first=512, second=4))
    assert config.data.also_at == [] and "datasets.1.resolution: 768; all images have that of the first" in report


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
