"""The whole run's settings: one section per room, and the checks that span sections.

Read from YAML plus dotted overrides, validated as a whole before anything is loaded; every problem is
reported at once, with its key path and, for a misspelt key, the nearest one.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from everydream.caches.checks import cache_problems, training_text_problems
from everydream.caches.settings import CacheSettings
from everydream.data.excluding import ENDING
from everydream.data.pairing import source_problems
from everydream.data.remote import is_url
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.diffusion.settings import LossSettings, TimestepSettings
from everydream.errors import ConfigError
from everydream.evaluation.checks import monitor_problems
from everydream.evaluation.settings import ControlSettings, PreservationSettings, StopSettings, ValidationSettings
from everydream.methods.checks import changed_keys, method_problems
from everydream.methods.settings import (
    FORMATS,
    USUAL_RATES,
    HypernetworkSettings,
    LoraSettings,
    MethodName,
    TextEncoderSettings,
    TextualInversionSettings,
    UNetSettings,
)
from everydream.models.settings import ModelSettings, is_hub_id, is_written_as_folder
from everydream.problems import validate
from everydream.sampling.settings import ClassImageSettings, SampleSettings
from everydream.settings import Settings
from everydream.training.checks import (
    Part,
    compile_problems,
    training_problems,
    usual_optimizer,
    usual_rate,
    usual_schedule,
)
from everydream.training.memory import memory_problems, resolved
from everydream.training.settings import (
    CheckpointSettings,
    EmaSettings,
    LrScheduleSettings,
    MemorySettings,
    OptimizerSettings,
    TrainSettings,
)
from everydream.yaml_text import apply_override, parse_yaml

S = TypeVar("S", bound=Settings)


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
    method: MethodName = "full"
    """What trains and what is written: see docs/methods.md."""
    train: TrainSettings = TrainSettings()
    """How long and in what portions."""
    unet: UNetSettings = UNetSettings()
    """The UNet's part."""
    text_encoder: TextEncoderSettings = TextEncoderSettings()
    """The text encoder's part; the first one's, where the model has several."""
    text_encoder_2: TextEncoderSettings | None = None
    """The second text encoder's, where the model has one; null: as the first."""
    text_encoder_3: TextEncoderSettings | None = None
    """The third's; null: as the first. T5, whichever number it has, stays frozen without a section of its own."""
    lora: LoraSettings = LoraSettings()
    """Low-rank adapters."""
    textual_inversion: TextualInversionSettings = TextualInversionSettings()
    """New words."""
    hypernetwork: HypernetworkSettings = HypernetworkSettings()
    """Networks before attention."""
    class_images: ClassImageSettings = ClassImageSettings()
    """Prior preservation."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """The optimizer."""
    memory: MemorySettings = MemorySettings()
    """Room on the device."""
    lr_schedule: LrScheduleSettings = LrScheduleSettings()
    """How the learning rates move."""
    loss: LossSettings = LossSettings()
    """How the loss is made."""
    timesteps: TimestepSettings = TimestepSettings()
    """At which noise levels."""
    ema: EmaSettings = EmaSettings()
    """Moving average of the weights."""
    captions: CaptionSettings = CaptionSettings()
    """What happens to captions on each visit."""
    cache: CacheSettings = CacheSettings()
    """What is kept of images and captions, so that it is computed once."""
    checkpoints: CheckpointSettings = CheckpointSettings()
    """What is written, and when."""
    samples: SampleSettings = SampleSettings()
    """Pictures while training."""
    preservation: PreservationSettings = PreservationSettings()
    """What is kept of the base model, measured while training."""
    validation: ValidationSettings = ValidationSettings()
    """What is learned beyond the training images."""
    control: ControlSettings = ControlSettings()
    """Pictures that show bleeding and copying."""
    stop: StopSettings = StopSettings()
    """When a run ends early."""
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
    return _with_own_list(resolve(raw, path, problems, to_train), path)


def _with_own_list(config: RunConfig, path: Path) -> RunConfig:
    """Return the config with the list of images switched off that lies beside its file, if it names none itself."""
    beside = excluded_beside(path)
    if config.data.exclude is not None or not beside.exists():
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"exclude": str(beside)})})


def excluded_beside(path: Path) -> Path:
    """Return where the list of images switched off is looked for, and written, unless data.exclude names it."""
    return path.with_name(path.stem + ENDING)


def resolve_saved(raw: dict[str, Any], checkpoint: Path, overrides: list[str] | None = None) -> RunConfig:
    """Validate the settings that a checkpoint carries, with overrides."""
    problems = [problem for item in overrides or [] if (problem := apply_override(raw, item))]
    # Relative paths were relative to where the run was started, which is most likely above its folder.
    return resolve(raw, checkpoint, problems, places=list(checkpoint.absolute().parents)[:5])


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's settings with the values of keys that came later, as they were in effect then."""
    config, _ = validate(RunConfig, saved)
    return _with_usual_values(config).plain() if config is not None else saved


