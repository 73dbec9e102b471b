"""FFHQ: its JSON (URLs with digest, licence and author), a folder of its images, or a mirror as Parquet.

The set has no captions: `captions.text` gives one. The pictures' licences differ; those under CC BY want the author
named, so licence, author and title travel with each row that knows them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scrapers.errors import ScrapeError
from scrapers.filters import Needs
from scrapers.settings import SourceSettings
from scrapers.sources.columns import as_side, as_text, as_url, missing, parse, unknown_fields
from scrapers.sources.ffhq_json import read_entries
from scrapers.sources.files import SourceFile, find_files, is_remote, local_path, natural
from scrapers.sources.protocol import Part, Parts, raise_problems
from scrapers.sources.tables import BATCH_ROWS, TablePart
from scrapers.sources.urls import open_parquet
from scrapers.types import Row

_FOLDERS = {"image": "images1024x1024", "thumbnail": "thumbnails128x128", "in_the_wild": "in-the-wild-images"}
_PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
_LISTS = (".json", ".jsonc", ".parquet")
_JSON_NAME = "ffhq-dataset-v2.json"
_DRIVE = (
    "FFHQ's own pictures lie on Google Drive, which soon answers that its quota is used up; a folder or a Parquet "
    "mirror is quicker and more polite"
)
_FIELDS = {"url", "width", "height", "licence", "licence_url", "author", "title", "md5"}


def open_ffhq(settings: SourceSettings, needs: Needs) -> Parts:
    """Open FFHQ in any of its forms."""
    raise_problems(unknown_fields(settings.columns))
    folders = [pattern for pattern in settings.files if _is_folder_of_pictures(pattern)]
    parts: list[Part] = []
    problems: list[str] = []
    for pattern in settings.files:
        if pattern in folders:
            parts.append(FolderPart(local_path(pattern), settings.part, needs, has_brothers=len(folders) > 1))
            continue
        try:
            parts += [_list_part(file, settings, needs) for file in find_files([pattern], _LISTS)]
        except ScrapeError as error:
            problems.append(str(error))
    raise_problems(problems)
    notes = [_DRIVE] if any(isinstance(part, JsonPart) for part in parts) else []
    return Parts("ffhq", f"part {settings.part}; columns {sorted(settings.columns.items())}", parts, notes)


def _list_part(file: SourceFile, settings: SourceSettings, needs: Needs) -> Part:
    if file.ending == ".parquet":
        return TablePart(file, open_parquet, settings, needs, has_pictures=True)
    return JsonPart(file, settings.part, needs)


def _is_folder_of_pictures(pattern: str) -> bool:
    return not is_remote(pattern) and local_path(pattern).is_dir() and any(_pictures(local_path(pattern)))


def _pictures(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in _PICTURES and not path.name.startswith(".") and path.is_file():
            yield path


class JsonPart:
    """`ffhq-dataset-v2.json`: an object of 70,000 entries, 267 MB, read piece by piece."""

    def __init__(self, file: SourceFile, part: str, needs: Needs) -> None:
        self.name = file.name
        self.identity = file.identity
        self.is_near = file.is_local
        self.num_rows: int | None = None
        self.notes: list[str] = []
        self._file = file
        self._part = part
        self._needs = needs

    def check(self) -> list[str]:
        """Look at the first entry."""
        problems, self.notes = missing(_FIELDS, self._needs, self.name, "is FFHQ's list, which has none", False)
        try:
            entry = next(read_entries(self._file), None)
        except ScrapeError as error:
            return [*problems, str(error)]
        if entry is None or not _section(entry[1], self._part):
            problems.append(f"{self._file.path}: no `{self._part}` in its first entry; "
                            f"is it {_JSON_NAME}?")  # fmt: skip
        return problems

    def rows(self, number: int, start: int) -> Iterator[list[Row]]:
        """Yield its rows from position `start` on; the row at position 0 has the number `number`."""
        batch: list[Row] = []
        position = 0
        for key, entry in read_entries(self._file):
            if position >= start:
                batch.append(_row_of(entry, self._part, number + position, f"{self.name}:{key}"))
            position += 1
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
        if batch:
            yield batch
        self.num_rows = position


def _row_of(entry: object, part: str, number: int, where: str) -> Row:
    section, metadata = _section(entry, part), _section(entry, "metadata")
    sides = section.get("pixel_size")
    width, height = sides if isinstance(sides, list) and len(sides) == 2 else (None, None)
    return Row(
        number, where, as_url(section.get("file_url")), width=as_side(width), height=as_side(height),
        licence=as_text(metadata.get("license")), licence_url=as_text(metadata.get("license_url")),
        author=as_text(metadata.get("author")), title=as_text(metadata.get("photo_title")),
        md5=parse("md5", [section.get("file_md5")])[0],
    )  # fmt: skip


def _section(entry: object, name: str) -> dict[str, Any]:
    found = entry.get(name) if isinstance(entry, dict) else None
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class _Known:
    """What the JSON says of one picture."""

    path: str
    row: Row


class FolderPart:
    """A folder of FFHQ's pictures, and their credits where FFHQ's JSON lies in it.

    The digest is asked for only of files at the path that the JSON names: a mirror's smaller copies are called alike.
    """

    def __init__(self, folder: Path, part: str, needs: Needs, has_brothers: bool) -> None:
        self.name = folder.name or str(folder)
        self.is_near = True
        self.notes: list[str] = []
        self._folder = folder
        self._part = part
        self._needs = needs
        self._prefix = f"ffhq/{self.name}" if has_brothers else "ffhq"
        others = set(_FOLDERS.values()) - {_FOLDERS[part]}
        paths = [path for path in _pictures(folder) if not others & set(path.relative_to(folder).parts)]
        self._paths = sorted(paths, key=lambda path: natural(path.relative_to(folder).as_posix()))
        self.num_rows: int | None = len(self._paths)
        facts = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in self._paths)
        self.identity = hashlib.sha256(facts.encode("utf-8", "backslashreplace")).hexdigest()

    def check(self) -> list[str]:
        """Return what a folder cannot give."""
        has = _FIELDS if (self._folder / _JSON_NAME).is_file() else {"url"}
        problems, self.notes = missing(has, self._needs, self.name, "is a folder of images, which has none", False)
        return problems

    def rows(self, number: int, start: int) -> Iterator[list[Row]]:
        """Yield its rows from position `start` on; the row at position 0 has the number `number`."""
        known = self._read_known()
        for first in range(start, len(self._paths), BATCH_ROWS):
            batch = self._paths[first : first + BATCH_ROWS]
            yield [self._row(path, number + first + i, known) for i, path in enumerate(batch)]

    def _read_known(self) -> dict[str, _Known]:
        path = self._folder / _JSON_NAME
        if not path.is_file():
            return {}
        known = {}
        for _, entry in read_entries(SourceFile(str(path), path.stat().st_size)):
            file_path = as_text(_section(entry, self._part).get("file_path"))
            if file_path:
                known[Path(file_path).stem] = _Known(file_path, _row_of(entry, self._part, 0, ""))
        return known

    def _row(self, path: Path, number: int, known: dict[str, _Known]) -> Row:
        relative = path.relative_to(self._folder).as_posix().encode("utf-8", "backslashreplace").decode()
        row = Row(number, f"{self.name}/{relative}", f"{self._prefix}/{relative}", file=path)
        found = known.get(path.stem)
        if found is None:
            return row
        credit = replace(found.row, number=row.number, where=row.where, url=row.url, file=path)
        if path.as_posix().endswith(f"/{found.path}"):
            return credit
        return replace(credit, md5="", width=None, height=None)
