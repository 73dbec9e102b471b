"""Images that are switched off: a list of names, so that nothing is moved or deleted.

One `source/path` a line, as reports name images; lines that begin with `#` are comments. Everything else stays where it
is, so an image is switched on again by taking its line out.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

from everydream.data.texts import BadText, read_text
from everydream.errors import DataError

ENDING = ".excluded.txt"
"""After the stem of the config: the list that counts where data.exclude names none."""
_HEAD = "# Images that are switched off, one source/path a line; everydream studio writes this list."


class Named(Protocol):
    """What a scan finds: an image, or why there is none."""

    @property
    def source(self) -> int:
        """The number of its source."""

    @property
    def path(self) -> str:
        """Relative to the source's folder."""


T = TypeVar("T", bound=Named)


class Parted(NamedTuple, Generic[T]):
    """What was found, with the list applied."""

    kept: list[T]
    off: list[str]
    """Names that the list has, in the order in which they were found."""
    unknown: list[str]
    """Lines that name nothing that was found."""


def read_excluded(path: str | None) -> list[str]:
    """Return the names in a list; none without one. Raises DataError if it cannot be read."""
    if path is None:
        return []
    try:
        # Not splitlines(): a file name may hold one of Unicode's other line ends.
        lines = [line.strip() for line in read_text(Path(path), path).split("\n")]
    except BadText as error:
        raise DataError(
            f"data.exclude: {error}. Without the list, images that were switched off would be trained on; repair the "
            "file, or delete it to switch all images on."
        ) from error
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def switched(text: str | None, names: Iterable[str], off: bool) -> str:
    """Return the text of a list (None: there is none yet) with these names in it, or without; all else stays."""
    wanted = set(names)
    lines = [_HEAD] if text is None else text.rstrip("\n").split("\n")
    lines = [line for line in lines if line.strip() not in wanted]
    return "\n".join([*lines, *(sorted(wanted) if off else []), ""])


def can_be_listed(name: str) -> bool:
    """Tell whether a line can say this name."""
    return name == name.strip() and "\n" not in name and not name.startswith("#")


def parted(found: Iterable[T], sources: Sequence[str], excluded: Collection[str]) -> Parted[T]:
    """Take the excluded images out of what was found; `sources` are the names of the sources, by number."""
    wanted, kept, off = set(excluded), [], []
    for item in found:
        name = f"{sources[item.source]}/{item.path}"
        if wanted and name in wanted:
            off.append(name)
        else:
            kept.append(item)
    return Parted(kept, off, sorted(wanted - set(off)))
