"""What a run writes: last.ckpt, exports, sample pictures, what is kept of the base; each a callable for the loop."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.optim import Optimizer

from everydream import provenance
from everydream.config import RunConfig
from everydream.data.drawing import longest_reading
from everydream.errors import DiskError
from everydream.evaluation.grids import labelled_grid
from everydream.evaluation.measuring import Loss
from everydream.formats.atomic import format_bytes, require_space
from everydream.formats.files import write_pickle
from everydream.formats.sharded import write_sharded
from everydream.methods.method import Method, ParameterGroup
from everydream.models.family import Family
from everydream.sampling.prompts import prompts_from_captions, read_prompts
from everydream.sampling.sampler import sample_images
from everydream.training import export, state
from everydream.training.background import Background, Snapshot
from everydream.training.display import Display
from everydream.training.ema import Ema
from everydream.training.launch import Launch
from everydream.training.lean import Lean
from everydream.training.metrics import Events
from everydream.training.optim import evaluated, group_state, optimizer_state
from everydream.training.runs import LAST
from everydream.training.waits import Waits
from everydream.types import Index, Progress


@dataclass(frozen=True)
class Trainee:
    """A model with everything that moves it."""

    family: Family
    method: Method
    groups: Sequence[ParameterGroup]
    optimizer: Optimizer | Lean
    ema: Ema | None
    last_bytes: int
    """About how large last.ckpt is."""
    export_bytes: int
    """How large one export is in all its formats."""


def disk_needed(config: RunConfig, trainee: Trainee) -> int:
    """Return the most that the checkpoints take at a time: last.ckpt twice, while it is replaced, and the exports."""
    kept = (config.checkpoints.keep or 1) + config.checkpoints.keep_best
    return 2 * trainee.last_bytes + trainee.export_bytes * (kept + 1)


@dataclass
class Writer:
    """Writes checkpoints, on the main process; the others wait."""

    config: RunConfig
    folder: Path
    launch: Launch
    trainee: Trainee
    facts: state.Facts
    events: Events
    display: Display
    made_of: Mapping[str, Any]
    """What is the same in what all files of the run say of how they were made."""
    base: dict[int, Loss]
    """The base's losses, which the monitors add before training; saved so that a resume compares with the same."""
    watch: Callable[[int], dict[str, Any]] = lambda _: {}
    """What else the monitors remember, as of a step."""
    best_of: Callable[[Collection[int]], int | None] = lambda _: None
    """Which of some steps is kept for being the best; None: none."""
    waits: Waits = field(default_factory=Waits)
    unsaved: str | None = None
    """Why the latest last.ckpt could not be written, if it could not."""
    unexported: str | None = None
    """Why the latest export could not be written, if it could not."""
    _background: Background = field(default_factory=Background)
    _snapshot: Snapshot = field(default_factory=Snapshot)
    _writing: tuple[str, Callable[[], None]] = ("", lambda: None)
    """What is being written beside the training, and what follows when it is there."""

    def save(self, progress: Progress) -> None:
        """Write last.ckpt, beside the training where memory has room for a copy of what it holds.

        On a full disk the old one stays and training goes on.
        """
        with self.waits.on("save"):
            self.saved(wait=True)
            self.unsaved = self._guarded(_named(progress), lambda: self._save(progress))
            self.launch.wait()

    def saved(self, wait: bool = False) -> str | None:
        """Take in a last.ckpt that was written beside the training; return why the latest could not be, if so."""
        what, after = self._writing

        def take_in() -> None:
            if self._background.ended(wait):
                after()

        self.unsaved = self._guarded(what, take_in) or self.unsaved
        return self.unsaved

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Wait for what is being written when the block ends, however it ends."""
        try:
            yield
        finally:
            with self.waits.on("save"):
                self.saved(wait=True)

    def export(self, progress: Progress) -> None:
        """Write the exports that are due; a failure is told, and training goes on."""
        with self.waits.on("export"):
            self.saved(wait=True)  # what it makes superfluous goes first, or the disk would hold an export more
            self.unexported = self._guarded(f"The export at step {progress.step}", lambda: self._export(progress))
            self.launch.wait()

    def _guarded(self, what: str, write: Callable[[], None]) -> str | None:
        try:
            write()
        except (DiskError, OSError) as problem:
            error = f"{what} could not be written: {problem}"
            self.events.note("not written", error=error)
            self.display.say(f"{error} What was saved before is still there.")
            return error
        return None

    def _require_space(self, needed_bytes: int, what: str) -> None:
        """Raise DiskError on all processes alike if the main one sees no room."""
        problem: str | None = None
        if self.launch.is_main:
            try:
                require_space(self.folder, needed_bytes, what)
            except DiskError as error:
                problem = str(error)
        if problem := self.launch.from_main(problem):
            raise DiskError(problem)

    def _save(self, progress: Progress) -> None:
        self._require_space(self.trainee.last_bytes, LAST)
        path, launch, config = self.folder / LAST, self.launch, self.config
        keep = config.checkpoints.keep if launch.is_main else None
        old = export.old_exports(self.folder, config.project, keep, progress.step, self.best_of)
        copy = self._copied(progress) if launch.is_main and not launch.shards else None
        if copy is not None:
            self._writing = _named(progress), lambda: self._after_save(progress.step, old)
            self._background.start(lambda: write_pickle(path, copy))
            return
        if launch.shards:
            write_sharded(path, self._contents(progress), write_pickle, launch.is_main, launch.from_main)
        elif launch.is_main:
            write_pickle(path, self._contents(progress))
        self._after_save(progress.step, old)

    def _copied(self, progress: Progress) -> dict[str, Any] | None:
        """Return a copy of all that last.ckpt holds; None where memory has no room for one."""
        if not self._snapshot.has_room(self.trainee.last_bytes):
            return None
        try:
            copy: dict[str, Any] = self._snapshot.of(self._contents(progress))
        except (MemoryError, OSError, RuntimeError):  # however memory ends; the file itself can still be written
            self._snapshot.drop()
            return None
        return copy

    def _after_save(self, step: int, old: Sequence[Path]) -> None:
        """Note that last.ckpt is there, and only now delete what an older one might have been gone on with."""
        self.events.note("saved", step=step)
        try:
            export.delete(old)
        except OSError as problem:
            self.display.say(f"An older export could not be deleted: {problem}")

    def _contents(self, progress: Progress) -> dict[str, Any]:
        trainee = self.trainee
        return state.checkpoint_contents(
            trainee.family,
            groups=trainee.groups,
            optimizer=optimizer_state(trainee.optimizer, trainee.groups),
            optimizer_groups=group_state(trainee.optimizer, trainee.groups),
            ema=trainee.ema.state_dict() if trainee.ema is not None else {},
            scaler=self.launch.scaler_state(),
            progress=progress,
            facts=self.facts,
            machine=self.launch.machine(),
            base=self.base,
            watch=self.watch(progress.step),
            provenance=provenance.at(self.made_of, progress),
        )

    def _export(self, progress: Progress) -> None:
        if not self.config.checkpoints.formats:
            return
        self._require_space(self.trainee.export_bytes, "an export")
        method, family, config = self.trainee.method, self.trainee.family, self.config
        about = provenance.told(config, provenance.at(self.made_of, progress))
        written: list[Path] = []
        with self.shown_weights():
            if self.launch.is_main:
                written = export.export(
                    method, family, self.folder, config.project, progress, config.checkpoints, about
                )
        for path in written:
            self.events.note("exported", step=progress.step, path=path.name)
            self.display.say(f"Wrote {path}")

    @contextmanager
    def shown_weights(self) -> Iterator[None]:
        """Hold, whole, the weights to show: the average where one is kept and wanted; all processes enter together.

        Some optimizers keep one by themselves.
        """
        ema = self.trainee.ema if self.config.checkpoints.use_ema else None
        averaged = ema.swapped_in() if ema is not None else evaluated(self.trainee.optimizer)
        with self._whole(averaged):
            yield

    def other_weights(self) -> tuple[str, AbstractContextManager[None]] | None:
        """Return, where an average is kept, the weights that are not shown: their name, and a block that holds them."""
        ema = self.trainee.ema
        if ema is None:
            return None
        return (
            ("trained", self._whole(nullcontext()))
            if self.config.checkpoints.use_ema
            else ("averaged", self._whole(ema.swapped_in()))
        )

    @contextmanager
    def _whole(self, weights: AbstractContextManager[None]) -> Iterator[None]:
        with weights, self.launch.whole(self.trainee.family):
            yield


def _named(progress: Progress) -> str:
    return f"{LAST} at step {progress.step}"


def _readable(index: Index) -> list[str]:
    """Return all captions, those with wildcards or in kohya's grammar as one reading of them."""
    sources = np.repeat(index.source_N, np.diff(index.caption_offsets))
    return [
        longest_reading(caption, index.wildcards, index.grammars[source])
        for caption, source in zip(index.captions, sources.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Sampler:
    """Draws the sample pictures: files, a labelled grid, and the trackers."""

    config: RunConfig
    folder: Path
    launch: Launch
    writer: Writer
    index: Index

    def prompts(self) -> list[str]:
        """Return the prompts as they stand now; the file may change while the run goes on."""
        path = self.config.samples.prompts
        return read_prompts(Path(path)) if path is not None else prompts_from_captions(_readable(self.index))

    def __call__(self, step: int) -> None:
        """Draw every prompt at every guidance scale after `step` steps."""
        settings, prompts = self.config.samples, self.prompts()
        rows: list[list[NDArray[np.uint8]]] = [[] for _ in prompts]
        with self.writer.shown_weights(), self.launch.autocast():
            if not self.launch.is_main:
                return
            for guidance in settings.guidance:
                for row, image in zip(rows, self.sampled(prompts, guidance), strict=True):
                    row.append(image)
        self._write(step, prompts, rows)

    def sampled(self, prompts: Sequence[str], guidance: float) -> list[NDArray[np.uint8]]:
        """Return one picture a prompt, by the weights that are in place."""
        settings, multiple = self.config.samples, self.writer.trainee.family.side_multiple
        resolution = max(self.config.data.resolution // multiple, 1) * multiple
        images: list[NDArray[np.uint8]] = []
        for first in range(0, len(prompts), settings.batch_size):
            part = prompts[first : first + settings.batch_size]
            images += sample_images(
                self.writer.trainee.family,
                part,
                [settings.seed + first + number for number in range(len(part))],
                width=settings.width or resolution,
                height=settings.height or resolution,
                steps=settings.steps,
                guidance=guidance,
                negative_prompt=settings.negative_prompt,
                sampler=settings.sampler,
            )
        return images

    def _write(self, step: int, prompts: Sequence[str], rows: Sequence[Sequence[NDArray[np.uint8]]]) -> None:
        self.folder.mkdir(exist_ok=True)
        scales = [f"guidance {guidance:g}" for guidance in self.config.samples.guidance]
        for number, row in enumerate(rows):
            for guidance, image in zip(self.config.samples.guidance, row, strict=True):
                Image.fromarray(image).save(self.folder / f"s{step:06d}-p{number:02d}-g{guidance:g}.png")
        grid = labelled_grid(rows, prompts, scales, f"{self.config.project}, step {step}")
        Image.fromarray(grid).save(self.folder / f"s{step:06d}-grid.png")
        self.launch.track_images({"samples": grid}, step)


def size_report(config: RunConfig, trainee: Trainee) -> Mapping[str, str]:
    """Return what the run takes on disk, in words."""
    return {
        "last.ckpt": format_bytes(trainee.last_bytes),
        "an export": format_bytes(trainee.export_bytes),
        "at most at a time": format_bytes(disk_needed(config, trainee)),
    }
