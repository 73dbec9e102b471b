"""What a scan does in pieces: some files of a folder, or rows of a manifest, that nothing outside them bears on.

    files with their sizes and dates -> portions, each with a signature -> survey -> chunk

All that can change what is found goes into the signature: names, sizes and dates of the files, the settings that count,
the versions of what reads them. So what was found under the same signature once still holds (`data.kept`), on whichever
machine. Cuts follow from names, so a new file changes its own portion and no other.
"""

import hashlib
import json
import os
import posixpath
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import PIL

from everydream.data.checking import check
from everydream.data.columns import Chunk, pack
from everydream.data.folders import FolderSettings, Setting, Values
from everydream.data.manifests import Row
from everydream.data.pairing import MARKER
from everydream.data.remote import url_of
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.shards import stamp_of
from everydream.data.sources import Candidate, Lister, settings_folder, source_folders, source_root
from everydream.data.strings import Strings, TextBuffer
from everydream.data.texts import BadText
from everydream.data.walking import Folder, show
from everydream.types import Rejection
from pictures.decode import image_extensions, pillow_left_to_us

_VERSION = 1
"""Of what a survey finds in the same files: to be raised with every change of it."""
_MEAN_FILES = 64
_MOST_FILES = 256
_ROWS = 64
_REQUESTS = 16
_FRESH_NS = 2 * 10**9
"""Files written so short a time ago may be written again without another date."""
NOT_LOOKED_AT = {"path", "name", "repeats", "share", "choose", "pairs_with", "generate"}
"""Settings of a source that decide nothing about its images."""


@dataclass(frozen=True)
class Task:
    """What the portions of a source have in common."""

    number: int
    source: SourceSettings
    captions: CaptionSettings
    data: DataSettings
    full: bool = False
    """Whether images are decoded, or only their headers read."""

    def context(self) -> bytes:
        """Return what the signatures of this source's portions have in common; `full` comes on top."""
        data = self.data
        facts = [
            _VERSION, PIL.__version__, sorted(image_extensions()), data.masks, data.background,
            data.max_megapixels, data.flip_p, self.captions.model_dump(),
            self.source.model_dump(exclude=NOT_LOOKED_AT), str(source_root(self.source)),
        ]  # fmt: skip
        return json.dumps(facts, sort_keys=True).encode()


@dataclass(frozen=True)
class Portion:
    """Files of one folder, or rows of a manifest. Compact, for there are as many as a set is large."""

    source: int
    folder: str
    content: str
    """The names of the files, one a line end of `_END`; of a manifest JSON: [path, rows] each."""
    images: int
    signature: bytes
    """Empty where the files are too fresh to be known by their dates."""
    settings: Mapping[str, Values | str]
    """By folder: what counts there, or what is wrong with it."""


_END = "\0"


def portions_of(task: Task) -> Iterator[Portion | Rejection]:
    """List a source. `BadText` if it is a manifest that cannot be read as a whole."""
    yield from _of_manifest(task) if task.source.caption_rule == "manifest" else _of_folders(task)


def survey(task: Task, portion: Portion) -> Chunk:
    """Find out what there is to know of a portion's images; each is opened."""

    def values(folder: str) -> Values:
        found = portion.settings[folder]
        if isinstance(found, str):
            raise BadText(found)
        return found

    lister = Lister(task.number, task.source, task.captions, task.data.flip_p, values)
    listed: Iterator[Candidate | Rejection]
    if task.source.caption_rule == "manifest":
        listed = (lister.listed(path, [Row(*row) for row in rows]) for path, rows in json.loads(portion.content))
    else:
        listed = lister.files(portion.folder, portion.content.split(_END))
    with pillow_left_to_us():
        return pack(check(item, task.data, task.full) if isinstance(item, Candidate) else item for item in listed)


def _of_folders(task: Task) -> Iterator[Portion | Rejection]:
    root, context, latest_ns = source_root(task.source), task.context(), time.time_ns() - _FRESH_NS
    settings = _Settings(root)
    extensions = tuple(image_extensions())
    # Of made class images only as many as are asked for: another run may have wanted more in the same folder.
    is_made = task.source.generate is not None and (root / MARKER).is_file()
    folders = source_folders(task.source)
    for folder in _first_images(folders, task.source.generate) if is_made else folders:
        if folder.problem:
            yield Rejection(task.number, show(folder.path) or ".", folder.problem)
        if not folder.files:
            continue
        here = settings.of(settings_folder(root, posixpath.join(folder.path, folder.files[0])))
        common = b"\0".join([context, os.fsencode(folder.path), repr(here).encode("utf-8", "surrogateescape")])
        fresh = folder.newest_ns > latest_ns
        for files, stamps in _cut(folder):
            images = sum(name.lower().endswith(extensions) for name in files)
            if not images:
                continue
            joined = _END.join(files)
            facts = f"{joined}{_END}{_END}{_END.join(stamps)}".encode("utf-8", "surrogateescape")
            signature = b"" if "" in stamps or (fresh and _is_fresh(stamps, latest_ns)) else _signed(common, facts)
            yield Portion(task.number, folder.path, joined, images, signature, here)


