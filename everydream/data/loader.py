"""From the plan to batches: worker processes decode, fit and collate, in the plan's order.

A picture that passed the scan but cannot be decoded now (it changed, its disk failed, only headers
were checked) leaves its batch smaller and is reported; it is never replaced by another one.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from everydream.data.buckets import Buckets
from everydream.data.drawing import TagRules, draw_caption
from everydream.data.fitting import Variants, choose_crop, cut, fit
from everydream.data.masks import read_mask
from everydream.data.plan import Piece, draws_of_step
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.data.shards import picture_at
from everydream.seeding import derive
from everydream.types import Batch, Conditioning, Crop, EpochPlan, Index, Rejection, Sample
from pictures.decode import BadImage, decode, decode_with_alpha

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A piece of the plan, ready for the step."""

    piece: Piece
    batch: Batch
    failed: list[Rejection]
    """Images that could not be decoded, and are missing from the batch."""
    notes: Sequence[str] = ()
    """What the user should be told; the batch is whole nevertheless."""


class Known(Protocol):
    """What caches have of images and captions; see `everydream.caches`."""

    def moments(self, records: Sequence[int], crops: Sequence[Crop]) -> torch.Tensor | None:
        """Return the moments (B, 2C, h, w) of these crops; None unless all are there and sound."""

    def read(self, captions: Sequence[str]) -> Conditioning | None:
        """Return what the text encoders make of the captions; None unless all are there and sound."""

    def take_notes(self) -> list[str]:
        """Return what was found damaged since the last call."""


@dataclass(frozen=True)
class Visit:
    """One draw of the plan with all that is drawn for it, before anything is read from disk."""

    record: int
    seed: int
    bucket: tuple[int, int]
    cut_seed: int
    flip_p: float
    place: tuple[int, int]
    caption: str


_AS_WRITTEN = CaptionSettings()