def resolve(
    raw: dict[str, Any],
    source: Path,
    problems: list[str] | None = None,
    to_train: bool = False,
    places: list[Path] | None = None,
) -> RunConfig:
    """Validate raw settings; paths are looked for in the working directory, then in `places` (beside `source`)."""
    problems = list(problems or [])
    config, found = validate(RunConfig, raw)
    problems += found
    if config is not None:
        # Of sources that are at fault themselves, parts were put aside: what they name is not there to be found.
        whole = not any(problem.startswith("data.sources") for problem in problems)
        problems += source_problems(config.data.sources) if whole else []
        problems += _cross_checks(config)
        if not any(problem.startswith("method:") for problem in problems):
            problems += method_problems(config, config.checkpoints.formats or (), config.train.epochs)
            problems += _class_checks(config)
        config = _with_found_paths(config, places or [source.absolute().parent])
        config = _with_usual_values(config)
        names = ("unet", "text_encoder", "text_encoder_2", "text_encoder_3") if config.method in USUAL_RATES else ()
        parts: dict[str, Part] = {name: part for name in names if (part := getattr(config, name)) is not None}
        problems += training_problems(config.optimizer, config.lr_schedule, config.ema, parts)
        problems += memory_problems(config.memory, config.train, config.optimizer)
        problems += compile_problems(config.train, resolved(config.memory, config.train, config.optimizer))
        problems += _missing_paths(config, to_train)
    if problems or config is None:
        count = f"{len(problems)} problem" + ("s" if len(problems) != 1 else "")
        raise ConfigError(f"{source} has {count}; nothing was started:\n" + "\n".join(f"  {p}" for p in problems))
    return config


