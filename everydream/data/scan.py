"""The scan: every image is looked at once, before anything is trained, and becomes a record or a rejection.

    list files -> captions and folder settings (text only) -> headers or pixels (threads) -> columns

No bad file ends the scan; only a source that is not there does, and `require_usable` if nothing is left. Nothing is
ever written beside the user's images.
"""

import hashlib
import os
import posixpath
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from everydream.data.excluding import parted, read_excluded
from everydream.data.kohya import parse_folder
from everydream.data.masks import require_opacity, require_sound_mask
from everydream.data.pairing import unique_names
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.shards import open_binary, picture_at
from everydream.data.sources import (
    REMOVED,
    Candidate,
    has_grammar,
    list_source,
    show,
    source_problem,
    source_root,
)
from everydream.data.texts import BadText
from everydream.errors import DataError
from everydream.types import Index, Rejection
from pictures.decode import BadImage, Probe, decode, probe, promised_formats

AUTO_FULL_IMAGES = 2000
"""Up to this many images `check: auto` decodes all of them: about a minute on a few cores."""

_BLOCK_BYTES = 4096
_MAX_THREADS = 8
_HEADERS_AT_ONCE = 64
_ALONE_PIXELS = 30e6
"""Images from this size on are decoded one at a time, so that threads do not multiply their memory."""
_MAX_LISTED = 20
_NEARLY_ALL = 0.9
_FEW_IMAGES = 5
OWN_CAPTIONS = ("everydream", "manifest")
"""Caption rules that expect a caption for each image, not one for a whole folder."""


class Record(NamedTuple):
    """A usable image."""

    candidate: Candidate
    width: int
    height: int
    mask: str
    digest: int
    warnings: list[str]

    @property
    def source(self) -> int:
        """The number of its source."""
        return self.candidate.source

    @property
    def path(self) -> str:
        """Relative to the source's folder."""
        return self.candidate.path


def scan(data: DataSettings, captions: CaptionSettings, progress: Callable[[int, int], None] | None = None) -> Index:
    """Look at every image of every source; `DataError` names all sources that cannot be read.

    `progress` is called with (done, total) after each image.
    """
    wanted = parted(list_images(data, captions), unique_names(data.sources), read_excluded(data.exclude))
    return to_index(data, captions, check_images(wanted.kept, data, progress), wanted.off, wanted.unknown)


def require_usable(index: Index, strict: bool = False) -> None:
    """Raise `DataError` if there is no usable image, or, if `strict`, if any was rejected against the user's will."""
    unwanted = [item for item in index.rejected if not item.reason.startswith(REMOVED)]
    if len(index) == 0:
        removed = len(index.rejected) - len(unwanted)
        hint = f" ({removed} were taken out by multiply 0)" if removed else ""
        raise DataError(f"No usable image in {', '.join(filter(None, index.roots))}{hint}.{_listing(index, unwanted)}")
    empty = [n for n in range(len(index.names)) if not (index.source_N == n).any()]
    # Left out by multiply 0 is left out on purpose; nothing usable in a source that was asked for is a mistake.
    removed_from = {item.source for item in index.rejected if item.reason.startswith(REMOVED)}
    # A source without a folder has none yet: its images are made when training starts.
    missing = [n for n in empty if n not in removed_from and index.roots[n] and Path(index.roots[n]).exists()]
    if without := [f"data.sources.{n}: no usable image in {index.roots[n]}" for n in missing]:
        raise DataError("\n".join(without) + f"\nPut images there or take the source out.{_listing(index, unwanted)}")
    if strict and unwanted:
        raise DataError(
            f"{len(unwanted)} of {len(index) + len(index.rejected)} images cannot be used, and data.strict is on: "
            f"repair or remove them, or turn strict off to train on the rest.{_listing(index, unwanted)}"
        )


def _listing(index: Index, rejected: Sequence[Rejection]) -> str:
    lines = [f"\n  {index.names[item.source]}/{item.path}: {item.reason}" for item in rejected[:_MAX_LISTED]]
    more = len(rejected) - len(lines)
    return "".join(lines) + (f"\n  and {more} more" if more else "")


