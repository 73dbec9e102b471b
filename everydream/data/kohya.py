"""The `kohya` caption rule: a folder `40_tok class` gives each of its images 40 repeats and the caption `tok class`.

A sidecar goes before the folder's name. What captions mean on a visit (wildcards, separators) is in `data.drawing`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from everydream.data.captions import Caption, Siblings, first_with_text, read_sidecar
from everydream.data.texts import BadText, normalise

_NAME = re.compile(r"(\d+)_(.*)", re.DOTALL)
_SIDECARS = ("caption", "txt")


class Named(NamedTuple):
    """What a folder's name says."""

    repeats: int
    caption: str


def parse_folder(name: str) -> Named | None:
    """Return what a name of the form `<repeats>_<caption>` says; None if it is not one."""
    match = _NAME.fullmatch(name)
    return Named(int(match[1]), normalise(match[2])) if match else None


def kohya_caption(
    root: Path, levels: Sequence[str], folder: Path, shown: str, name: str, siblings: Siblings
) -> Caption:
    """Apply the rule to the image `name` in `folder`, which messages call `shown`.

    `levels` are the folders below the source's own, `root`. Raises BadText where none of them says how often.
    """
    named = parse_folder((*levels, root.name)[0]) if len(levels) < 2 else None
    if named is None:
        raise BadText(f"{_why_not(levels, root)}; kohya captions want folders named <repeats>_<caption>, such as "
                      "40_tok class, right in the source's folder, and images right in them")  # fmt: skip
    stem = name.rpartition(".")[0]
    sidecars = [siblings[stem, suffix] for suffix in _SIDECARS if (stem, suffix) in siblings]
    read = [read_sidecar(folder / file, f"{shown}/{file}" if shown else file, "choose") for file in sidecars]
    chosen, warnings = first_with_text(read)
    variants = chosen.variants or tuple(filter(None, (named.caption,)))
    return Caption(variants, 0, {}, tuple(warnings), named.repeats)


def _why_not(levels: Sequence[str], root: Path) -> str:
    if len(levels) > 1:
        return f"lies in {'/'.join(levels)}, a folder in a folder"
    return f"lies in the folder {levels[0]!r}" if levels else f"lies in the source's own folder {root.name!r}"
