"""The text half of the scan: which files a source has, what they are called, which settings count for each.

Reads directories, sidecars, setting files and manifests, never an image.
"""

import os
import posixpath
import re
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everydream.data.captions import Caption, Siblings, index_siblings, lint, read_caption
from everydream.data.folders import FolderSettings, Resolved, Values, resolve
from everydream.data.joepenna import joepenna_caption
from everydream.data.kohya import kohya_caption
from everydream.data.manifests import SUFFIXES, Row, read_manifest
from everydream.data.masks import SUFFIX as MASK
from everydream.data.masks import masks_among
from everydream.data.pairing import MARKER
from everydream.data.remote import is_url, stamp_of, url_of
from everydream.data.settings import CaptionSettings, SourceSettings
from everydream.data.shards import SUFFIX as SHARD
from everydream.data.shards import shard_of
from everydream.data.texts import BadText, normalise
from everydream.data.walking import Folder, show, walk
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


_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
REMOVED = "multiply is 0 in "
"""How the reason begins where the user took images out on purpose."""

_WHY_NO_CAPTION = {
    "everydream": "no text before the first `_` of its name, and no sidecar",
    "kohya": "no text after the number in its folder's name, and no sidecar",
}
"""By caption rule; with the others every image has a caption."""


def source_root(source: SourceSettings) -> Path:
    """Return the absolute folder that the source's paths are relative to; the source must have a path."""
    path = _path(source)
    return path.parent if source.caption_rule == "manifest" or shard_names(source) is not None else path


def _path(source: SourceSettings) -> Path:
    assert source.path is not None, "a source without a path has no files yet"
    if is_url(source.path):
        return Path(source.path)
    return Path(os.path.abspath(Path(source.path).expanduser()))  # noqa: PTH100 - links stay as the user wrote them


def shard_names(source: SourceSettings) -> list[str] | None:
    """Return the shards that a source's path names itself (`000.tar`, `{000..009}.tar`); None where it is a folder."""
    path = _path(source)
    if path.suffix.lower() != SHARD or source.caption_rule == "manifest" or path.is_dir():
        return None
    if (match := _BRACES.search(path.name)) is None:
        return [path.name]
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    return [f"{path.name[: match.start()]}{n:0{width}}{path.name[match.end() :]}" for n in range(first, last + 1)]


def source_folders(source: SourceSettings) -> Iterator[Folder]:
    """Yield the folders and shards of a source that is no manifest."""
    return walk(source_root(source), shard_names(source))


def source_problem(source: SourceSettings) -> str | None:
    """Return why a source cannot be read at all, or None."""
    path, is_manifest = _path(source), source.caption_rule == "manifest"
    if (url := url_of(path)) is not None:
        return _remote_problem(source, url)
    if (names := shard_names(source)) is not None:
        missing = [name for name in names if not (path.parent / name).is_file()]
        return (
            f"{source.path}: {len(missing)} of {len(names)} shards are not there, {missing[0]} the first"
            if missing
            else None
        )
    if not path.exists():
        return f"{source.path}: does not exist (from {Path.cwd()})"
    if is_manifest:
        return f"{source.path}: is a folder; give the manifest file in it" if path.is_dir() else None
    if not path.is_dir():
        hint = "; set captions: manifest to read it as a manifest" if path.suffix.lower() in SUFFIXES else ""
        return f"{source.path}: is a file, not a folder of images{hint}"
    return None if os.access(path, os.R_OK | os.X_OK) else f"{source.path}: no permission to list it"


def _remote_problem(source: SourceSettings, url: str) -> str | None:
    try:
        if source.caption_rule == "manifest":
            stamp_of(url)
        elif url.lower().startswith("http") and shard_names(source) is None:
            example = f"{url.rstrip('/')}/{{000..009}}.tar"
            return f"{url}: web servers list no folders; give shards, such as {example}, or a manifest"
    except OSError as error:
        return f"{url}: {error.strerror or error}"
    return None


def settings_folder(root: Path, path: str) -> str:
    """Return the folder whose settings count for an image: its own, or that of the shard it lies in."""
    folder = posixpath.dirname(path)
    if SHARD in folder.lower() and (shard := shard_of(root / path)) is not None:
        folder = shard.parent.relative_to(root).as_posix().removeprefix(".")
    return folder


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
    lister = Lister(number, source, captions, flip_p)
    listed = lister.manifest() if source.caption_rule == "manifest" else lister.folders(only)
    found = sorted(listed, key=lambda item: item.path)
    # Of made class images only as many as are asked for: another run may have wanted more in the same folder.
    is_made = source.generate is not None and (source_root(source) / MARKER).is_file()
    return found[: source.generate] if is_made else found