def source_warnings(index: Index, sources: Sequence[SourceSettings]) -> dict[int, list[str]]:
    """Return what is suspicious about whole sources: no image, or one caption for nearly all where each has its own."""
    usable = set(index.source_N.tolist())
    found = {
        number: ["holds no usable image"]
        for number, root in enumerate(index.roots)
        if number not in usable and root and Path(root).exists()
    }
    firsts: dict[int, Counter[str]] = {}
    for record, source in enumerate(index.source_N.tolist()):
        firsts.setdefault(source, Counter())[index.captions[index.caption_offsets[record]]] += 1
    for source, counter in firsts.items():
        (caption, count), total = counter.most_common(1)[0], counter.total()
        own = sources[source].caption_rule in OWN_CAPTIONS and sources[source].role != "class"
        if own and total >= _FEW_IMAGES and count >= _NEARLY_ALL * total:
            found[source] = [f'{count} of {total} images have the same caption, "{caption}"']
    for number in _like_kohyas(index, sources):
        found.setdefault(number, []).append("its folders are named as kohya's are; if so, give it captions: kohya")
    return found


def _like_kohyas(index: Index, sources: Sequence[SourceSettings]) -> set[int]:
    """Return the sources of file-name captions whose images all lie in folders such as `40_tok class`."""
    others = {
        number
        for number, path in zip(index.source_N.tolist(), index.paths, strict=True)
        if "/" not in path or parse_folder(path.partition("/")[0]) is None
    }
    mine = {n for n, source in enumerate(sources) if source.caption_rule == "everydream"}
    return (mine & set(index.source_N.tolist())) - others


# Looking at the images


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
    full = data.check == "full" or (data.check == "auto" and len(candidates) <= AUTO_FULL_IMAGES)
    alone = threading.Lock()
    # Threads, not processes: Pillow releases the interpreter lock while it decodes, and headers are mostly waiting.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        # A header is read sooner than a thread is told of it.
        some = 1 if full else _HEADERS_AT_ONCE
        portions = [candidates[start : start + some] for start in range(0, len(candidates), some)]
        results = pool.map(lambda portion: [_check(candidate, data, full, alone) for candidate in portion], portions)
        for done, result in enumerate(chain.from_iterable(results), 1):
            yield result
            if progress is not None:
                progress(done, len(candidates))


def _check(candidate: Candidate, data: DataSettings, full: bool, alone: threading.Lock) -> Record | Rejection:
    try:
        found = probe(picture_at(candidate.file), data.max_megapixels)
        if full:
            with alone if found.width * found.height >= _ALONE_PIXELS else nullcontext():
                shape = decode(picture_at(candidate.file), data.background, data.max_megapixels).shape
                if data.masks == "alpha" and not candidate.mask:
                    require_opacity(candidate.file, data.max_megapixels)
            if shape[:2] != (found.height, found.width):
                raise BadImage(f"damaged: its header says {found.width} x {found.height}, "
                               f"its pixels are {shape[1]} x {shape[0]}")  # fmt: skip
        mask = candidate.mask if data.masks != "none" else ""
        if mask:
            require_sound_mask(candidate.file.parent / posixpath.basename(mask), found, data.max_megapixels, full)
        digest = _digest(candidate, found, mask)
    except BadImage as error:
        return Rejection(candidate.source, show(candidate.path), str(error))
    except OSError as error:
        return Rejection(candidate.source, show(candidate.path), f"cannot be read: {error.strerror or error}")
    return Record(
        candidate, found.width, found.height, mask, digest, [*candidate.warnings, *_file_warnings(candidate, found)]
    )


def _file_warnings(candidate: Candidate, found: Probe) -> Iterator[str]:
    suffix = candidate.file.suffix.lower()
    promised = promised_formats(suffix)
    if promised and found.format not in promised:
        yield f"content is {found.format}, its name says {suffix[1:]}"
    if found.has_more_frames:
        yield "has several frames or pages; only the first is used"


