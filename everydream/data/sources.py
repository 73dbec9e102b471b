"""The text half of the scan: which files a source has, what they are called, which settings count for each.

Reads directories, sidecars, setting files and manifests, never an image.
"""

import os
import posixpath
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from everydream.data.captions import Caption, Siblings, index_siblings, lint, read_caption
from everydream.data.folders import FolderSettings, Resolved, resolve
from everydream.data.joepenna import joepenna_caption
from everydream.data.kohya import kohya_caption
from everydream.data.manifests import SUFFIXES, Row, read_manifest
from everydream.data.masks import SUFFIX as MASK
from everydream.data.masks import masks_among
from everydream.data.pairing import MARKER
from everydream.data.settings import CaptionSettings, SourceSettings
from everydream.data.shards import SUFFIX as SHARD
from everydream.data.shards import list_shard, shard_of
from everydream.data.texts import BadText, normalise
from everydream.types import Rejection
from pictures.decode import image_extensions


@dataclass(frozen=True)
class Candidate:
    """An image file with its captions and settings, not opened yet."""

    source: int
    path: str
    """Relative to the source's folder; absolute for a manifest's image outside it."""
    file: Path
    captions: tuple[str, ...]
    resolved: Resolved
    warnings: tuple[str, ...]
    grammar: bool
    """Whether the captions are written in kohya's grammar."""
    mask: str = ""
    """Path of its mask, as `path`; "" if it has none."""


class Folder(NamedTuple):
    """One folder of a source: its path relative to the root ("" is the root) and its visible files."""

    path: str
    files: list[str]
    problem: str = ""


REMOVED = "multiply is 0 in "
"""How the reason begins where the user took images out on purpose."""

_WHY_NO_CAPTION = {
    "everydream": "no text before the first `_` of its name, and no sidecar",
    "kohya": "no text after the number in its folder's name, and no sidecar",
}
"""By caption rule; with the others every image has a caption."""


def source_root(source: SourceSettings) -> Path:
    """Return the absolute folder that the source's paths are relative to; the source must have a path."""
    path = Path(os.path.abspath(_path(source)))  # noqa: PTH100 - links stay as the user wrote them
    return path.parent if source.caption_rule == "manifest" else path


def _path(source: SourceSettings) -> Path:
    assert source.path is not None, "a source without a path has no files yet"
    return Path(source.path).expanduser()


def source_problem(source: SourceSettings) -> str | None:
    """Return why a source cannot be read at all, or None."""
    path = _path(source)
    if not path.exists():
        return f"{source.path}: does not exist (from {Path.cwd()})"
    if source.caption_rule == "manifest":
        return f"{source.path}: is a folder; give the manifest file in it" if path.is_dir() else None
    if not path.is_dir():
        hint = "; set captions: manifest to read it as a manifest" if path.suffix.lower() in SUFFIXES else ""
        return f"{source.path}: is a file, not a folder of images{hint}"
    return None if os.access(path, os.R_OK | os.X_OK) else f"{source.path}: no permission to list it"


def has_grammar(source: SourceSettings) -> bool:
    """Tell whether a source's captions are written in kohya's grammar."""
    return source.caption_rule == "kohya"


def list_source(
    number: int, source: SourceSettings, captions: CaptionSettings, flip_p: float, only: Container[str] | None = None
) -> list[Candidate | Rejection]:
    """Return every image of a source, sorted by path, as something to open or as a rejection with its reason.

    Of a folder, `only` the images of these paths, if they are given. `BadText` if the source is a manifest that cannot
    be read as a whole.
    """
    lister = _Lister(number, source, captions, flip_p)
    listed = lister.manifest() if source.caption_rule == "manifest" else lister.folders(only)
    found = sorted(listed, key=lambda item: item.path)
    # Of made class images only as many as are asked for: another run may have wanted more in the same folder.
    is_made = source.generate is not None and (source_root(source) / MARKER).is_file()
    return found[: source.generate] if is_made else found


