"""`everydream convert IN OUT`: the same model in another format."""

from pathlib import Path

from everydream.formats.files import DTYPES, is_safetensors, read_file
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.tools.models.files import (
    describe_contents,
    precision_of,
    precision_of_tensors,
    require_new,
    write_as,
)


def convert(source: Path, out: Path, precision: str | None, config: str | None, overwrite: bool) -> list[str]:
    """Write the model at `source` to `out`, in its own precision unless another is asked for; return what to tell.

    Raises FormatError if the source is no model of a known family, ConfigError if `out` is taken.
    """
    require_new(out, overwrite, source)
    told = []
    if source.is_file() and not is_safetensors(source):
        file = read_file(source)
        told.append(describe_contents(source, file.tensors, file.metadata, file.skipped))
        precision = precision or precision_of_tensors(file.tensors)
        del file
    family = load(ModelSettings(path=str(source), config=config))
    precision = precision or precision_of(source)
    path = write_as(family, out, DTYPES[precision])
    return [*told, f"Wrote {path}, a {family.name} model that predicts {family.objective.prediction}, in {precision}."]
