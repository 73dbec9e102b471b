"""Settings: every problem at once, each with its key, before anything is loaded."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import run_cli
from pydantic import BaseModel

from everydream import config as config_module
from everydream.config import RunConfig, apply_override, completed, load_config, parse_yaml, resolve_saved
from everydream.errors import ConfigError
from everydream.problems import settings_in
from everydream.reference import reference

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a config: text as it is, or a mapping laid over the smallest one that is right."""
    (tmp_path / "images").mkdir()

    def to_file(content: Any = None, name: str = "project.yaml") -> Path:
        if not isinstance(content, str | bytes):
            base: dict[str, Any] = {"model": {"path": "m"}, "data": {"sources": [{"path": str(tmp_path / "images")}]}}
            for key, value in (content or {}).items():
                base[key] = {**base[key], **value} if key in base and isinstance(value, dict) else value
            content = json.dumps(base)  # which is YAML too, with every text in quotes
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return to_file


SMALLEST = "model: {path: m}\ndata: {sources: [{path: images}]}\n"


def problems(path: Path, *overrides: str, to_train: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, list(overrides), to_train)
    head, *lines = str(error.value).split("\n")
    count = len(lines)
    assert head == f"{path} has {count} problem{'s' if count != 1 else ''}; nothing was started:"
    assert all(line.startswith("  ") for line in lines)
    return [line[2:] for line in lines]


EXAMPLE = """\
project: my_project
runs_dir: runs
seed: 555
model:
  path: models/sd_v1-5.safetensors
data:
  resolution: 512
  sources:
    - path: training_samples
      repeats: 10
    - path: ground_truth
      share: 0.25
      role: ground_truth
train:
  epochs: 10
  max_steps: null
  batch_size: 6
  gradient_accumulation: 1
  precision: bf16
  gradient_checkpointing: true
  max_grad_norm: 1.0
unet:
  train: true
  lr: 1.0e-6
text_encoder:
  train: true
  lr: 5.0e-7
  train_last_layers: null
  clip_skip: 0
optimizer:
  name: adamw
  betas: [0.9, 0.999]
  weight_decay: 0.01
lr_schedule:
  name: cosine
  warmup_steps: 0
captions:
  dropout: 0.04
  shuffle_tags: false
  keep_tags: 0
checkpoints:
  every_steps: null
  every_epochs: 1
  from_epoch: 0
  every_minutes: 20
  keep: 3
  formats: [safetensors]
samples:
  every_steps: 250
  prompts: prompts.txt
  steps: 30
  guidance: [7.0]
  seed: 555
trackers: [tensorboard]
"""


def test_the_example(write: Write, tmp_path: Path) -> None:
    for name in ("training_samples", "ground_truth"):
        (tmp_path / name).mkdir()
    (tmp_path / "prompts.txt").write_text("a cat\n")
    config = load_config(write(EXAMPLE))
    raw = yaml.safe_load(EXAMPLE)
    assert config.unet.lr == 1e-6 and config.checkpoints.every_minutes == 20.0
    plain = config.plain()
    for section, values in raw.items():
        if isinstance(values, dict) and section not in ("data", "model", "samples"):
            assert {key: plain[section][key] for key in values} == values, section
    assert [source.path for source in config.data.sources] == [
        str(tmp_path / n) for n in ("training_samples", "ground_truth")
    ]
    assert config.samples.prompts == str(tmp_path / "prompts.txt")
    assert json.loads(json.dumps(plain)) == plain
    assert resolve_saved(plain, tmp_path / "last.ckpt") == config