def _first_images(folders: Iterator[Folder], wanted: int | None) -> Iterator[Folder]:
    """Yield folders without the images that come after the first `wanted` of all, by path."""
    found, extensions = list(folders), tuple(image_extensions())
    images = [(f.path, name) for f in found for name in f.files if name.lower().endswith(extensions)]
    off = set(sorted(images, key=lambda image: posixpath.join(*image))[wanted:])
    for folder in found:
        places = [n for n, name in enumerate(folder.files) if (folder.path, name) not in off]
        yield folder._replace(files=[folder.files[n] for n in places], stamps=[folder.stamps[n] for n in places])


def _cut(folder: Folder) -> Iterator[tuple[list[str], list[str]]]:
    """Cut a folder's files where the name says so, never between files whose names agree up to the first dot."""
    starts = [name.partition(".")[0] for name in folder.files]
    order = sorted(range(len(starts)), key=starts.__getitem__)
    files: list[str] = []
    stamps: list[str] = []
    before = None
    for place in order:
        start = starts[place]
        if start != before and files:
            ends = crc32(start.encode("utf-8", "surrogateescape")) % _MEAN_FILES == 0
            if ends or len(files) >= _MOST_FILES:
                yield files, stamps
                files, stamps = [], []
        before = start
        files.append(folder.files[place])
        stamps.append(folder.stamps[place])
    if files:
        yield files, stamps


def _is_fresh(stamps: Sequence[str], latest_ns: int) -> bool:
    if latest_ns == sys.maxsize:
        return False
    return any(int(date) > latest_ns for stamp in stamps for date in stamp.split()[1:])


def _signed(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


class _Settings:
    """The folder settings of a source, each in the form that portions carry."""

    def __init__(self, root: Path) -> None:
        self._read = FolderSettings(root)
        self._known: dict[str, Mapping[str, Values | str]] = {}

    def of(self, folder: str) -> Mapping[str, Values | str]:
        if folder not in self._known:
            self._known[folder] = {folder: self._values(folder)}
        return self._known[folder]

    def _values(self, folder: str) -> dict[str, Setting] | str:
        try:
            return dict(self._read.values(folder))
        except BadText as error:
            return str(error)


def _of_manifest(task: Task) -> Iterator[Portion | Rejection]:
    """Cut a manifest's images, sorted by path, into portions; rows of one image go together."""
    lister = Lister(task.number, task.source, task.captions, task.data.flip_p)
    paths, rows = TextBuffer(), TextBuffer()
    for path, row in lister.rows():
        if path is None:
            yield lister.no_image(row)
        else:
            paths.extend([path])
            rows.extend([json.dumps(row)])
    root, context, settings = source_root(task.source), task.context(), _Settings(source_root(task.source))
    for some in _by_path(paths.strings(), rows.strings()):
        # The marks of servers are no dates.
        latest_ns = time.time_ns() - _FRESH_NS if url_of(root) is None else sys.maxsize
        here: dict[str, Values | str] = {}
        for path, _ in some:
            if not posixpath.isabs(path) and (folder := settings_folder(root, path)) not in here:
                here.update(settings.of(folder))
        stamps = _remote_stamps(root, some) if url_of(root) else [s for path, _ in some for s in _stamps(root, path)]
        content = json.dumps(some)
        facts = f"{content}{_END}{_END.join(stamps)}{_END}{sorted(here.items())!r}"
        unknown = url_of(root) is not None and "" in stamps
        signature = (
            b""
            if unknown or _is_fresh(stamps, latest_ns)
            else _signed(context, facts.encode("utf-8", "surrogateescape"))
        )
        yield Portion(task.number, "", content, len(some), signature, here)


def _by_path(paths: Strings, rows: Strings) -> Iterator[list[tuple[str, list[Any]]]]:
    some: list[tuple[str, list[Any]]] = []
    for number in sorted(range(len(paths)), key=paths.raw):
        path = paths[number]
        if not some or some[-1][0] != path:
            if len(some) >= _ROWS:
                yield some
                some = []
            some.append((path, []))
        some[-1][1].append(json.loads(rows[number]))
    if some:
        yield some


def _remote_stamps(root: Path, some: Sequence[tuple[str, Any]]) -> list[str]:
    """Return what tells remote images of a manifest from others of their names."""

    def stamp(path: str) -> str:
        try:
            return stamp_of(root / path)
        except OSError:
            return ""

    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(stamp, [path for path, _ in some]))


def _stamps(root: Path, path: str) -> Iterator[str]:
    """Yield size and dates of an image of a manifest, and of its mask's file."""
    stem, _ = posixpath.splitext(path)
    for name in (path, f"{stem}.mask.png"):
        try:
            found = os.stat(root / name)  # noqa: PTH116 - as quick as it gets
            yield f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
        except OSError:
            yield ""
