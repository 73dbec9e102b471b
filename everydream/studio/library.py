"""The images of a project as they are now, switched off or not, each looked at again when it changed."""

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from everydream.config import RunConfig, excluded_beside
from everydream.data.checking import Record, check_images, list_images
from everydream.data.columns import to_index
from everydream.data.excluding import parted, read_excluded
from everydream.data.pairing import unique_names
from everydream.data.settings import DataSettings
from everydream.data.sources import Candidate, list_source, source_root
from everydream.errors import ConfigError
from everydream.plan import Planned, plan_run
from everydream.studio.sidecars import Image
from everydream.types import Rejection

Found = Record | Rejection
Stamp = tuple[int, int]
"""Size and date of a file."""


class Library:
    """What a scan finds, by name (`source/path`), with what the list of images switched off says."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.config = config
        self.names = unique_names(config.data.sources)
        self.excluded = Path(config.data.exclude) if config.data.exclude else excluded_beside(path)
        self.found: dict[str, Found] = {}
        self.off: set[str] = set()
        self._stamps: dict[str, Stamp] = {}

    def look(self, progress: Callable[[int, int], None] | None = None) -> None:
        """List everything, and open what is new or changed. Raises DataError."""
        listed = list_images(self.config.data, self.config.captions)
        known = [item for item in listed if self._same_file(item)]
        fresh = [item for item in listed if not self._same_file(item)]
        data = self.config.data
        checked = [*check_images(fresh, data, progress), *self._checked_again(known, data)]
        self.found = {self.name(item): item for item in checked}
        self._stamps = {self.name(item): stamp for item in listed if (stamp := _stamp(item))}
        self.read_off()

    def look_at(self, names: Iterable[str]) -> None:
        """Look at some images again, whose captions changed."""
        paths: dict[int, set[str]] = {}
        for name in names:
            if (item := self.found.get(name)) is not None:
                paths.setdefault(item.source, set()).add(item.path)
        fresh_found: dict[str, Found] = {}
        for number, some in paths.items():
            source, config = self.config.data.sources[number], self.config
            listed = list_source(number, source, config.captions, config.data.flip_p, some)
            fresh = [item for item in listed if not self._same_file(item)]
            known = [item for item in listed if self._same_file(item)]
            checked = [*check_images(fresh, config.data), *self._checked_again(known, config.data)]
            fresh_found |= {self.name(item): item for item in checked}
        gone = {f"{self.names[number]}/{path}" for number, some in paths.items() for path in some}
        self.found = {name: item for name, item in self.found.items() if name not in gone} | fresh_found

    def twins(self, names: Iterable[str]) -> list[str]:
        """Return these names and those of the same images in other sources, which share their captions' files."""
        roots = [os.path.realpath(source_root(source)) for source in self.config.data.sources]

        def place(item: Found) -> str:
            return os.path.join(roots[item.source], item.path)  # noqa: PTH118 - a Path each would take long

        wanted = dict.fromkeys(names)
        places = {place(item) for name in wanted if (item := self.found.get(name)) is not None}
        return list(wanted | {name: None for name, item in self.found.items() if place(item) in places})

    def read_off(self) -> None:
        """Read the list of images switched off again. Raises DataError."""
        self.off = set(read_excluded(str(self.excluded) if self.excluded.exists() else None))

    def plan(self) -> Planned:
        """Return the plan of what is on, as a run would make it."""
        data, captions = self.config.data, self.config.captions
        items = sorted(self.found.values(), key=lambda item: (item.source, item.path))
        parts = parted(items, self.names, self.off)
        index = to_index(data, captions, parts.kept, parts.off, parts.unknown)
        exclude = str(self.excluded) if self.excluded.exists() else None
        config = self.config.model_copy(update={"data": data.model_copy(update={"exclude": exclude})})
        return plan_run(config, check=False, index=index)

    def name(self, item: Candidate | Found) -> str:
        """Return what an image is called in reports and addresses."""
        return f"{self.names[item.source]}/{item.path}"

    def image(self, name: str) -> Image:
        """Return an image, with the captions that it has now. Raises ConfigError."""
        (item,) = self.records([name]).values()
        captions = item.candidate.captions if isinstance(item, Record) else ()
        return Image(name, self.config.data.sources[item.source], item.path, captions)

    def file(self, item: Found) -> Path:
        """Return an image's file."""
        return (
            item.candidate.file
            if isinstance(item, Record)
            else source_root(self.config.data.sources[item.source]) / item.path
        )

    def records(self, names: Collection[str] | None) -> dict[str, Found]:
        """Return images by their names, all that are usable for None. Raises ConfigError for a name that is none."""
        if names is None:
            return {name: item for name, item in self.found.items() if isinstance(item, Record)}
        if unknown := [name for name in names if name not in self.found]:
            raise ConfigError(f"There is no image {unknown[0]!r} here (any more); look again.")
        return {name: self.found[name] for name in names}

    def _same_file(self, item: Candidate | Rejection) -> bool:
        """Tell whether an image's file is as it was when it was opened."""
        stamp = _stamp(item)
        return stamp is not None and self._stamps.get(self.name(item)) == stamp

    def _checked_again(self, listed: list[Candidate | Rejection], data: DataSettings) -> list[Found]:
        """Check images whose files have not changed: what could not be decoded still cannot, the others by header."""
        damaged = {
            name: item for name, item in self.found.items()
            if isinstance(item, Rejection) and name in self._stamps
        }  # fmt: skip
        sound = [item for item in listed if self.name(item) not in damaged]
        kept = [damaged[self.name(item)] for item in listed if self.name(item) in damaged]
        return [*kept, *check_images(sound, data.model_copy(update={"check": "headers"}))]


def _stamp(item: Candidate | Rejection) -> Stamp | None:
    """Return size and date of a listed image; None where it was not to be opened."""
    if isinstance(item, Rejection):
        return None
    try:
        found = item.file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
