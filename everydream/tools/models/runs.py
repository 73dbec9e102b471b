"""What a run has left: its settings, its exports, the model as one of them has it."""

from collections.abc import Callable
from pathlib import Path

import yaml

from everydream.config import RunConfig, completed
from everydream.errors import ConfigError
from everydream.methods.hypernetwork import load_into
from everydream.methods.merging import merge_adapter
from everydream.methods.textual_inversion import learn_files
from everydream.models.family import Family
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.tools.models.files import to_fastest_device
from everydream.tools.models.merge import adapter_file
from everydream.training.export import exports_in

WHOLE = ("full", "dreambooth")
"""Methods whose exports are models; those of the others are added to the run's base model."""


def settings_of(run: Path) -> RunConfig:
    """Return the settings of a run. Raises ConfigError if the folder is none; its images need not be there any more."""
    path = run / "config.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        return RunConfig.model_validate(completed(raw))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--run: {run} is no run folder of EveryDream: {path.name} cannot be read ({error})."
        ) from error


def exports_of(run: Path, project: str, format_name: str) -> list[tuple[int, Path]]:
    """Return (step, path) of a run's exports in one format, the earliest first."""
    exports = exports_in(run / "checkpoints", project)
    return [
        (step, path)
        for step in sorted(exports)
        for path in exports[step]
        if (path.is_dir() if format_name == "diffusers" else path.suffix == f".{format_name}")
    ]


def exports_by_step(run: Path, config: RunConfig) -> dict[int, list[Path]]:
    """Return the files of each export, the earliest first, in the run's first format; of several words, all."""
    formats = config.checkpoints.formats or ["safetensors"]
    found: dict[int, list[Path]] = {}
    for step, path in exports_of(run, config.project, formats[0]):
        found.setdefault(step, []).append(path)
    return found


def with_export(config: RunConfig, path: Path | None) -> Family:
    """Return the model as an export of the config's method has it, on the fastest device; None: the base model."""
    whole = path is not None and config.method in WHOLE
    model = ModelSettings(path=str(path)) if whole else config.model
    family = load(model, config.text_encoder.clip_skip, config.text_encoder.chunks)
    if path is not None and not whole:
        _ADDERS[config.method](family, path)
    to_fastest_device(family)
    return family


_ADDERS: dict[str, Callable[[Family, Path], object]] = {
    "lora": lambda family, path: merge_adapter(family, adapter_file(path)),
    "textual_inversion": lambda family, path: learn_files(family, [path]),
    "hypernetwork": lambda family, path: load_into(family, path, 1.0),
}