def walk(root: Path) -> Iterator[Folder]:
    """Yield the folders of a tree, hidden names left out; links are followed unless they lead back up."""
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        path, above = pending.pop()
        try:
            stat = (root / path).stat()
            with os.scandir(root / path) as listing:
                entries = sorted((entry for entry in listing if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            yield Folder(path, [], f"the folder cannot be listed: {error.strerror or error}")
            continue
        identity = (stat.st_dev, stat.st_ino)
        if identity in above:
            continue
        folders = [entry.name for entry in entries if os.path.isdir(entry.path)]  # noqa: PTH112 - never raises
        pending += [(posixpath.join(path, name), above | {identity}) for name in reversed(folders)]
        files = [entry.name for entry in entries if _is_file(entry)]
        yield Folder(path, files)
        for name in files:
            if name.lower().endswith(SHARD):
                yield from _inside_shard(root, posixpath.join(path, name))


def _inside_shard(root: Path, path: str) -> Iterator[Folder]:
    """Yield the folders of a tar shard; mostly there is one."""
    try:
        names = list_shard(root / path)
    except OSError as error:
        yield Folder(path, [], f"the shard cannot be read: {error.strerror or error}")
        return
    by_folder: dict[str, list[str]] = {}
    for name in names:
        folder, file = posixpath.split(name)
        if not file.startswith("."):
            by_folder.setdefault(posixpath.join(path, folder) if folder else path, []).append(file)
    yield from (Folder(folder, sorted(files)) for folder, files in sorted(by_folder.items()))


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Regular files, and dangling links, which are to be reported; not pipes, on which reading would wait forever."""
    return os.path.isfile(entry.path) or not os.path.exists(entry.path)  # noqa: PTH110, PTH113 - never raise


def show(path: str) -> str:
    """Return a path that can be printed and encoded, whatever bytes the file system gave."""
    return path.encode("utf-8", "backslashreplace").decode()


class _Lister:
    """What the images of one source have in common."""

    def __init__(self, number: int, source: SourceSettings, captions: CaptionSettings, flip_p: float) -> None:
        self._number = number
        self._source = source
        self._captions = captions
        self._flip_p = flip_p
        self._root = source_root(source)
        self._settings = FolderSettings(self._root)

    def folders(self, only: Container[str] | None) -> Iterator[Candidate | Rejection]:
        """List a source that is a folder."""
        extensions = image_extensions()
        for folder in walk(self._root):
            if folder.problem:
                yield Rejection(self._number, show(folder.path) or ".", folder.problem)
            siblings, masks = index_siblings(folder.files), masks_among(folder.files)
            are_masks = set(masks.values())
            for name in folder.files:
                stem, extension = os.path.splitext(name)  # noqa: PTH122 - pathlib is slow on 10**6 names
                if name.lower().endswith(MASK) and name not in are_masks:
                    reason = "named as a mask is, and there is no image that it belongs to"
                    yield Rejection(self._number, show(posixpath.join(folder.path, name)), reason)
                elif (
                    extension.lower() in extensions and name not in are_masks
                    and (only is None or posixpath.join(folder.path, name) in only)
                ):  # fmt: skip
                    mask = posixpath.join(folder.path, masks[stem]) if stem in masks else ""
                    yield self._image(posixpath.join(folder.path, name), siblings, mask)

    def _image(self, path: str, siblings: Siblings, mask: str) -> Candidate | Rejection:
        folder, name = posixpath.split(path)
        try:
            _require_utf8(path)
            why_none = _WHY_NO_CAPTION.get(self._source.caption_rule, "")
            return self._candidate(path, self._caption(folder, name, siblings), why_none, mask)
        except BadText as error:
            return Rejection(self._number, show(path), show(str(error)))

    def _caption(self, folder: str, name: str, siblings: Siblings) -> Caption:
        """Apply the source's caption rule. Raises BadText."""
        source, path = self._source, posixpath.join(folder, name)
        settings_folder = self._settings_folder(path)
        levels = settings_folder.split("/") if settings_folder else []
        match source.caption_rule:
            case "label":
                return Caption((normalise(source.label or ""),), 0, {}, ())
            case "joepenna":
                # In a shard names are keys.
                stem = posixpath.splitext(name)[0] if settings_folder == folder else ""
                return joepenna_caption(levels, stem, source)
            case "kohya":
                return kohya_caption(self._root, levels, self._root / folder, folder, name, siblings)
            case _:
                return read_caption(self._root / folder, folder, name, siblings, source.lines)

    def _settings_folder(self, path: str) -> str:
        """Return the folder whose settings count for an image: its own, or that of the shard it lies in."""
        folder = posixpath.dirname(path)
        if SHARD in folder.lower() and (shard := shard_of(self._root / path)) is not None:
            folder = shard.parent.relative_to(self._root).as_posix().removeprefix(".")
        return folder

    def manifest(self) -> Iterator[Candidate | Rejection]:
        """List a `manifest` source; rows of one image are its variants."""
        source = self._source
        needed = not normalise(source.default_caption or "")
        manifest = _path(source)
        rows_of: dict[str, list[Row]] = {}
        for row in read_manifest(manifest, source.path_column, source.caption_column, caption_needed=needed):
            try:
                rows_of.setdefault(self._locate(row), []).append(row)
            except BadText as error:
                yield Rejection(self._number, show(row.path or manifest.name), f"{row.where}: {show(str(error))}")
        for path, rows in rows_of.items():
            yield self._listed(path, rows)

    def _locate(self, row: Row) -> str:
        """Return the path of a row's image; `BadText` if the row has none or it is not there."""
        if not row.path:
            raise BadText(row.problem)
        if row.path.lower().startswith(("http://", "https://")):
            raise BadText("is a URL, not a file; download the images first")
        for written in dict.fromkeys((row.path, row.path.strip(), row.path.replace("\\", "/"))):
            for path in (written, *(written + extension for extension in sorted(image_extensions()))):
                if os.path.isfile(self._root / path):  # noqa: PTH113 - never raises, even on names of 300 bytes
                    return self._inside(path)
        raise BadText("no such file")

    def _inside(self, path: str) -> str:
        root = self._root.as_posix()
        absolute = posixpath.normpath(posixpath.join(root, path))
        if absolute.startswith(f"{root.rstrip('/')}/"):
            return posixpath.relpath(absolute, root)
        if not posixpath.isabs(path):
            raise BadText("lies outside the manifest's folder; give its absolute path if that is meant")
        return absolute

    def _listed(self, path: str, rows: list[Row]) -> Candidate | Rejection:
        problems = [f"{row.where}: {row.problem}" for row in rows if row.problem]
        variants = tuple(text for row in rows for text in row.captions)
        try:
            if problems and not variants:
                raise BadText("; ".join(problems))
            beside = posixpath.splitext(path)[0] + MASK
            mask = beside if os.path.isfile(self._root / beside) else ""  # noqa: PTH113 - never raises
            return self._candidate(path, Caption(variants, 0, {}, tuple(problems)), f"{rows[0].where} has none", mask)
        except BadText as error:
            return Rejection(self._number, show(path), show(str(error)))

    def _candidate(self, path: str, caption: Caption, why_none: str, mask: str) -> Candidate | Rejection:
        """Put together what is known of an image; `BadText` if it has no caption or a setting is bad."""
        outside = posixpath.isabs(path)
        values = {**({} if outside else self._settings.values(self._settings_folder(path))), **caption.values}
        resolved = resolve(values, self._source, self._captions, self._flip_p)
        if resolved.repeats == 0:
            return Rejection(self._number, show(path), REMOVED + values["multiply"].file)
        if caption.repeats == 0:
            return Rejection(self._number, show(path), f"{REMOVED}its folder's name")
        resolved = replace(
            resolved,
            repeats=resolved.repeats * caption.repeats,
            keep_tags=max(resolved.keep_tags, caption.num_fixed),
        )
        variants, warnings = caption.variants, list(caption.warnings)
        if not variants:
            variants = tuple(filter(None, (normalise(self._source.default_caption or ""),)))
            warnings.append("no caption of its own: default_caption is used")
        elif self._source.caption_rule != "label":
            stem = posixpath.splitext(posixpath.basename(path))[0]
            warnings += dict.fromkeys(warning for text in variants for warning in lint(text, stem))
        if not variants:
            raise BadText(f"no caption: {why_none}; write one, or give the source a default_caption")
        grammar = has_grammar(self._source)
        return Candidate(self._number, path, self._root / path, variants, resolved, tuple(warnings), grammar, mask)


def _require_utf8(path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadText(
            "its name is not valid UTF-8, so it cannot be a caption or stand in reports; rename it"
        ) from error
