"""The whole run's settings: one section per room, and the checks that span sections.

Read from YAML plus dotted overrides, validated as a whole before anything is loaded; every problem is
reported at once, with its key path and, for a misspelt key, the nearest one.
"""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from everydream.data.settings import CaptionSettings, DataSettings
from everydream.errors import ConfigError
from everydream.evaluation.settings import PreservationSettings
from everydream.methods.full import TextEncoderSettings, UNetSettings
from everydream.models.settings import ModelSettings, is_hub_id
from everydream.sampling.settings import SampleSettings
from everydream.settings import Settings
from everydream.step import LossSettings
from everydream.training.settings import (
    CheckpointSettings,
    EmaSettings,
    LrScheduleSettings,
    OptimizerSettings,
    TrainSettings,
)
from everydream.yaml_text import apply_override, parse_yaml


class RunConfig(Settings):
    """Everything a run needs to know."""

    project: Annotated[str, Field(pattern=r'^[^\s/\\:*?"<>|.][^/\\:*?"<>|]*$')] = "project"
    """Name of the project; its runs go to `runs_dir/<project>-<timestamp>/`."""
    runs_dir: str = "runs"
    """Where run folders are made."""
    seed: Annotated[int, Field(ge=0)] = 555
    """Root of all randomness: two runs of one seed, config and machine are equal."""
    model: ModelSettings
    """The model to start from."""
    data: DataSettings
    """The images."""
    train: TrainSettings = TrainSettings()
    """How long and in what portions."""
    unet: UNetSettings = UNetSettings()
    """The UNet's part."""
    text_encoder: TextEncoderSettings = TextEncoderSettings()
    """The text encoder's part."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    lr_schedule: LrScheduleSettings = LrScheduleSettings()
    """How the learning rates move."""
    loss: LossSettings = LossSettings()
    """How the loss is made."""
    ema: EmaSettings = EmaSettings()
    """Moving average of the weights."""
    captions: CaptionSettings = CaptionSettings()
    """What happens to captions on each visit."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """What is written, and when."""
    samples: SampleSettings = SampleSettings()
    """Pictures while training."""
    preservation: PreservationSettings = PreservationSettings()
    """What is kept of the base model, measured while training."""
    trackers: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]
    """Where numbers and samples are sent besides metrics.jsonl; files go to the run folder."""

    def plain(self) -> dict[str, Any]:
        """Return the settings as plain JSON data."""
        plain: dict[str, Any] = json.loads(self.model_dump_json())
        return plain


def load_config(path: Path, overrides: list[str] | None = None, to_train: bool = False) -> RunConfig:
    """Read a YAML file and `a.b.c=value` overrides. Raises ConfigError listing every problem.

    `to_train`: the model and the prompts must be there too, not only the images.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The config {path.absolute()} cannot be read: {error}.") from error
    raw = parse_yaml(text, str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} should hold settings as `key: value` lines; see configs/ for examples.")
    problems: list[str] = []
    for override in overrides or []:
        problem = apply_override(raw, override)
        problems += [problem] if problem else []
    return resolve(raw, path, problems, to_train)


def resolve_saved(raw: dict[str, Any], checkpoint: Path, overrides: list[str] | None = None) -> RunConfig:
    """Validate the settings that a checkpoint carries, with overrides."""
    problems = [problem for item in overrides or [] if (problem := apply_override(raw, item))]
    # Relative paths were relative to where the run was started, which is most likely above its folder.
    return resolve(raw, checkpoint, problems, places=list(checkpoint.absolute().parents)[:5])


def resolve(
    raw: dict[str, Any],
    source: Path,
    problems: list[str] | None = None,
    to_train: bool = False,
    places: list[Path] | None = None,
) -> RunConfig:
    """Validate raw settings; paths are looked for in the working directory, then in `places` (beside `source`)."""
    problems = list(problems or [])
    config, found = _validate(raw)
    problems += found
    if config is not None:
        problems += _cross_checks(config)
        config = _with_found_paths(config, places or [source.absolute().parent])
        problems += _missing_paths(config, to_train)
    if problems or config is None:
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        raise ConfigError(f"{source} has {count}; nothing was started:\n" + "\n".join(f"  {p}" for p in problems))
    return config


def _validate(raw: dict[str, Any]) -> tuple[RunConfig | None, list[str]]:
    """Return (settings, problems). Values at fault are put aside so that the rest can still be checked."""
    try:
        return RunConfig.model_validate(raw), []
    except ValidationError as error:
        problems = [_describe(item) for item in error.errors()]
        places = [item["loc"] for item in error.errors()]
    rest = json.loads(json.dumps(raw, default=str))
    for place in places:
        _remove(rest, place)
    try:
        return RunConfig.model_validate(rest), problems
    except ValidationError:
        return None, problems


def _describe(item: Any) -> str:
    """Return one pydantic error as a line: key path, what is wrong, the value, a suggestion."""
    place = item["loc"]
    key = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        known = _fields_at(place[:-1])
        near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        elsewhere = [path for path in _all_keys() if path.rpartition(".")[2] == place[-1]]
        near = near or elsewhere[:1]
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}."
        return f"{key}: unknown key; {hint}"
    if item["type"] == "missing":
        return f"{key}: missing. {_docs_at(place)}"
    message = item["msg"].removeprefix("Value error, ")
    choices = item.get("ctx", {}).get("expected")
    if item["type"] == "literal_error" and choices and isinstance(item["input"], str):
        near = difflib.get_close_matches(
            item["input"], str(choices).replace("'", "").replace(" or ", ", ").split(", "), n=1
        )
        message += f"; did you mean {near[0]}?" if near else ""
    value = "" if isinstance(item["input"], (dict, list)) else f" (it is {item['input']!r})"
    return f"{key or 'config'}: {message}{value}"