def test_every_problem_comes_at_once(write: Write, tmp_path: Path) -> None:
    """Defect 2: elsewhere a typo in the optimizer's name trains with another one, and unknown keys are ignored."""
    path = write({
        "train": {"epochs": "2", "batchsize": 4, "precision": "fp23"},
        "optimizer": {"name": "adamw8bti"},
        "unet": {"train": False, "lr": -1.0},
        "text_encoder": {"train": False},
        "sample": {"steps": 3},
        "data": {"sources": [{"path": str(tmp_path / "nothing")}, {"path": "x", "repeats": 1.0, "share": 0.5}],
                 "resolution": 512.5},
        "checkpoints": {"formats": ["safetensor"]},
    })  # fmt: skip
    found = problems(path, "nonsense", "samples.guidance=[]")
    expected = [
        r"override 'nonsense': write it as section.key=value",
        r"train\.epochs: .*integer.*\(it is '2'\)",
        r"train\.batchsize: unknown key; did you mean batch_size\?",
        r"train\.precision: .*'fp32', 'bf16' or 'fp16'; did you mean fp32\? \(it is 'fp23'\)",
        r"optimizer\.name: there is no 'adamw8bti'; did you mean adamw_8bit",
        r"unet\.lr: .*greater than or equal to 0.*\(it is -1.0\)",
        r"sample: unknown key; did you mean samples\?",
        r"data\.sources\.1: give one of repeats, share and choose, not repeats and share",
        r"data\.resolution: .*integer.*\(it is 512.5\)",
        r"checkpoints\.formats\.0: .*did you mean safetensors\? \(it is 'safetensor'\)",
        r"samples\.guidance: .*at least 1 item",
        r"unet\.train, text_encoder\.train: both are false, so nothing would train\.",
        rf"data\.sources\.0\.path: there is nothing at {re.escape(str(tmp_path / 'nothing'))}",
        r"data\.sources\.1\.path: there is nothing at .*x",
    ]
    for pattern in expected:
        assert sum(re.fullmatch(pattern + ".*", line) is not None for line in found) == 1, (pattern, found)
    assert len(found) == len(expected)


def test_a_typo_is_told_by_the_command_too(write: Write) -> None:
    """Defect 2."""
    done = run_cli("train", "--config", write({"optimizer": {"nam": "adamw8bit"}}), check=2)
    assert "optimizer.nam: unknown key; did you mean name?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"zzz": 1}, r"zzz: unknown key; known here: project, runs_dir, seed, model, .*trackers\."),
        ({"train": {"epochs": "2"}}, r"train\.epochs: .*\(it is '2'\)"),
        ({"train": {"epochs": 2.0}}, r"train\.epochs: .*\(it is 2\.0\)"),
        ({"train": {"epochs": True}}, r"train\.epochs: .*\(it is True\)"),
        ({"train": {"epochs": 0}}, r"train\.epochs: .*greater than or equal to 1 \(it is 0\)"),
        ({"train": {"gradient_checkpointing": "yes"}}, r"train\.gradient_checkpointing: .*'selective' \(it is 'yes'\)"),
        ({"unet": {"lr": "1e-6"}}, r"unet\.lr: .*number \(it is '1e-6'\)"),
        ({"train": None}, r"train: .*\(it is None\)"),
        ({"loss": {"unmasked_weight": 0.3}, "data": {"masks": "none"}}, r"loss\.unmasked_weight: has no effect.*"),
        ({"timesteps": {"stratified": True}, "train": {"batch_size": 1}}, r"timesteps\.stratified: has no effect.*"),
        (
            {"optimizer": {"name": "prodigy"}, "text_encoder_2": {"lr": 0.5}},
            r".*prodigy finds one rate for all that trains.*",
        ),
        (
            {"optimizer": {"name": "adafactor"}, "text_encoder_2": {"optimizer": {"betas": [0.5, 0.9]}}},
            r"text_encoder_2\.optimizer\.betas: adafactor has none.*",
        ),
        ({"train": [1]}, r"train: .*"),
        ({"trackers": "wandb"}, r"trackers: .*list \(it is 'wandb'\)"),
        ({"project": "a/b"}, r"project: .*pattern.*\(it is 'a/b'\)"),
        ({"data": {"bucket_step": 20}}, r"data\.bucket_step: .*multiple of 8 \(it is 20\)"),
        ({"data": {"background": "white"}}, r"data\.background: .*\(it is 'white'\)"),
        ({"data": {"sources": []}}, r"data\.sources: .*at least 1 item.*"),
        ({"data": {"sources": [{}]}}, r"data\.sources\.0\.path: missing\. Folder, tar shards.*"),
        (
            {"data": {"sources": [{"path": "images", "captions": "label"}]}},
            r"data\.sources\.0: captions: label needs.*",
        ),
        (
            {"data": {"sources": [{"path": "images", "captions": "manifest", "label": "x"}]}},
            r".*`label` is only used.*",
        ),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas: .*at least 2.*"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"optimizer\.betas\.1: .*less than 1 \(it is 1\.0\)"),
        (
            {"data": {"bucket_step": 128, "resolution": 64}},
            r"data\.bucket_step: 128 is larger than data\.resolution 64.*",
        ),
        ({"unet": {"train": False}, "text_encoder": {"train": False}}, r"unet\.train, text_encoder\.train: both.*"),
        ({"model": {"path": ""}}, r"model\.path: .*at least 1 character.*"),
    ],
)
def test_one_problem(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, section: Any, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    found = problems(write(section))
    assert len(found) == 1 and re.fullmatch(said, found[0]), found


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"samples": {"prompts": "no.txt"}}, r"samples\.prompts: there is nothing at .*no\.txt"),
        ({"model": {"config": "no"}}, r"model\.config: there is nothing at .*no"),
        ({"model": {"path": "models/sd.safetensors"}}, r"model\.path: there is nothing at .*sd\.safetensors"),
    ],
)
def test_what_only_training_needs(write: Write, tmp_path: Path, section: Any, said: str) -> None:
    path = write(section)
    load_config(path)
    overrides = [] if "path" in section.get("model", {}) else [f"model.path={tmp_path}"]
    [found] = problems(path, *overrides, to_train=True)
    assert re.fullmatch(said, found)