class Lister:
    """What the images of one source have in common; `values` says which settings count in a folder of it."""

    def __init__(
        self,
        number: int,
        source: SourceSettings,
        captions: CaptionSettings,
        flip_p: float,
        values: Callable[[str], Values] | None = None,
    ) -> None:
        self._number = number
        self._source = source
        self._captions = captions
        self._flip_p = flip_p
        self._root = source_root(source)
        self._values = FolderSettings(self._root).values if values is None else values
        self._plain = self._resolved({})

    def _resolved(self, values: Values) -> Resolved:
        return resolve(values, self._source, self._captions, self._flip_p)

    def folders(self, only: Container[str] | None) -> Iterator[Candidate | Rejection]:
        """List a source that is a folder."""
        for folder in source_folders(self._source):
            if folder.problem:
                yield Rejection(self._number, show(folder.path) or ".", folder.problem)
            yield from self.files(folder.path, folder.files, only)

    def files(
        self, folder: str, files: Sequence[str], only: Container[str] | None = None
    ) -> Iterator[Candidate | Rejection]:
        """List the images among some files of a folder; what belongs to an image must be among them."""
        extensions = image_extensions()
        siblings, masks = index_siblings(files), masks_among(files)
        are_masks = set(masks.values())
        for name in files:
            stem, extension = os.path.splitext(name)  # noqa: PTH122 - pathlib is slow on 10**6 names
            if name.lower().endswith(MASK) and name not in are_masks:
                reason = "named as a mask is, and there is no image that it belongs to"
                yield Rejection(self._number, show(posixpath.join(folder, name)), reason)
            elif (
                extension.lower() in extensions and name not in are_masks
                and (only is None or posixpath.join(folder, name) in only)
            ):  # fmt: skip
                mask = posixpath.join(folder, masks[stem]) if stem in masks else ""
                yield self._image(posixpath.join(folder, name), siblings, mask)

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
        counts = settings_folder(self._root, path)
        levels = counts.split("/") if counts else []
        match source.caption_rule:
            case "label":
                return Caption((normalise(source.label or ""),), 0, {}, ())
            case "joepenna":
                # In a shard names are keys.
                stem = posixpath.splitext(name)[0] if counts == folder else ""
                return joepenna_caption(levels, stem, source)
            case "kohya":
                return kohya_caption(self._root, levels, self._root / folder, folder, name, siblings)
            case _:
                return read_caption(self._root / folder, folder, name, siblings, source.lines)

    def manifest(self) -> Iterator[Candidate | Rejection]:
        """List a `manifest` source; rows of one image are its variants."""
        rows_of: dict[str, list[Row]] = {}
        for path, row in self.rows():
            if path is None:
                yield self.no_image(row)
            else:
                rows_of.setdefault(path, []).append(row)
        for path, rows in rows_of.items():
            yield self.listed(path, rows)

    def rows(self) -> Iterator[tuple[str | None, Row]]:
        """Yield the rows of a manifest, each with its image's path; None, and the row's problem, where there is none.

        `BadText` if the manifest cannot be read as a whole.
        """
        source = self._source
        needed = not normalise(source.default_caption or "")
        for row in read_manifest(_path(source), source.path_column, source.caption_column, caption_needed=needed):
            try:
                yield self._locate(row), row
            except BadText as error:
                yield None, row._replace(problem=str(error))

    def no_image(self, row: Row) -> Rejection:
        """Return what is said of a row that leads to no image."""
        return Rejection(self._number, show(row.path or _path(self._source).name), f"{row.where}: {show(row.problem)}")

    def _locate(self, row: Row) -> str:
        """Return the path of a row's image; `BadText` if the row has none or it is not there."""
        if not row.path:
            raise BadText(row.problem)
        if row.path.lower().startswith(("http://", "https://")):
            raise BadText("is a URL, not a file; download the images first")
        for written in dict.fromkeys((row.path, row.path.strip(), row.path.replace("\\", "/"))):
            if url_of(self._root) is not None:
                return self._inside(written)  # asking for each of millions would take longer than opening it
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

    def listed(self, path: str, rows: Sequence[Row]) -> Candidate | Rejection:
        """Return a manifest's image, with the captions of all its rows."""
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
        of_folder: Values = {} if outside else self._values(settings_folder(self._root, path))
        values = {**of_folder, **caption.values}
        resolved = self._resolved(values) if values else self._plain
        if resolved.repeats == 0:
            return Rejection(self._number, show(path), REMOVED + values["multiply"].file)
        if caption.repeats == 0:
            return Rejection(self._number, show(path), f"{REMOVED}its folder's name")
        if caption.repeats != 1 or caption.num_fixed > resolved.keep_tags:
            repeats, keep_tags = resolved.repeats * caption.repeats, max(resolved.keep_tags, caption.num_fixed)
            resolved = replace(resolved, repeats=repeats, keep_tags=keep_tags)
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