def _model_at(place: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the settings class at a key path."""
    model: type[BaseModel] | None = RunConfig
    for part in place:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        model = settings_in(model.model_fields[part].annotation)
    return model


def settings_in(annotation: Any) -> type[BaseModel] | None:
    """Return the settings class inside an annotation such as list[SourceSettings]."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(settings_in, get_args(annotation)) if found is not None), None)


def _fields_at(place: tuple[int | str, ...]) -> list[str]:
    model = _model_at(place)
    return list(model.model_fields) if model is not None else []


def _all_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Return every key path there is."""
    paths = []
    for name, field in model.model_fields.items():
        inner = settings_in(field.annotation)
        paths += [f"{prefix}{name}"] if inner is None else _all_keys(inner, f"{prefix}{name}.")
    return paths


def _docs_at(place: tuple[int | str, ...]) -> str:
    model = _model_at(place[:-1])
    field = model.model_fields.get(str(place[-1])) if model is not None else None
    return (field.description or "") if field is not None else ""


def _remove(value: Any, place: tuple[int | str, ...]) -> None:
    """Take what stands at a key path out, as far as it is there, so that no other key path changes.

    Of an item in a list of sections only the path stays; of a list of plain values nothing.
    """
    holders = [value]
    for part in place[:-1]:
        try:
            holders.append(holders[-1][part])
        except (KeyError, IndexError, TypeError):
            return
    last = place[-1] if place else None
    if isinstance(holders[-1], list) and isinstance(last, int) and last < len(holders[-1]):
        item = holders[-1][last]
        if isinstance(item, dict):
            holders[-1][last] = {key: item[key] for key in item if key == "path"}
        else:
            _remove(value, place[:-1])
    elif isinstance(holders[-1], dict):
        holders[-1].pop(last, None)


def _cross_checks(config: RunConfig) -> list[str]:
    """Return the problems that no section can see by itself."""
    problems = []
    if not config.unet.train and not config.text_encoder.train:
        problems.append("unet.train, text_encoder.train: both are false, so nothing would train.")
    shares = sum(source.share or 0.0 for source in config.data.sources)
    if shares >= 1.0:
        problems.append(
            f"data.sources: the shares sum to {shares:g}; they are parts of all draws, so leave room below 1."
        )
    elif all(source.share is not None for source in config.data.sources):
        problems.append(
            "data.sources: every source has a share, so there is nothing to be a share of; give one repeats or choose."
        )
    if config.data.step > config.data.resolution:
        problems.append(
            f"data.bucket_step: {config.data.bucket_step} is larger than data.resolution {config.data.resolution}; "
            f"use a divisor of it, e.g. {max(8, config.data.resolution // 8 // 8 * 8)}."
        )
    preservation = config.preservation
    if preservation.path is not None and not preservation.images:
        problems.append(
            "preservation.images: 0, so nothing of preservation.path would be measured; say how many of its images, "
            "e.g. 16, or take the path out."
        )
    if (
        preservation.images
        and preservation.path is None
        and not any(source.role == "ground_truth" for source in config.data.sources)
    ):
        problems.append(
            f"preservation.images: {preservation.images} images are to be held out of ground truth, and no source has "
            "role: ground_truth. Give one that role, name a folder of captioned images to measure under "
            "preservation.path, or set this to 0."
        )
    if "wandb" in config.trackers and not _importable("wandb"):
        problems.append(
            'trackers: wandb is not installed; pip install -c constraints.txt -e ".[wandb]", or take it out.'
        )
    return problems


def _importable(name: str) -> bool:
    from importlib.util import find_spec  # noqa: PLC0415

    return find_spec(name) is not None


def _with_found_paths(config: RunConfig, places: list[Path]) -> RunConfig:
    """Return the config with each relative path that is not in the working directory looked for in `places`."""

    def found(path: str | None) -> str | None:
        if path is None or Path(path).expanduser().exists() or Path(path).is_absolute():
            return path if path is None else str(Path(path).expanduser())
        return next((str(place / path) for place in places if (place / path).exists()), path)

    sources = [source.model_copy(update={"path": found(source.path)}) for source in config.data.sources]
    return config.model_copy(
        update={
            "runs_dir": str(Path(config.runs_dir).expanduser()),
            "model": config.model.model_copy(
                update={"path": found(config.model.path), "config": found(config.model.config)}
            ),
            "data": config.data.model_copy(update={"sources": sources}),
            "samples": config.samples.model_copy(update={"prompts": found(config.samples.prompts)}),
            "preservation": config.preservation.model_copy(update={"path": found(config.preservation.path)}),
        }
    )


def _missing_paths(config: RunConfig, to_train: bool) -> list[str]:
    """Return a line for each path that is not there."""
    named = [(f"data.sources.{n}.path", source.path) for n, source in enumerate(config.data.sources)]
    named.append(("preservation.path", config.preservation.path or ""))
    if to_train:
        named += [("samples.prompts", config.samples.prompts or ""), ("model.config", config.model.config or "")]
        named += [("model.path", config.model.path)] if not is_hub_id(config.model.path) else []
    return [f"{key}: there is nothing at {Path(p).absolute()}" for key, p in named if p and not Path(p).exists()]
