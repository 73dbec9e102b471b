"""`everydream convert IN OUT`: the same model in another format."""

from pathlib import Path

from everydream.errors import ConfigError
from everydream.formats.files import DTYPES, is_safetensors, read_file, write_pickle
from everydream.formats.sharded import is_sharded, read_sharded
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.tools.models.files import (
    describe_contents,
    format_of,
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
    if is_sharded(source) and format_of(out) == "ckpt":
        return [_in_one_file(source, out, precision)]
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


def _in_one_file(source: Path, out: Path, precision: str | None) -> str:
    """Write a last.ckpt that is a folder as one file, with all that a resume needs."""
    if precision is not None:
        raise ConfigError("--dtype: a last.ckpt is copied as it is, or a resume would not be exact. Leave it out.")
    write_pickle(out, read_sharded(source))
    return f"Wrote {out}: all of {source}, model and training state, as one file."
