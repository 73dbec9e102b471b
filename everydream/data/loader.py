"""From the plan to batches: worker processes decode, cut and collate, in the plan's order.

    plan -> jobs (a piece and its draws, all that a worker is told) -> visits -> samples -> a batch in shared memory

A worker holds the index, which it shares with its parent, and no plan: a job is a few hundred bytes. A picture that
passed the scan but cannot be decoded now (it changed, its disk failed, only headers were checked) leaves its batch
smaller and is reported; it is never replaced by another one.
"""

import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from everydream.data.buckets import Buckets
from everydream.data.collating import collate, filler
from everydream.data.drawing import TagRules, draw_caption
from everydream.data.fitting import Variants, choose_crop, cut, read_cut
from everydream.data.masks import read_mask
from everydream.data.plan import Piece, draws_of_step
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.data.shards import picture_at
from everydream.errors import TrainingError
from everydream.seeding import derive
from everydream.types import Batch, Conditioning, Crop, EpochPlan, Index, Rejection, Sample
from pictures.decode import BadImage

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
    records: Sequence[int] = ()
    """Where the images that are not fillers stand in the index."""

    def pin_memory(self) -> "Loaded":
        """Return it with the batch in page-locked memory, from which a GPU copies by itself."""
        return replace(self, batch=self.batch.pin_memory())


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


class Job(NamedTuple):
    """A piece of a plan with its draws."""

    piece: Piece
    epoch: int
    step: int
    """Optimizer steps of the run before it."""
    records: Sequence[int]
    nths: Sequence[int]
    """Of each draw, the how-manieth visit of its record in the epoch."""
    first: int
    """The number of the first draw among the images of its optimizer step."""
    num_images: int
    """How many images that step has."""


def jobs_of(plan: EpochPlan, pieces: Iterable[Piece], first_step: int) -> Iterator[Job]:
    """Yield pieces of a plan as jobs. `first_step`: steps of the run before this epoch."""
    for piece in pieces:
        start, num_images = draws_of_step(plan, piece.step_in_epoch)
        draws = slice(piece.start, piece.start + piece.size)
        records, nths = plan.record_K[draws].tolist(), plan.nth_K[draws].tolist()
        step = first_step + piece.step_in_epoch
        yield Job(piece, plan.epoch, step, records, nths, piece.start - start, num_images)


_AS_WRITTEN = CaptionSettings()