def _digest(candidate: Candidate, found: Probe, mask: str) -> int:
    """Hash what matters for training; of the content three blocks, so that a scan need not read every byte."""
    digest = hashlib.blake2b(digest_size=8)
    size, blocks = _sampled_content(candidate.file)
    *resolved, group = vars(candidate.resolved).values()
    facts = (candidate.path, found.width, found.height, candidate.captions, tuple(resolved), size)
    # Apart, and only where they are used: digests without them are those of older checkpoints.
    newer = [ascii((group, candidate.grammar)).encode()] if group or candidate.grammar else []
    if mask:
        mask_size, mask_blocks = _sampled_content(candidate.file.parent / posixpath.basename(mask))
        newer += [ascii(("mask", mask_size)).encode(), *mask_blocks]
    for part in (ascii(facts).encode(), *blocks, *newer):
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little")


def _sampled_content(path: Path) -> tuple[int, list[bytes]]:
    with open_binary(path) as file:
        size = file.seek(0, os.SEEK_END)
        blocks = []
        for start in (0, size // 2, max(0, size - _BLOCK_BYTES)):
            file.seek(start)
            blocks.append(file.read(_BLOCK_BYTES))
    return size, blocks


# Columns


def to_index(
    data: DataSettings,
    captions: CaptionSettings,
    found: Sequence[Record | Rejection],
    switched_off: Sequence[str] = (),
    unknown_off: Sequence[str] = (),
) -> Index:
    """Arrange what was found as columns."""
    sources = data.sources
    records = [item for item in found if isinstance(item, Record)]
    rejected = [item for item in found if isinstance(item, Rejection)]
    candidates = [record.candidate for record in records]
    resolved = [candidate.resolved for candidate in candidates]
    batch_ids = ["", *sorted({item.batch_id for item in resolved} - {""})]
    number_of = {batch_id: number for number, batch_id in enumerate(batch_ids)}
    counts = [0, *(len(candidate.captions) for candidate in candidates)]
    warnings = {number: record.warnings for number, record in enumerate(records) if record.warnings}
    for number, lines in _group_warnings(candidates):
        warnings.setdefault(number, []).extend(lines)
    return Index(
        roots=[str(source_root(source)) if source.path is not None else "" for source in sources],
        names=unique_names(sources),
        source_N=np.array([candidate.source for candidate in candidates], np.int16),
        paths=[candidate.path for candidate in candidates],
        width_N=np.array([record.width for record in records], np.int32),
        height_N=np.array([record.height for record in records], np.int32),
        captions=[text for candidate in candidates for text in candidate.captions],
        caption_offsets=np.cumsum(np.array(counts, np.int64)),
        repeats_N=np.array([item.repeats for item in resolved], np.float64),
        dropout_N=np.array([item.dropout for item in resolved], np.float64),
        flip_p_N=np.array([item.flip_p for item in resolved], np.float64),
        loss_scale_N=np.array([item.loss_scale for item in resolved], np.float64),
        shuffle_tags_N=np.array([item.shuffle_tags for item in resolved], np.bool_),
        keep_tags_N=np.array([item.keep_tags for item in resolved], np.int32),
        batch_id_N=np.array([number_of[item.batch_id] for item in resolved], np.int32),
        batch_ids=batch_ids,
        digest_N=np.array([record.digest for record in records], np.uint64),
        masks={number: record.mask for number, record in enumerate(records) if record.mask},
        groups={number: item.group for number, item in enumerate(resolved) if item.group},
        wildcards=captions.wildcards,
        grammars=[has_grammar(source) for source in sources],
        warnings=warnings,
        rejected=sorted(rejected, key=lambda item: (item.source, item.path)),
        switched_off=switched_off,
        unknown_off=unknown_off,
    )


def _group_warnings(candidates: Sequence[Candidate]) -> Iterator[tuple[int, list[str]]]:
    """Yield the records whose repeats are not those of their group, which the group's first image decides."""
    first_of: dict[tuple[int, str], Candidate] = {}
    for number, candidate in enumerate(candidates):
        group, repeats = candidate.resolved.group, candidate.resolved.repeats
        first = first_of.setdefault((candidate.source, group), candidate) if group else candidate
        if repeats != (used := first.resolved.repeats):
            line = f'repeats {repeats:g} is not used: its group "{group}" is drawn as often as its first image, '
            yield number, [f"{line}{first.path}, which has {used:g}"]
