"""The values that cross rooms: frozen dataclasses with no logic beyond shape checks.

Shape suffixes, here and everywhere: B batch, C channels, H height, W width, L tokens, D width of an
embedding; `t_B` is a timestep per image. N counts records of the index, K draws of an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # The scan's processes know these values and no tensor, and torch takes seconds and 200 MB.
    import torch


@dataclass(frozen=True)
class Rejection:
    """An image that will not be trained on, and why."""

    source: int
    path: str
    """Relative to the source's folder, with forward slashes."""
    reason: str


class Span(NamedTuple):
    """Where a file's content lies: in its shard from `offset` on; a remote file of its own has offset 0."""

    offset: int
    size: int


@dataclass(frozen=True)
class Index:
    """All usable images as columns; row i of every column is record i.

    Texts are `data.strings.Strings` where there are many, so that no image is a Python object.
    Rows are sorted by source, then by relative path. Folder settings are already resolved: each
    column holds the value that counts (sidecar > local > nearest global > source > defaults).
    """

    roots: Sequence[str]
    """Absolute folder of each source; "" where its images are still to be made."""
    names: Sequence[str]
    """Display name of each source, unique."""
    source_N: NDArray[np.int16]
    paths: Sequence[str]
    """Path relative to the source's root, with forward slashes."""
    width_N: NDArray[np.int32]
    """Pixels, after EXIF orientation."""
    height_N: NDArray[np.int32]
    captions: Sequence[str]
    caption_offsets: NDArray[np.int64]
    """N + 1 offsets: record i may be captioned by captions[offsets[i]:offsets[i + 1]], one a visit."""
    repeats_N: NDArray[np.float64]
    """Multiplier from multiply.txt and the like, 1.0 where nothing is said; the source's repeats come on top."""
    dropout_N: NDArray[np.float64]
    flip_p_N: NDArray[np.float64]
    loss_scale_N: NDArray[np.float64]
    shuffle_tags_N: NDArray[np.bool_]
    keep_tags_N: NDArray[np.int32]
    batch_id_N: NDArray[np.int32]
    """Index into batch_ids; images of different ids never share a batch."""
    batch_ids: Sequence[str]
    """batch_ids[0] is "" (no id)."""
    digest_N: NDArray[np.uint64]
    """Changes whenever anything that matters for training changes: content, size, captions, settings."""
    masks: dict[int, str]
    """Record -> path of its mask, as `paths`. Sparse."""
    groups: dict[int, str]
    """Record -> the group that it is drawn in, with the others of its source that have the same one. Sparse."""
    grammars: Sequence[bool]
    """Whether each source's captions are written in kohya's grammar, which a visit reads (`data.drawing`)."""
    wildcards: bool
    """Whether captions of every source may hold wildcards, `{a|b}`."""
    warnings: dict[int, list[str]]
    """Record -> what `inspect` should say about it. Sparse."""
    rejected: Sequence[Rejection]
    switched_off: Sequence[str] = ()
    """Keys of the images that data.exclude leaves out."""
    unknown_off: Sequence[str] = ()
    """Lines of data.exclude that name no image."""
    span_N2: NDArray[np.int64] | None = None
    """Offset and size in bytes of what lies in a shard or on a server, (0, 0) of other files; None: all are others."""

    def __post_init__(self) -> None:
        num = len(self.paths)
        columns: list[NDArray[Any]] = [
            self.source_N, self.width_N, self.height_N, self.repeats_N, self.dropout_N, self.flip_p_N,
            self.loss_scale_N, self.shuffle_tags_N, self.keep_tags_N, self.batch_id_N, self.digest_N,
        ]  # fmt: skip
        assert all(column.shape == (num,) for column in columns), "index columns differ in length"
        assert self.caption_offsets.shape == (num + 1,)
        assert self.span_N2 is None or self.span_N2.shape == (num, 2)

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, record: int) -> Path:
        """Return the path of the record's file, or through a shard to its member; see `span`."""
        return Path(self.roots[int(self.source_N[record])]) / self.paths[record]

    def span(self, record: int) -> Span | None:
        """Return where the record's content lies in its shard or on its server; None of a file on this machine."""
        if self.span_N2 is None:
            return None
        offset, size = self.span_N2[record].tolist()
        return Span(offset, size) if size else None

    def key(self, record: int) -> str:
        """Return what names the record in seeds, logs and checkpoints: stable when folders move."""
        return f"{self.names[int(self.source_N[record])]}/{self.paths[record]}"


@dataclass(frozen=True)
class EpochPlan:
    """One epoch as integer arrays: K draws in order, cut into micro-batches of one bucket each."""

    epoch: int
    record_K: NDArray[np.int64]
    nth_K: NDArray[np.int32]
    """The how-manieth visit of this record in this epoch, from 0."""
    batch_offsets: NDArray[np.int64]
    """batches + 1 offsets into the draws."""
    bucket_of_batch: NDArray[np.int32]
    accumulation: int
    """Micro-batches per optimizer step; the epoch's last step may have fewer."""

    @property
    def num_batches(self) -> int:
        """Number of micro-batches."""
        return len(self.bucket_of_batch)

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps."""
        return -(-self.num_batches // self.accumulation)


@dataclass(frozen=True)
class Crop:
    """Where a sample's pixels come from; all in pixels, sizes as (height, width)."""

    original_size: tuple[int, int]
    """Of the file, after orientation, before any resize."""
    top: int
    left: int
    """Offset of the crop inside the image resized to cover the target."""
    target_size: tuple[int, int]
    flipped: bool