def _cross_checks(config: RunConfig) -> list[str]:
    """Return the problems that no section can see by itself."""
    problems = []
    shares = sum(source.share or 0.0 for source in config.data.sources)
    if shares >= 1.0:
        problems.append(
            f"data.sources: the shares sum to {shares:g}; they are parts of all draws, so leave room below 1."
        )
    elif all(source.share is not None for source in config.data.sources):
        problems.append(
            "data.sources: every source has a share, so there is nothing to be a share of; give one repeats or choose."
        )
    smallest = min(resolution for resolution, _ in config.data.resolutions)
    if config.data.step_at(smallest) > smallest:
        problems.append(
            f"data.bucket_step: {config.data.bucket_step} is larger than data.resolution {smallest}; "
            f"use a divisor of it, e.g. {max(8, smallest // 8 // 8 * 8)}."
        )
    if config.loss.unmasked_weight and config.data.masks == "none":
        problems.append("loss.unmasked_weight: has no effect with data.masks: none.")
    if config.checkpoints.formats == [] and config.checkpoints.provenance != "full":
        problems.append(
            "checkpoints.provenance: has no effect with checkpoints.formats: [], since nothing is exported."
        )
    if config.timesteps.stratified and config.train.batch_size * config.train.gradient_accumulation == 1:
        problems.append("timesteps.stratified: has no effect with one image a step; there is nothing to spread.")
    problems += cache_problems(config.cache, config.data, config.captions)
    texts = {name: getattr(config, name) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")}
    problems += training_text_problems(config.cache, config.method, texts)
    problems += monitor_problems(
        config.data.sources, config.preservation, config.validation, config.control, config.stop,
        config.checkpoints.keep_best, config.checkpoints.formats,
    )  # fmt: skip
    if "wandb" in config.trackers and not _importable("wandb"):
        problems.append(
            'trackers: wandb is not installed; pip install -c constraints.txt -e ".[wandb]", or take it out.'
        )
    return problems


def _class_checks(config: RunConfig) -> list[str]:
    """Return what is said of class images without any."""
    if any(source.role == "class" for source in config.data.sources):
        return []
    problems = [
        f"{key}: has no effect, since no source has role: class."
        for key in changed_keys("class_images", config.class_images)
    ]
    if config.method == "dreambooth":
        problems.append(
            "data.sources: method: dreambooth preserves what the model knows of a class, and no source has role: "
            "class. Add one, with its images or with `generate: 200` and a label, or use method: full."
        )
    return problems


def _with_usual_values(config: RunConfig) -> RunConfig:
    """Return the config with what depends on method and optimizer said outright: rates, formats, prior weights."""
    one_rate, wanted = config.optimizer.lr, usual_rate(config.optimizer)

    def rated(section: S, usual: float | None) -> S:
        given: float | None = getattr(section, "lr")  # noqa: B009 - four classes that have it
        if wanted is not None and given == type(section).model_fields["lr"].default:
            given = wanted
        rate = one_rate if one_rate is not None else given if given is not None else usual
        return section.model_copy(update={"lr": rate})

    unet, text_encoder = USUAL_RATES.get(config.method, (None, None))
    prior, formats = config.class_images.prior_weight, config.checkpoints.formats
    weights = {"class": prior, "training": 1.0, "ground_truth": 1.0}
    sources = [
        source if source.loss_scale is not None else source.model_copy(update={"loss_scale": weights[source.role]})
        for source in config.data.sources
    ]
    usual = FORMATS[config.method][0]
    if config.method in ("full", "dreambooth") and is_written_as_folder(config.model.path):
        usual = "diffusers"
    usual_formats = [usual] if formats is None else formats
    update: dict[str, Any] = {
        "checkpoints": config.checkpoints.model_copy(update={"formats": usual_formats}),
        "data": config.data.model_copy(update={"sources": sources}),
        "optimizer": usual_optimizer(config.optimizer),
        "lr_schedule": usual_schedule(config.lr_schedule, config.optimizer),
    }
    if config.method in USUAL_RATES:
        update |= {"unet": rated(config.unet, unet), "text_encoder": rated(config.text_encoder, text_encoder)}
        others = {"text_encoder_2": config.text_encoder_2, "text_encoder_3": config.text_encoder_3}
        update |= {part: rated(section, text_encoder) for part, section in others.items() if section is not None}
    else:
        update[config.method] = rated(getattr(config, config.method), None)
    return config.model_copy(update=update)


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
            "cache": config.cache.model_copy(
                update={"folder": config.cache.folder and str(Path(config.cache.folder).expanduser())}
            ),
            "model": config.model.model_copy(
                update={"path": found(config.model.path), "config": found(config.model.config)}
            ),
            "data": config.data.model_copy(
                update={"sources": sources, "exclude": found(config.data.exclude), "index": found(config.data.index)}
            ),
            "samples": config.samples.model_copy(update={"prompts": found(config.samples.prompts)}),
            "preservation": config.preservation.model_copy(update={"path": found(config.preservation.path)}),
            "validation": config.validation.model_copy(update={"path": found(config.validation.path)}),
            "control": config.control.model_copy(update={"features": found(config.control.features)}),
        }
    )


def _missing_paths(config: RunConfig, to_train: bool) -> list[str]:
    """Return a line for each path that is not there."""
    named = [
        (f"data.sources.{n}.path", source.path)
        for n, source in enumerate(config.data.sources)
        # What is missing of class images is made, and the scan asks servers and counts shards.
        if source.generate is None and not (source.path and (is_url(source.path) or source.path.endswith("}.tar")))
    ]
    named += [("data.exclude", config.data.exclude or ""), ("data.index", config.data.index or "")]
    named += [("preservation.path", config.preservation.path or ""), ("validation.path", config.validation.path or "")]
    if to_train:
        named += [("samples.prompts", config.samples.prompts or ""), ("model.config", config.model.config or "")]
        named += [("control.features", config.control.features or "")]
        named += [("model.path", config.model.path)] if not is_hub_id(config.model.path) else []
    return [f"{key}: there is nothing at {Path(p).absolute()}" for key, p in named if p and not Path(p).exists()]
