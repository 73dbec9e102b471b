"""`everydream merge BASE ADAPTER... OUT`: adapters baked into a model."""

from collections.abc import Sequence
from pathlib import Path

from everydream.errors import ConfigError
from everydream.formats.files import DTYPES
from everydream.methods.merging import merge_adapter
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.tools.models.files import precision_of, require_new, write_as


def merge(base: str, adapters: Sequence[str], out: Path, precision: str | None, overwrite: bool) -> list[str]:
    """Write `base` with each adapter (`PATH` or `PATH:STRENGTH`) added to its weights; return what to tell.

    Raises FormatError for an adapter that does not fit, ConfigError for a strength that is no number.
    """
    chosen = [with_strength(adapter) for adapter in adapters]
    require_new(out, overwrite, Path(base), *(path for path, _ in chosen))
    family = load(ModelSettings(path=base))
    told = []
    for path, strength in chosen:
        num = merge_adapter(family, path, strength)
        told.append(f"Added {path.name} at {strength:g} to {num} layers.")
    precision = precision or (precision_of(Path(base)) if Path(base).exists() else "fp32")
    return [*told, f"Wrote {write_as(family, out, DTYPES[precision])} in {precision}."]


def with_strength(text: str) -> tuple[Path, float]:
    """Return (path, strength) of `PATH` or `PATH:STRENGTH`. Raises ConfigError for a path that is not there."""
    path, _, number = text.rpartition(":")
    if Path(text).exists() or not path:
        found, strength = Path(text), 1.0
    else:
        try:
            found, strength = Path(path), float(number)
        except ValueError as error:
            raise ConfigError(f"{text}: there is no such file, and {number!r} is no strength such as 0.8.") from error
    if not adapter_file(found).is_file():
        raise ConfigError(f"There is no adapter at {found.absolute()}.")
    return adapter_file(found), strength


def adapter_file(path: Path) -> Path:
    """Return the file of an adapter that may be a folder, as diffusers and peft write them."""
    names = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
    return next((path / name for name in names if (path / name).is_file()), path)