@dataclass(frozen=True)
class Sample:
    """One draw, ready to be collated."""

    pixels_CHW: NDArray[np.uint8]
    """Of size 0 where a cache has the image."""
    mask_HW: NDArray[np.uint8] | None
    """What of it trains, 0 .. 255; None: all."""
    caption: str
    crop: Crop
    loss_scale: float
    seed: int
    """Root of this draw's randomness; timestep, noise and posterior derive from it."""
    key: str
    place: tuple[int, int]
    """(its number among the images of its optimizer step, how many they are)."""


@dataclass(frozen=True)
class Batch:
    """Samples of one bucket. Images from `num_real` on are fillers of loss scale 0 (see `data.collating`)."""

    pixels_BCHW: torch.Tensor
    captions: list[str]
    crops: list[Crop]
    loss_scale_B: torch.Tensor
    seeds: list[int]
    keys: list[str]
    num_real: int
    places: list[tuple[int, int]]
    """Each image's number among those of its optimizer step, and how many they are."""
    mask_B1HW: torch.Tensor | None = None
    """What of each image trains, 0 .. 1, float32; None: all of all."""
    moments_BCHW: torch.Tensor | None = None
    """What a cache has in the place of the pixels, which are of size 0 then; see `Family.image_moments`."""
    read: Conditioning | None = None
    """What a cache has in the place of the captions; see `Family.read_captions`."""

    @property
    def images(self) -> torch.Tensor:
        """The images as `Family.encode_images` takes them: pixels, or the moments of these."""
        return self.pixels_BCHW if self.moments_BCHW is None else self.moments_BCHW

    @property
    def texts(self) -> Sequence[str] | Conditioning:
        """The captions as `Family.encode_text` takes them."""
        return self.captions if self.read is None else self.read

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels of the images, which all have one size."""
        return self.crops[0].target_size

    def mask_for(self, latent_hw: tuple[int, int]) -> torch.Tensor | None:
        """Return the masks at the size of the latents: the share of each latent's pixels that they cover."""
        if self.mask_B1HW is None:
            return None
        from torch.nn import functional  # noqa: PLC0415 - see above

        return functional.adaptive_avg_pool2d(self.mask_B1HW, latent_hw)

    def part(self, first: int, last: int) -> Batch:
        """Return the images from `first` up to `last`."""
        some = slice(first, last)
        return Batch(
            self.pixels_BCHW[some], self.captions[some], self.crops[some], self.loss_scale_B[some], self.seeds[some],
            self.keys[some], len(range(self.num_real)[some]), self.places[some],
            None if self.mask_B1HW is None else self.mask_B1HW[some],
            None if self.moments_BCHW is None else self.moments_BCHW[some],
            None if self.read is None else self.read.part(some),
        )  # fmt: skip

    def to(self, device: torch.device) -> Batch:
        """Return the batch with its tensors on `device`, which copies them while this process goes on."""
        from everydream.devices import sent  # noqa: PLC0415 - see above

        return self._each(lambda tensor: sent(tensor, device))

    def pin_memory(self) -> Batch:
        """Return the batch with its tensors in page-locked memory."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return replace(
            self,
            pixels_BCHW=change(self.pixels_BCHW),
            loss_scale_B=change(self.loss_scale_B),
            mask_B1HW=None if self.mask_B1HW is None else change(self.mask_B1HW),
            moments_BCHW=None if self.moments_BCHW is None else change(self.moments_BCHW),
            read=None if self.read is None else self.read.each(change),
        )


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told; fields that a family does not use are None."""

    tokens_BLD: torch.Tensor
    """The text encoders' output, token by token."""
    pooled_BD: torch.Tensor | None = None
    """One vector for the whole caption."""
    sizes_B6: torch.Tensor | None = None
    """Original height and width, top and left of the crop, target height and width, in pixels."""
    inputs_BCHW: torch.Tensor | None = None
    """Further input channels in latent size: a depth map, or a mask and what it leaves."""
    guidance_B: torch.Tensor | None = None
    """Guidance scale, for networks that take it as an input."""

    def part(self, some: slice) -> Conditioning:
        """Return it for some of the images."""
        return self.each(lambda tensor: tensor[some])

    def to(self, device: torch.device) -> Conditioning:
        """Return it with its tensors on `device`."""
        return self.each(lambda tensor: tensor.to(device))

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Conditioning:
        """Return it with each of its tensors changed."""
        return Conditioning(*(None if t is None else change(t) for t in vars(self).values()))  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepResult:
    """What one micro-batch gives the loop."""

    loss: torch.Tensor
    """Scalar that was, or will be, differentiated."""
    per_image_B: torch.Tensor
    """Detached, unweighted by loss scale; fillers included."""
    t_B: torch.Tensor
    weight_B: torch.Tensor
    """What each image's loss is multiplied by."""
    keys: list[str]


@dataclass(frozen=True)
class Progress:
    """Where a run stands; with the seed, all that is needed to go on."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    images_seen: int = 0
