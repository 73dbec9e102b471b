"""Opening what was listed: an image becomes a record or a rejection with its reason, and no bad file ends the scan.

headers, or all pixels -> width, height, digest, warnings
"""

import hashlib
import os
import posixpath
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from everydream.data.masks import require_opacity, require_sound_mask
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.data.shards import open_binary, picture_at, span_of, why
from everydream.data.sources import Candidate, list_source, source_problem
from everydream.data.texts import BadText
from everydream.data.walking import show
from everydream.errors import DataError
from everydream.types import Rejection, Span
from pictures.decode import BadImage, Probe, decode, probe, promised_formats

AUTO_FULL_IMAGES = 2000
"""Up to this many images `check: auto` decodes all of them: about a minute on a few cores."""

_BLOCK_BYTES = 4096
_MAX_THREADS = 8
_HEADERS_AT_ONCE = 64
_ALONE_PIXELS = 30e6
"""Images from this size on are decoded one at a time, so that threads do not multiply their memory."""
_alone = threading.Lock()


class Record(NamedTuple):
    """A usable image."""

    candidate: Candidate
    width: int
    height: int
    mask: str
    digest: int
    warnings: list[str]
    span: Span | None = None
    """Where it lies in its shard, or how large it is on its server."""

    @property
    def source(self) -> int:
        """The number of its source."""
        return self.candidate.source

    @property
    def path(self) -> str:
        """Relative to the source's folder."""
        return self.candidate.path


def list_images(data: DataSettings, captions: CaptionSettings) -> list[Candidate | Rejection]:
    """Return every image of every source, not opened yet; `DataError` names all sources that cannot be read."""
    problems: list[str] = []
    found: list[Candidate | Rejection] = []
    for number, source in enumerate(data.sources):
        if source.path is None or (source.generate is not None and not Path(source.path).exists()):
            continue  # class images that are still to be made
        problem = source_problem(source)
        try:
            found += [] if problem else list_source(number, source, captions, data.flip_p)
        except BadText as error:
            problem = str(error)
        problems += [f"data.sources.{number}: {problem}"] if problem else []
    if problems:
        raise DataError("Sources that cannot be read:\n  " + "\n  ".join(problems))
    return found


def decodes_all(data: DataSettings, images: int) -> bool:
    """Tell whether so many images are decoded, or only their headers read."""
    return data.check == "full" or (data.check == "auto" and images <= AUTO_FULL_IMAGES)


def num_threads() -> int:
    """Return how many threads decode: Pillow releases the interpreter lock meanwhile."""
    return min(_MAX_THREADS, os.cpu_count() or 1)


def check_images(
    found: Sequence[Candidate | Rejection], data: DataSettings, progress: Callable[[int, int], None] | None = None
) -> list[Record | Rejection]:
    """Open what was listed, headers or pixels as `data.check` says; rejections come first and stay as they are."""
    candidates = [item for item in found if isinstance(item, Candidate)]
    rejected = [item for item in found if isinstance(item, Rejection)]
    return [*rejected, *_check_all(candidates, data, progress)]


def _check_all(
    candidates: Sequence[Candidate], data: DataSettings, progress: Callable[[int, int], None] | None
) -> Iterator[Record | Rejection]:
    full = decodes_all(data, len(candidates))
    with ThreadPoolExecutor(num_threads()) as pool:
        # A header is read sooner than a thread is told of it.
        some = 1 if full else _HEADERS_AT_ONCE
        portions = [candidates[start : start + some] for start in range(0, len(candidates), some)]
        results = pool.map(lambda portion: [check(candidate, data, full) for candidate in portion], portions)
        for done, result in enumerate(chain.from_iterable(results), 1):
            yield result
            if progress is not None:
                progress(done, len(candidates))


def check(candidate: Candidate, data: DataSettings, full: bool) -> Record | Rejection:
    """Open one image; `full`: decode it."""
    try:
        found, content = _looked_into(candidate.file, data.max_megapixels)
        if full:
            with _alone if found.width * found.height >= _ALONE_PIXELS else nullcontext():
                shape = decode(picture_at(candidate.file), data.background, data.max_megapixels).shape
                if data.masks == "alpha" and not candidate.mask:
                    require_opacity(candidate.file, data.max_megapixels)
            if shape[:2] != (found.height, found.width):
                raise BadImage(f"damaged: its header says {found.width} x {found.height}, "
                               f"its pixels are {shape[1]} x {shape[0]}")  # fmt: skip
        mask = candidate.mask if data.masks != "none" else ""
        if mask:
            require_sound_mask(candidate.file.parent / posixpath.basename(mask), found, data.max_megapixels, full)
        digest = _digest(candidate, found, content, mask)
        span = span_of(candidate.file)
    except BadImage as error:
        return Rejection(candidate.source, show(candidate.path), str(error))
    except OSError as error:
        return Rejection(candidate.source, show(candidate.path), f"cannot be read: {why(error)}")
    warnings = [*candidate.warnings, *_file_warnings(candidate, found)]
    return Record(candidate, found.width, found.height, mask, digest, warnings, span)


def _file_warnings(candidate: Candidate, found: Probe) -> Iterator[str]:
    suffix = candidate.file.suffix.lower()
    promised = promised_formats(suffix)
    if promised and found.format not in promised:
        yield f"content is {found.format}, its name says {suffix[1:]}"
    if found.has_more_frames:
        yield "has several frames or pages; only the first is used"


def _looked_into(path: Path, max_megapixels: float) -> tuple[Probe, tuple[int, list[bytes]]]:
    """Return an image's header and `_sampled` of its content, in one opening. Raises BadImage and OSError."""
    with open_binary(path) as file:
        try:
            found = probe(file, max_megapixels)
        except BadImage:
            found = probe(picture_at(path), max_megapixels)  # what is said of a file knows its name
        return found, _sampled(file)


def _digest(candidate: Candidate, found: Probe, content: tuple[int, list[bytes]], mask: str) -> int:
    """Hash what matters for training; of the content three blocks, so that a scan need not read every byte."""
    digest = hashlib.blake2b(digest_size=8)
    size, blocks = content
    *resolved, group = vars(candidate.resolved).values()
    facts = (candidate.path, found.width, found.height, candidate.captions, tuple(resolved), size)
    # Apart, and only where they are used: digests without them are those of older checkpoints.
    newer = [ascii((group, candidate.grammar)).encode()] if group or candidate.grammar else []
    if mask:
        with open_binary(candidate.file.parent / posixpath.basename(mask)) as file:
            mask_size, mask_blocks = _sampled(file)
        newer += [ascii(("mask", mask_size)).encode(), *mask_blocks]
    for part in (ascii(facts).encode(), *blocks, *newer):
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


def _sampled(file: IO[bytes]) -> tuple[int, list[bytes]]:
    """Return the size of a content, and three blocks of it."""
    size = file.seek(0, os.SEEK_END)
    blocks = []
    for start in (0, size // 2, max(0, size - _BLOCK_BYTES)):
        file.seek(start)
        blocks.append(file.read(_BLOCK_BYTES))
    return size, blocks