def test_missing_sections(write: Write) -> None:
    assert problems(write("project: x\n")) == [
        "model: missing. The model to start from.",
        "data: missing. The images.",
    ]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([0.6, 0.4], "the shares sum to 1;"),
        ([0.9, 0.3, None], "the shares sum to 1.2;"),
        ([0.5], "every source has a share, so there is nothing to be a share of"),
        ([0.5, 0.25], "every source has a share"),
        ([0.5, None], None),
    ],
)
def test_shares(write: Write, shares: list[float | None], said: str | None, tmp_path: Path) -> None:
    sources = [{"path": str(tmp_path / "images")} | ({"share": share} if share else {}) for share in shares]
    path = write({"data": {"sources": sources}})
    if said is None:
        assert load_config(path).data.sources[0].share == 0.5
    else:
        [problem] = problems(path)
        assert problem.startswith(f"data.sources: {said}")


@pytest.mark.parametrize("installed", [True, False])
def test_wandb_has_to_be_installed(write: Write, monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    monkeypatch.setattr(config_module, "_importable", lambda name: installed)
    path = write({"trackers": ["wandb"]})
    if installed:
        assert load_config(path).trackers == ["wandb"]
    else:
        assert problems(path) == [
            'trackers: wandb is not installed; pip install -c constraints.txt -e ".[wandb]", or take it out.'
        ]


# --- YAML


@pytest.mark.parametrize("text", ["1e-6", "1.0e-6", "1E-6", "+1e-06", ".000001"])
def test_a_float_without_a_dot_is_a_float(write: Write, text: str) -> None:
    """YAML 1.1, which PyYAML reads, takes 1e-6 for a text."""
    path = write(SMALLEST + f"unet: {{lr: {text}}}\n")
    assert load_config(path).unet.lr == 1e-6
    assert load_config(write(), [f"unet.lr={text}"]).unet.lr == 1e-6


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1.5", 1.5), ("-2", -2), ("1e3", 1000.0), ("'1e3'", "1e3"), ("1-2", "1-2"),
     ("2024-01-02", "2024-01-02"),
     ("1.2.3", "1.2.3"), ("null", None), ("~", None), ("true", True), (".inf", float("inf")), ("e5", "e5"), (".", ".")],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    found = parse_yaml(text, "x")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epochs: 1}\ntrain: {epochs: 2}\n", "the key 'train' stands here twice"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "the key 'epochs' stands here twice"),
        ("train: [\n", "is not valid YAML"),
        ("a: b: c\n", "is not valid YAML"),
        ("x: !!python/object/apply:os.system [ls]\n", "is not valid YAML"),
        ("- a\n", "should hold settings as `key: value` lines"),
        ("just text", "should hold settings as `key: value` lines"),
        ("", "should hold settings as `key: value` lines"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_yaml_that_is_no_config(write: Write, text: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        load_config(write(text))
    assert "project.yaml" in str(error.value)


def test_yaml_keys_that_are_odd(write: Write) -> None:
    assert len(problems(write(SMALLEST + "1: 2\n"))) == 1
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write("? [a, b]\n: 1\n"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(write("? {a: b}\n: 1\n"))


def test_a_byte_order_mark_and_an_anchor(write: Write) -> None:
    text = SMALLEST + "unet: &lr {lr: 1e-5}\ntext_encoder: *lr\n"
    config = load_config(write(b"\xef\xbb\xbf" + text.encode()))
    assert config.unet.lr == config.text_encoder.lr == 1e-5


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The config .*none\.yaml cannot be read"):
        load_config(tmp_path / "none.yaml")


# --- overrides


def test_overrides(write: Write, tmp_path: Path) -> None:
    overrides = [
        "train.epochs=4", "data.sources.0.repeats=2.5", "samples.guidance=[1, 7.5]", "train.max_steps=null",
        "optimizer.betas.1=0.99", "project=a b", "data.sources.0.name=x=y", " unet.lr = 1e-5",
    ]  # fmt: skip
    config = load_config(write({"optimizer": {"betas": [0.9, 0.999]}}), overrides)
    assert (config.train.epochs, config.train.max_steps, config.project) == (4, None, "a b")
    assert (config.data.sources[0].repeats, config.data.sources[0].name) == (2.5, "x=y")
    assert config.samples.guidance == [1.0, 7.5] and config.optimizer.betas == [0.9, 0.99]
    assert config.unet.lr == 1e-5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs", "override 'train.epochs': write it as section.key=value"),
        ("=3", "override '=3': write it as section.key=value"),
        ("data.sources.1.repeats=2", "'1' is not a number below 1"),
        ("data.sources.x.repeats=2", "'x' is not a number below 1"),
        ("data.sources.-1.repeats=2", "'-1' is not a number below 1"),
        ("data.sources.1={}", "'1' is not a key there"),
        ("model.path.deeper.still=2", "is inside a plain value"),
        ("model.path.deeper=2", "'deeper' is not a key there"),
        ("train.epoch=2", "train.epoch: unknown key; did you mean epochs?"),
        ("tain.epochs=2", "tain: unknown key; did you mean train?"),
        ("train.epochs=two", "train.epochs: "),
    ],
)
def test_overrides_that_are_wrong(write: Write, override: str, said: str) -> None:
    found = problems(write(), override)
    assert len(found) == 1 and said in found[0]


def test_an_override_that_is_no_yaml(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"override samples\.guidance is not valid YAML"):
        load_config(write(), ["samples.guidance=[1"])


def test_an_override_of_an_empty_section(write: Write) -> None:
    """`train:` with nothing under it is null in YAML."""
    path = write(SMALLEST + "train:\n")
    assert load_config(path, ["train.epochs=4"]).train.epochs == 4
    raw: dict[str, Any] = {"a": {"b": [1, 2]}}
    assert apply_override(raw, "a.b.1=5") is None and raw == {"a": {"b": [1, 5]}}


# --- paths


def test_paths_are_looked_for_here_then_beside_the_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    for folder in (here / "both", tmp_path / "both", tmp_path / "beside", tmp_path / "model"):
        folder.mkdir(parents=True)
    (tmp_path / "prompts.txt").write_text("x")
    monkeypatch.chdir(here)
    path = write({
        "model": {"path": "model", "config": "model"}, "samples": {"prompts": "prompts.txt"},
        "data": {"sources": [{"path": "both"}, {"path": "beside"}]},
    })  # fmt: skip
    config = load_config(Path("..") / path.name)
    assert [Path(s.path).resolve() for s in config.data.sources] == [here / "both", tmp_path / "beside"]
    assert Path(config.model.path).resolve() == Path(config.model.config or "").resolve() == tmp_path / "model"
    assert Path(config.samples.prompts or "").resolve() == tmp_path / "prompts.txt"
    assert load_config(path, ["model.path=org/name"]).model.path == "org/name"


def test_the_home_folder(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    config = load_config(write({"data": {"sources": [{"path": "~/images"}]}}))
    assert Path(config.data.sources[0].path) == tmp_path / "images"


# --- the settings classes


def walk(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field
        inner = settings_in(field.annotation)
        if inner is not None:
            yield from walk(inner, f"{prefix}{name}.")


def test_every_setting_says_what_it_does() -> None:
    fields = dict(walk(RunConfig))
    assert len(fields) > 70
    for key, field in fields.items():
        assert field.description and field.description.strip().endswith((".", ")")), key
        assert len(field.description) < 160, key


def test_every_section_is_strict_and_frozen(write: Write) -> None:
    sections = {RunConfig} | {found for _, f in walk(RunConfig) if (found := settings_in(f.annotation)) is not None}
    assert len(sections) > 10
    for section in sections:
        config = section.model_config
        assert (config.get("extra"), config.get("strict"), config.get("frozen")) == ("forbid", True, True), section
    with pytest.raises(ValueError, match="frozen"):
        load_config(write()).train.epochs = 3  # type: ignore[misc]


def test_the_defaults_agree_with_one_another(write: Write) -> None:
    config = load_config(write())
    assert RunConfig.model_validate(config.plain()) == config
    assert config.checkpoints.every_minutes == 20.0


def test_the_reference_and_the_schema_know_every_key() -> None:
    text = reference()
    for key, field in walk(RunConfig):
        if settings_in(field.annotation) is None:
            name = key.rsplit(".", 1)[-1]
            section = (
                key.rpartition(".")[0]
                .replace("sources", "sources[]")
                .replace("words", "words[]")
                .replace("also_at", "also_at[]")
            )
            head = f"\n## `{section}`\n" if section else ""
            part = text.partition(head)[2].partition("\n## ")[0] if head else text
            assert f"| `{name}` | " in part and str(field.description) in part, key
    schema = json.loads(run_cli("schema").stdout)
    assert schema == RunConfig.model_json_schema()
    assert set(schema["properties"]) == set(RunConfig.model_fields) and schema["additionalProperties"] is False
    assert run_cli("schema", "--markdown").stdout == text


ONE = "model: {path: m}\ndata: {sources: [{path: images}]}\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("method: lora\nhypernetwork: {lr: 1.0}", ["hypernetwork.lr: has no effect with method: lora."]),
        (
            "lora: {rank: 4, dropout: 0.1}",
            ["lora.rank: has no effect", "lora.dropout: has no effect with method: full"],
        ),
        (
            "method: textual_inversion\ntextual_inversion: {words: [{token: <x>, init: dog}]}\n"
            "text_encoder: {lr: 1.0e-3, clip_skip: 1}",
            ["text_encoder.lr: has no effect with method: textual_inversion"],
        ),
        ("method: textual_inversion", ["textual_inversion.words: empty; say what to learn"]),
        ("method: dreambooth", ["data.sources: method: dreambooth preserves what the model knows of a class"]),
        ("method: lora\ncheckpoints: {formats: [ckpt]}", ["checkpoints.formats: ckpt cannot be written"]),
        (
            "method: lora\nlora: {kind: loha}\ncheckpoints: {formats: [safetensors, diffusers]}",
            ["checkpoints.formats: diffusers cannot be written with method: lora of kind loha; it writes safetensors."],
        ),
        ("method: lora\nunet: {train: false}\ntext_encoder: {train: false}", ["unet.train, text_encoder.train: both"]),
        (
            "text_encoder_2: {clip_skip: 1}",
            ["text_encoder_2.clip_skip: has no effect; text_encoder.clip_skip counts for"],
        ),
        (
            "method: hypernetwork\ntext_encoder_2: {lr: 1.0e-5}",
            ["text_encoder_2: has no effect with method: hypernetwork. Take it out."],
        ),
        ("unet: {train: false, only: [attention]}", ["unet.only: has no effect with unet.train: false"]),
        ("method: lora\ntext_encoder: {train_embeddings: false}", ["text_encoder.train_embeddings: has no effect"]),
        ("class_images: {prior_weight: 0.5}", ["class_images.prior_weight: has no effect, since no source has"]),
        (
            "train: {epochs: 3}\nunet: {epochs: 2}\ntext_encoder: {epochs: 1}",
            ["unet.epochs, text_encoder.epochs: nothing would train after epoch 2 of 3; set train.epochs to 2"],
        ),
        ("hypernetwork: {dropout: [0.1, 0, 0]}", ["hypernetwork: dropout begins with 0.1"]),
        ("method: lroa", ["method: Input should be 'full', 'dreambooth', 'lora',"]),
        ("hypernetwork: {layer_structure: [1, 2]}", ["hypernetwork: layer_structure is [1.0, 2.0]; it must begin"]),
    ],
)
def test_nothing_that_is_set_is_without_effect(write: Write, lines: str, expected: list[str]) -> None:
    found = problems(write(ONE + lines))
    assert len(found) == len(expected)
    for line, beginning in zip(found, expected, strict=True):
        assert line.startswith(beginning)


@pytest.mark.parametrize(
    ("lines", "rates", "formats"),
    [
        ("", (1e-6, 5e-7), ["safetensors"]),
        ("method: lora", (1e-4, 5e-5), ["safetensors"]),
        ("method: lora\nunet: {lr: 0.1}", (0.1, 5e-5), ["safetensors"]),
        ("unet: {lr: 0.1}\noptimizer: {lr: 0.0}", (0.0, 0.0), ["safetensors"]),
        ("method: hypernetwork", (None, None), ["pt"]),
        ("checkpoints: {formats: []}", (1e-6, 5e-7), []),
    ],
)
def test_what_depends_on_the_method_is_said_outright(
    write: Write, lines: str, rates: object, formats: list[str]
) -> None:
    config = load_config(write(ONE + lines))
    assert (config.unet.lr, config.text_encoder.lr) == rates
    assert config.checkpoints.formats == formats
    assert completed(config.plain()) == config.plain(), "saying it again changes nothing"


def test_one_rate_for_words_and_hypernetworks(write: Write) -> None:
    assert load_config(write(ONE + "method: hypernetwork\noptimizer: {lr: 0.5}")).hypernetwork.lr == 0.5
    words = "method: textual_inversion\ntextual_inversion: {words: [{token: <x>, init: dog}], lr: 0.25}"
    assert load_config(write(ONE + words)).textual_inversion.lr == 0.25


def test_settings_of_before_there_were_methods(write: Write) -> None:
    now = load_config(write(ONE)).plain()
    before = {key: section for key, section in now.items() if key not in ("method", "lora", "class_images")}
    before["unet"] = {"train": True, "lr": 1e-6}
    before["data"] = {**now["data"], "sources": [{"path": now["data"]["sources"][0]["path"], "loss_scale": 1.0}]}
    assert completed(before) == now
