"""Finding and opening the files of a source: on this machine, or by fsspec (hf://, s3://, gs://, https://)."""

import glob
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from scrapers.sources.protocol import raise_problems

_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # two letters at least: C:// is a disk
_MAGIC = re.compile(r"[*?[]")
_S3 = '`pip install -c constraints.txt -e ".[s3]"`'
_GCS, _AZURE = "`pip install gcsfs`", "`pip install adlfs`"
_EXTRAS = {"s3": _S3, "s3a": _S3, "gs": _GCS, "gcs": _GCS, "az": _AZURE, "abfs": _AZURE}


@dataclass(frozen=True)
class SourceFile:
    """One file of a list."""

    path: str
    """A local path, or a URL."""
    size: int | None
    """Bytes, where that is known without reading."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return re.split(r"[\\/]" if self.is_local else "/", self.path.rstrip("/"))[-1] or self.path

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine."""
        return not is_remote(self.path)

    @property
    def identity(self) -> str:
        """What tells it from another file: a local one may be moved, so by its name and size."""
        return f"{self.name if self.is_local else self.path} {'?' if self.size is None else self.size}"

    @property
    def ending(self) -> str:
        """In lower case and without that of a compression: ".csv" for "A.CSV.gz"."""
        name = self.name.partition("?")[0].lower()
        return Path(re.sub(r"\.(gz|bz2|xz|zst)$", "", name)).suffix

    def open(self, compression: str | None = None) -> BinaryIO:
        """Open for reading; `infer`: unpack what is named .gz and the like."""
        import fsspec  # noqa: PLC0415 - the command line must start fast

        fs, path = fsspec.core.url_to_fs(self.path)
        return cast(BinaryIO, fs.open(path, "rb", compression=compression))


def is_remote(path: str) -> bool:
    """Tell whether a path is a URL for fsspec."""
    return bool(_REMOTE.match(path)) and not path.lower().startswith(("file://", "local://"))


def find_files(patterns: Sequence[str], endings: Collection[str]) -> list[SourceFile]:
    """Return the files that paths, folders and globs stand for, in this order, each once, and sorted within each.

    In folders and globs only files with one of the endings count; `part2` comes before `part10`.
    """
    found: dict[str, SourceFile] = {}
    problems = []
    for pattern in patterns:
        try:
            files = list(_remote_files(pattern, endings) if is_remote(pattern) else _local_files(pattern, endings))
            if not files:
                raise FileNotFoundError(_nothing(pattern, endings))
        except Exception as error:  # every file system raises its own
            problems.append(f"source.files: {pattern}: {explain(pattern, error)}")
            continue
        for file in files:
            if file.ending in endings:
                found.setdefault(file.path, file)
            else:
                problems.append(f"source.files: {file.path}: cannot read `{file.ending or file.name}`; "
                                f"known are {', '.join(sorted(endings))}")  # fmt: skip
    raise_problems(problems)
    return list(found.values())


def _nothing(pattern: str, endings: Collection[str]) -> str:
    if not is_remote(pattern) and not local_path(pattern).exists():
        if not _MAGIC.search(pattern):
            return f"no such file or folder (from {Path.cwd()})"
        if not glob.glob(str(local_path(pattern)), recursive=True):  # noqa: PTH207 - it may begin anywhere
            return f"no file matches this pattern (from {Path.cwd()})"
    return f"nothing there ends in {', '.join(sorted(endings))}"


def local_path(pattern: str) -> Path:
    """Return a local path as given in a recipe: `~` is the home folder, file:// may stand before it."""
    return Path(re.sub(r"^(file|local)://", "", pattern, flags=re.IGNORECASE)).expanduser()


def natural(text: str) -> list[Any]:
    """Return a key that sorts `part2` before `part10`, and ties by the text itself."""
    pieces = re.split(r"([0-9]+)", text)
    return [[int(piece) if index % 2 else piece.casefold() for index, piece in enumerate(pieces)], text]


def explain(path: str, error: Exception) -> str:
    """Return what an error of a file system means to a user, and what to do."""
    protocol = path.partition("://")[0].lower()
    told = str(error.__cause__ or "not found") if str(error) == path else str(error)  # fsspec may only repeat the path
    text = " ".join(told.split())[:300] or type(error).__name__
    if isinstance(error, ImportError) and protocol in _EXTRAS:
        return f"{protocol}:// needs a package that is not installed: {_EXTRAS[protocol]}"
    if protocol == "hf":
        return (
            f"{text}. Is the name right? For a gated set accept its terms on its page and log in with `hf auth login`"
        )
    return text


def _local_files(pattern: str, endings: Collection[str]) -> Iterator[SourceFile]:
    path = local_path(pattern)
    if path.is_dir():
        paths = [found for found in path.rglob("*") if not _is_hidden(found.relative_to(path))]
    elif path.exists() or not _MAGIC.search(pattern):
        yield from [SourceFile(str(path), path.stat().st_size)] if path.exists() else []
        return
    else:
        paths = list(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - it may begin anywhere
    for found in sorted(paths, key=lambda found: natural(found.as_posix())):
        file = SourceFile(str(found), None)
        if file.ending in endings and found.is_file():
            yield SourceFile(str(found), found.stat().st_size)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _remote_files(pattern: str, endings: Collection[str]) -> Iterator[SourceFile]:
    import fsspec  # noqa: PLC0415 - the command line must start fast

    fs, path = fsspec.core.url_to_fs(pattern)
    is_http = pattern.lower().startswith("http")
    if "*" in path or (not is_http and _MAGIC.search(path)):  # a question mark in https:// begins the query
        details = fs.glob(path, detail=True)
    else:
        info = fs.info(path)
        if info["type"] != "directory":
            yield SourceFile(pattern, info.get("size"))
            return
        details = fs.find(path, detail=True)
    for name in sorted(details, key=natural):
        file = SourceFile(fs.unstrip_protocol(name), details[name].get("size"))
        if details[name]["type"] == "file" and file.ending in endings:
            yield file