class JobDataset(Dataset[Loaded]):
    """Does jobs of any epoch of a run; holds no state that changes."""

    def __init__(
        self,
        index: Index,
        buckets: Buckets,
        data: DataSettings,
        seed: int,
        captions: CaptionSettings = _AS_WRITTEN,
        total_steps: int = 1,
        variants: Variants | None = None,
        known: Known | None = None,
    ) -> None:
        """`variants`: None draws crop and mirroring anew at each visit. `known`: what need not be decoded."""
        self.variants, self.known = variants, known
        self.index, self.buckets, self.data, self.seed = index, buckets, data, seed
        self.captions, self.total_steps = captions, total_steps

    def __getitem__(self, job: Job) -> Loaded:
        visits = self._visits(job)
        moments_BCHW = self._moments(visits)
        samples, sound, failed = [], [], []
        for nth, visit in enumerate(visits):
            try:
                samples.append(self.load(visit, moments_BCHW is None))
                sound.append(nth)
            except BadImage as error:
                source, path = int(self.index.source_N[visit.record]), self.index.paths[visit.record]
                failed.append(Rejection(source, path, str(error)))
        batch = collate(samples) if samples else filler(self.buckets.sizes[job.piece.bucket])
        if samples and moments_BCHW is not None:
            batch = replace(batch, moments_BCHW=moments_BCHW[sound])
        records = [job.records[nth] for nth in sound]
        if self.known is None:
            return Loaded(job.piece, batch, failed, (), records)
        read, notes = self.known.read(batch.captions), self.known.take_notes()
        return Loaded(job.piece, replace(batch, read=read), failed, notes, records)

    def _visits(self, job: Job) -> list[Visit]:
        tag_dropout, bucket = self.tag_dropout(job.step), self.buckets.sizes[job.piece.bucket]
        return [
            self.visit(job.epoch, record, nth, bucket, (place, job.num_images), tag_dropout)
            for place, (record, nth) in enumerate(zip(job.records, job.nths, strict=True), job.first)
        ]

    def _moments(self, visits: Sequence[Visit]) -> torch.Tensor | None:
        if self.known is None or not visits:
            return None
        return self.known.moments([visit.record for visit in visits], [self.crop(visit) for visit in visits])

    def tag_dropout(self, step: int) -> float:
        """Return the rate of a step of the run: it rises over the first part of it."""
        done = step / self.total_steps
        warmup = self.captions.tag_dropout_warmup
        return self.captions.tag_dropout * (min(done / warmup, 1.0) if warmup else 1.0)

    def visit(
        self, epoch: int, record: int, nth: int, bucket: tuple[int, int], place: tuple[int, int], tag_dropout: float
    ) -> Visit:
        """Return one draw. Its randomness depends on the run's seed, the epoch, the record and the visit alone."""
        index = self.index
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

    def crop(self, visit: Visit, size: tuple[int, int] | None = None) -> Crop:
        """Return where the visited image is cut, if its (width, height) is `size`; None: what the scan found."""
        if size is None:
            size = int(self.index.width_N[visit.record]), int(self.index.height_N[visit.record])
        return choose_crop(size, visit.bucket, visit.cut_seed, self.data.crop, visit.flip_p)

    def load(self, visit: Visit, decoding: bool = True) -> Sample:
        """Return a visited image cut to its bucket; without `decoding` all but its pixels. Raises BadImage."""
        index, record, data = self.index, visit.record, self.data
        mask_HW = self._mask(record)
        if decoding:
            by_opacity = data.masks == "alpha" and record not in index.masks
            picture = picture_at(index.file(record), index.span(record))
            pixels_CHW, crop, alpha_HW = read_cut(
                picture, lambda size: self.crop(visit, size), data.background, data.max_megapixels, by_opacity
            )
            mask_HW = alpha_HW if by_opacity else mask_HW
        else:
            pixels_CHW, crop = np.zeros((3, 0, 0), np.uint8), self.crop(visit)
        cut_HW = cut(mask_HW, crop) if mask_HW is not None else None
        loss_scale = float(index.loss_scale_N[record])
        return Sample(pixels_CHW, cut_HW, visit.caption, crop, loss_scale, visit.seed, index.key(record), visit.place)

    def _mask(self, record: int) -> NDArray[np.uint8] | None:
        file, root = self.index.masks.get(record), Path(self.index.roots[int(self.index.source_N[record])])
        return read_mask(root / file, self.data.max_megapixels) if file is not None else None


class PieceDataset(Dataset[Loaded]):
    """Loads pieces of one epoch's plan, by their number. What it takes is as for `JobDataset` and `jobs_of`."""

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
        self.pieces, self.plan, self.first_step = pieces, plan, first_step
        self.jobs = JobDataset(index, buckets, data, seed, captions, total_steps, variants, known)

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, number: int) -> Loaded:
        return self.jobs[next(jobs_of(self.plan, [self.pieces[number]], self.first_step))]


def load_pieces(
    dataset: Dataset[T], workers: int, order: Iterable[object] | None = None, pin: bool = False
) -> Generator[T, None, None]:
    """Yield a dataset's items in order, made by `workers` processes (0: by this one), which live until the last one.

    `order`: what to ask of the dataset, taken up as workers become free; None: 0, 1, ... `pin`: for a GPU.
    Raises TrainingError where the system ends a worker.
    """
    try:
        yield from DataLoader(
            dataset,
            batch_size=None,
            sampler=order,
            num_workers=workers,
            worker_init_fn=_quiet_worker if workers else None,
            prefetch_factor=2 if workers else None,
            pin_memory=pin,
        )
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"A process that decodes images is gone, so the run cannot go on: {str(error).strip()} Mostly that is for "
            "want of memory. Close other programs or lower data.workers, and resume the run from its last.ckpt."
        ) from error


def _quiet_worker(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process, which finishes the step, saves and ends its workers.

    A terminal and most schedulers send them to the whole process group.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
