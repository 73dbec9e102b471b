"""What is missing is encoded and written, shard by shard: what a kill interrupts is at most the shard under way.

    missing keys, this process's part -> rounds -> decoded by workers -> encoded in small batches -> shards

Before each round the folder is looked at again, so that two runs which fill it at once share the work, roughly: they
begin at different rounds. What both made is there twice and does no harm.
"""

import io
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from everydream.caches.keys import content_hash
from everydream.caches.store import Keys, Store, as_keys
from everydream.data.collating import stacked
from everydream.data.fitting import read_cut
from everydream.data.loader import load_pieces
from everydream.data.settings import DataSettings
from everydream.data.shards import read_bytes
from everydream.formats.atomic import format_bytes
from everydream.formats.files import DTYPES
from everydream.types import Crop, Index
from pictures.decode import BadImage

AT_ONCE = 8
"""Images or captions that are encoded together; never one alone, which small networks on a CPU round otherwise."""
SHARD_ENTRIES = 512
_SHARD_BYTES = 64e6
_SHARD_S = 60.0
"""After so long a shard is written, whatever its size: this much work is lost to a kill at most."""
_ROUND = 2048
Ints = NDArray[np.int64]


class NoRoom(Exception):  # noqa: N818 - not an error of the user's; it ends the filling and is told
    """Nothing more can be kept; the text says why."""


@dataclass
class Room:
    """How much may be written."""

    max_bytes: float
    """The bound of the whole folder."""
    leave_free: int
    """Bytes of the disk that are left, for checkpoints."""
    keep: Keys
    """What this run needs is not removed to make room."""


