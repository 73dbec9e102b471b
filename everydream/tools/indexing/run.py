"""Scan, write, and say what came of it."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from everydream.config import RunConfig
from everydream.data.scan import require_usable, scan
from everydream.data.tables import write_table
from everydream.errors import DiskError
from everydream.formats.atomic import atomic_file
from everydream.training.display import Display
from everydream.types import Index

_REASONS = 10


def make_index(config: RunConfig, file: Path, engine: Literal["local", "ray"]) -> list[str]:
    """Write the index of a project's images to `file`, and return what to say. Raises DataError and DiskError."""
    if engine == "ray":
        from everydream.tools.indexing.ray_engine import surveyed_by_ray as survey  # noqa: PLC0415 - Ray is an extra
    with Display(True).counting("Looking at images") as show:
        found = scan(config.data, config.captions, show, survey if engine == "ray" else None)
    require_usable(found, config.data.strict)
    try:
        with atomic_file(file) as partial:
            write_table(found, partial, config.data, config.captions)
    except OSError as error:
        raise DiskError(
            f"{file} cannot be written ({error.strerror or error}); choose another place with --out"
        ) from error
    return [
        *_described(found),
        f"Written: {file} ({file.stat().st_size / 1e6:.1f} MB). Runs use it with data.index: {file}",
    ]


def _described(index: Index) -> Iterator[str]:
    yield f"{len(index):,} images in {len(index.names)} sources, {len(index.rejected):,} rejected"
    # Names and numbers differ from image to image; the kind of a reason does not.
    kinds = Counter(re.sub(r"\d+", "N", item.reason.rpartition(": ")[2])[:80] for item in index.rejected)
    for kind, count in kinds.most_common(_REASONS):
        yield f"  {count:,} x {kind}"