class PieceDataset(Dataset[Loaded]):
    """Loads pieces of one epoch's plan; holds no state that changes."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        plan: EpochPlan,
        index: Index,
        buckets: Buckets,
        data: DataSettings,
        seed: int,
        captions: CaptionSettings = _AS_WRITTEN,
        first_step: int = 0,
        total_steps: int = 1,
        variants: Variants | None = None,
        known: Known | None = None,
    ) -> None:
        """`variants`: None draws crop and mirroring anew at each visit. `known`: what need not be decoded."""
        self.variants, self.known = variants, known
        self.pieces, self.plan, self.index, self.buckets = pieces, plan, index, buckets
        self.data, self.seed, self.captions = data, seed, captions
        self.first_step, self.total_steps = first_step, total_steps

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> Loaded:
        piece = self.pieces[number]
        visits = self._visits(piece)
        moments_BCHW = self._moments(visits)
        samples, sound, failed = [], [], []
        for nth, visit in enumerate(visits):
            try:
                samples.append(self.load(visit, moments_BCHW is None))
                sound.append(nth)
            except BadImage as error:
                source, path = int(self.index.source_N[visit.record]), self.index.paths[visit.record]
                failed.append(Rejection(source, path, str(error)))
        batch = collate(samples) if samples else _filler(self.buckets.sizes[piece.bucket])
        if samples and moments_BCHW is not None:
            batch = replace(batch, moments_BCHW=moments_BCHW[sound])
        if self.known is None:
            return Loaded(piece, batch, failed)
        return Loaded(piece, replace(batch, read=self.known.read(batch.captions)), failed, self.known.take_notes())

    def _visits(self, piece: Piece) -> list[Visit]:
        first, images = draws_of_step(self.plan, piece.step_in_epoch)
        tag_dropout, bucket = self._tag_dropout(piece.step_in_epoch), self.buckets.sizes[piece.bucket]
        return [
            self.visit(
                int(self.plan.record_K[draw]), int(self.plan.nth_K[draw]), bucket, (draw - first, images), tag_dropout
            )
            for draw in range(piece.start, piece.start + piece.size)
        ]

    def _moments(self, visits: Sequence[Visit]) -> torch.Tensor | None:
        if self.known is None or not visits:
            return None
        return self.known.moments([visit.record for visit in visits], [self.crop(visit) for visit in visits])

    def _tag_dropout(self, step_in_epoch: int) -> float:
        """Return the rate of a step: it rises over the first part of the run."""
        done = (self.first_step + step_in_epoch) / self.total_steps
        warmup = self.captions.tag_dropout_warmup
        return self.captions.tag_dropout * (min(done / warmup, 1.0) if warmup else 1.0)

    def visit(
        self, record: int, nth: int, bucket: tuple[int, int], place: tuple[int, int], tag_dropout: float
    ) -> Visit:
        """Return one draw. Its randomness depends on the run's seed, the epoch, the record and the visit alone."""
        index, epoch = self.index, self.plan.epoch
        key, flip_p, source = index.key(record), float(index.flip_p_N[record]), int(index.source_N[record])
        seed = cut_seed = derive(self.seed, "draw", epoch, key, nth)
        if self.variants is not None:
            cut_seed, flip_p = self.variants.seed_and_flip(key, self.variants.at(epoch, nth), flip_p)
        variants = index.captions[int(index.caption_offsets[record]) : int(index.caption_offsets[record + 1])]
        caption = draw_caption(
            variants,
            seed,
            dropout=float(index.dropout_N[record]),
            tags=TagRules(bool(index.shuffle_tags_N[record]), int(index.keep_tags_N[record]), tag_dropout),
            wildcards=index.wildcards,
            grammar=index.grammars[source],
        )
        return Visit(record, seed, bucket, cut_seed, flip_p, place, caption)

    def crop(self, visit: Visit) -> Crop:
        """Return where the visited image is cut, if it still has the size that the scan found."""
        size = int(self.index.width_N[visit.record]), int(self.index.height_N[visit.record])
        return choose_crop(size, visit.bucket, visit.cut_seed, self.data.crop, visit.flip_p)

    def load(self, visit: Visit, decoding: bool = True) -> Sample:
        """Return a visited image cut to its bucket; without `decoding` all but its pixels. Raises BadImage."""
        index, record = self.index, visit.record
        path = index.file(record)
        if decoding:
            pixels_HWC, mask_HW = self._pixels(record, path)
            pixels_CHW, crop = fit(pixels_HWC, visit.bucket, visit.cut_seed, self.data.crop, visit.flip_p)
        else:
            pixels_CHW, mask_HW, crop = np.zeros((3, 0, 0), np.uint8), self._mask(record), self.crop(visit)
        cut_HW = cut(mask_HW, crop) if mask_HW is not None else None
        loss_scale = float(index.loss_scale_N[record])
        return Sample(pixels_CHW, cut_HW, visit.caption, crop, loss_scale, visit.seed, index.key(record), visit.place)

    def _pixels(self, record: int, path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Return an image (HWC) and its mask (HW, of any size), None if all of it trains. Raises BadImage."""
        data, picture = self.data, picture_at(path, self.index.span(record))
        if record not in self.index.masks and data.masks == "alpha":
            return decode_with_alpha(picture, data.background, data.max_megapixels)
        mask_HW = self._mask(record)
        return decode(picture, data.background, data.max_megapixels), mask_HW

    def _mask(self, record: int) -> NDArray[np.uint8] | None:
        file, root = self.index.masks.get(record), Path(self.index.roots[int(self.index.source_N[record])])
        return read_mask(root / file, self.data.max_megapixels) if file is not None else None


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one bucket."""
    return Batch(
        pixels_BCHW=torch.from_numpy(np.stack([sample.pixels_CHW for sample in samples])),
        captions=[sample.caption for sample in samples],
        crops=[sample.crop for sample in samples],
        loss_scale_B=torch.tensor([sample.loss_scale for sample in samples], dtype=torch.float32),
        seeds=[sample.seed for sample in samples],
        keys=[sample.key for sample in samples],
        num_real=len(samples),
        places=[sample.place for sample in samples],
        mask_B1HW=_masks(samples),
    )


def _masks(samples: Sequence[Sample]) -> torch.Tensor | None:
    """Stack the masks, all of those that have none; None where no image has one."""
    if all(sample.mask_HW is None for sample in samples):
        return None
    masks = [
        np.full(sample.crop.target_size, 255, np.uint8) if sample.mask_HW is None else sample.mask_HW
        for sample in samples
    ]
    return torch.from_numpy(np.stack(masks)).unsqueeze(1).float() / 255.0


def _filler(bucket: tuple[int, int]) -> Batch:
    """Return one grey image of loss scale 0: a process with nothing to do must still take part in the step."""
    width, height = bucket
    return Batch(
        pixels_BCHW=torch.full((1, 3, height, width), 127, dtype=torch.uint8),
        captions=[""],
        crops=[Crop((height, width), 0, 0, (height, width), False)],
        loss_scale_B=torch.zeros(1),
        seeds=[0],
        keys=[""],
        num_real=0,
        places=[(0, 1)],
    )


def load_pieces(dataset: Dataset[T], workers: int) -> Iterator[T]:
    """Yield the dataset's pieces in order, decoded by `workers` processes (0: by this one)."""
    yield from DataLoader(
        dataset,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_quiet_worker if workers else None,
        prefetch_factor=2 if workers else None,
    )


def _quiet_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which finishes the step, saves and ends its workers.

    A terminal and most schedulers send them to the whole process group.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