@dataclass
class Shelf:
    """Collects entries and writes them as shards."""

    store: Store
    about: Mapping[str, str]
    room: Room
    entries: dict[bytes, torch.Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def put(self, entries: Mapping[bytes, torch.Tensor]) -> None:
        """Add entries, and write a shard where there are enough. Raises NoRoom."""
        self.entries |= entries
        is_full = len(self.entries) >= SHARD_ENTRIES or self._bytes() >= _SHARD_BYTES
        if is_full or time.monotonic() - self.since > _SHARD_S:
            self.write()

    def _bytes(self) -> int:
        return sum(entry.numel() * entry.element_size() for entry in self.entries.values())

    def write(self) -> None:
        """Write what is there. Raises NoRoom; then the folder holds whole shards only."""
        if not self.entries:
            return
        needed, folder = self._bytes(), self.store.folder
        self.store.look()
        if not self.store.make_room(needed, self.room.max_bytes, self.room.keep):
            raise NoRoom(
                f"{folder} holds {format_bytes(self.store.taken_bytes)} of cache.max_gb "
                f"{format_bytes(self.room.max_bytes)}, all of it for this run. Raise cache.max_gb"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if free - needed < self.room.leave_free:
                raise NoRoom(
                    f"the disk of {folder} has {format_bytes(free)} left, and the checkpoints of this run need "
                    f"{format_bytes(self.room.leave_free)}. Free some space, or set cache.folder to another disk"
                )
            self.store.write(self.entries, self.about)
        except OSError as error:
            raise NoRoom(
                f"{folder}: {error.strerror or error}. Free some space, or set cache.folder to another disk"
            ) from error
        self.entries = {}
        self.since = time.monotonic()


@dataclass(frozen=True)
class Images:
    """The crops to encode: the i-th key is that of the i-th crop."""

    index: Index
    data: DataSettings
    contents_N: Keys
    record_W: Ints
    bucket_W: Ints
    keys_W: Keys
    crop_at: Callable[[int], Crop]


@dataclass(frozen=True)
class Decoded:
    """Some images of one size."""

    keys: list[bytes]
    pixels_BCHW: torch.Tensor
    asked: int
    problems: list[str]


class _Portions(Dataset[Decoded]):
    """Decodes a round's images; what is read is what is hashed, so no key can name other bytes."""

    def __init__(self, images: Images, portions: Sequence[Ints]) -> None:
        self.images, self.portions = images, portions

    def __len__(self) -> int:
        return len(self.portions)

    def __getitem__(self, number: int) -> Decoded:
        numbers = self.portions[number].tolist()
        keys, pixels, problems = [], [], []
        for one in numbers:
            try:
                pixels.append(self._pixels(one))
                keys.append(self.images.keys_W[one : one + 1].tobytes())
            except (BadImage, OSError) as error:
                problems.append(f"{self.images.index.key(int(self.images.record_W[one]))}: {error}")
        return Decoded(keys, stacked(pixels) if pixels else torch.zeros(0), len(numbers), problems)

    def _pixels(self, number: int) -> NDArray[np.uint8]:
        """Return an image cut to its bucket (C, H, W), a view."""
        images, record = self.images, int(self.images.record_W[number])
        index, crop = images.index, images.crop_at(number)
        content = read_bytes(index.file(record), index.span(record))
        if content_hash(content) != images.contents_N[record : record + 1].tobytes():
            raise BadImage("changed while it was being read")

        def crop_at(size: tuple[int, int]) -> Crop:
            if size[::-1] != crop.original_size:
                raise BadImage("has another size than the scan found")
            return crop

        data = images.data
        return read_cut(io.BytesIO(content), crop_at, data.background, data.max_megapixels)[0]


def fill_images(
    images: Images,
    shelf: Shelf,
    encode: Callable[[torch.Tensor], torch.Tensor],
    dtype: str,
    part: tuple[int, int],
    workers: int,
    progress: Callable[[int, int], None],
) -> list[str]:
    """Encode and write what is missing of this process's part; return what could not be read. Raises NoRoom.

    `part`: (this process, how many). `encode`: pixels on the CPU -> moments. `progress`: of this part, (done, total).
    """
    mine = _missing(images.keys_W, shelf.store, part)
    mine = mine[np.argsort(images.bucket_W[mine], kind="stable")]
    done, problems = 0, []
    for numbers in _rounds(mine):
        shelf.store.look()
        todo = numbers[~shelf.store.has(images.keys_W[numbers])]
        done += len(numbers) - len(todo)
        for decoded in load_pieces(_Portions(images, list(_portions(todo, images.bucket_W))), workers):
            problems += decoded.problems
            if decoded.keys:
                moments = encoded(decoded.pixels_BCHW, encode).to(DTYPES[dtype])
                shelf.put({key: row.clone() for key, row in zip(decoded.keys, moments, strict=True)})
            done += decoded.asked
            progress(done, len(mine))
    shelf.write()
    return problems


def _missing(keys_W: Keys, store: Store, part: tuple[int, int]) -> Ints:
    """Return which keys this process makes: of several equal ones the first, by the key, so that all agree."""
    _, first = np.unique(keys_W, return_index=True)
    first = first[keys_W[first] != b""]  # numpy's word for all zeros: a file that cannot be read
    ours = np.frombuffer(keys_W[first].tobytes(), np.uint32)[:: keys_W.itemsize // 4] % part[1] == part[0]
    mine: Ints = first[ours & ~store.has(keys_W[first])]
    return mine


def _rounds(mine: Ints) -> Iterator[Ints]:
    """Yield parts, beginning at another one in every process."""
    starts = list(range(0, len(mine), _ROUND))
    turn = os.getpid() % max(len(starts), 1)
    for start in starts[turn:] + starts[:turn]:
        yield mine[start : start + _ROUND]


def _portions(numbers: Ints, bucket_W: Ints) -> Iterator[Ints]:
    """Yield up to AT_ONCE neighbours of one bucket at a time; numbers are sorted by bucket."""
    for bucket in np.unique(bucket_W[numbers]).tolist():
        mine = numbers[bucket_W[numbers] == bucket]
        yield from (mine[start : start + AT_ONCE] for start in range(0, len(mine), AT_ONCE))


def encoded(pixels_BCHW: torch.Tensor, encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Encode a batch, one image beside itself, and in halves where memory does not suffice."""
    if len(pixels_BCHW) == 1:
        return encode(pixels_BCHW.expand(2, *pixels_BCHW.shape[1:]))[:1]
    try:
        return encode(pixels_BCHW)
    except torch.OutOfMemoryError:
        if len(pixels_BCHW) <= 2:
            raise
        torch.cuda.empty_cache()
        return torch.cat([encoded(half, encode) for half in pixels_BCHW.tensor_split(2)])


def fill_texts(
    captions: Sequence[str],
    shelf: Shelf,
    read: Callable[[Sequence[str]], Sequence[torch.Tensor]],
    keys_of: Callable[[str], Sequence[bytes]],
    dtype: str,
    part: tuple[int, int],
    progress: Callable[[int, int], None],
) -> None:
    """Read and write what is missing of this process's part. Raises NoRoom.

    `read`: captions -> outputs, (B, ...) each; `keys_of`: a caption's keys, one an output.
    """
    firsts = as_keys([keys_of(caption)[-1] for caption in captions])
    missing = _missing(firsts, shelf.store, part)
    for start in range(0, len(missing), AT_ONCE):
        some = [captions[number] for number in missing[start : start + AT_ONCE].tolist()]
        outputs = [output.to("cpu", DTYPES[dtype]) for output in read(some if len(some) > 1 else some * 2)]
        for nth, caption in enumerate(some):
            entries = zip(keys_of(caption), (output[nth] for output in outputs), strict=True)
            shelf.put({key: entry.clone() for key, entry in entries})
        progress(min(start + AT_ONCE, len(missing)), len(missing))
    shelf.write()
