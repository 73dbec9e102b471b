"""Images named by their captions: `a red barn in a field_(1).jpg`, with a `.txt` where the name cannot hold it."""

import filecmp
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from scrapers.ledger import Ledger
from scrapers.names import key_of, name_of
from scrapers.settings import SinkSettings
from scrapers.types import Entry
from scrapers.whole import whole_file

FILES_PER_FOLDER = 10_000
"""A set of more images goes on in numbered folders, which file managers can still open."""


class FolderSink:
    """A set as a folder."""

    portion: int | None = None

    def __init__(self, folder: Path, ledger: Ledger, settings: SinkSettings) -> None:
        self._folder, self._ledger = folder, ledger

    def write(self, entries: Sequence[Entry]) -> list[str]:
        """Put each image under its caption; the sidecar comes first, so that no image is ever seen without it."""
        paths: list[str] = []
        made: list[Path] = []
        try:
            for entry in entries:
                target = self._place(entry, self._ledger.num_stored + len(paths))
                if not target.exists():
                    if not name_of(entry.caption).is_whole:
                        _write_text(target.with_suffix(".txt"), entry)
                        made.append(target.with_suffix(".txt"))
                    _link(entry.picture.file, target)
                    made.append(target)
                paths.append(target.relative_to(self._folder).as_posix())
        except OSError:
            for target in made:  # the ledger will not know of them
                target.unlink(missing_ok=True)
            raise
        return paths

    def _place(self, entry: Entry, place: int) -> Path:
        """Return where an image goes: the next number of its name that no other file has, ours or the user's."""
        name = name_of(entry.caption)
        volume = place // FILES_PER_FOLDER
        folder = self._folder / f"{volume:05d}" if volume else self._folder
        folder.mkdir(exist_ok=True)
        while True:
            number = self._ledger.use_name(key_of(name.stem))
            target = folder / name.numbered(number, entry.picture.extension)
            if _is_ours_to_take(target, entry, name.is_whole):
                return target

    def close(self) -> None:
        """Nothing more: the names are the index."""


def _is_ours_to_take(target: Path, entry: Entry, is_whole: bool) -> bool:
    """Whether a name is free, or holds what a run that was killed wrote there before it could tell the ledger."""
    sidecar = target.with_suffix(".txt")
    if os.path.lexists(sidecar) and (is_whole or not sidecar.is_file() or sidecar.read_bytes() != _sidecar(entry)):
        return False
    return not os.path.lexists(target) or (target.is_file() and filecmp.cmp(target, entry.picture.file, shallow=False))


def _sidecar(entry: Entry) -> bytes:
    return f"{entry.caption}\n".encode()


def _write_text(path: Path, entry: Entry) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(_sidecar(entry))


def _link(source: Path, target: Path) -> None:
    """Give a staged file its second name; the first one goes once the ledger knows of the second."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with whole_file(target) as partial:
            shutil.copyfile(source, partial)
