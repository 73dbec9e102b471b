"""The gradients of one step, micro-batch by micro-batch; and smaller ones where memory does not suffice."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from everydream.data.loader import Loaded
from everydream.diffusion.settings import LossSettings, TimestepSettings
from everydream.errors import TrainingError
from everydream.models.family import Family
from everydream.step import training_step
from everydream.training.fused import FusedBackward
from everydream.training.launch import Launch
from everydream.training.metrics import Events
from everydream.types import Batch, StepResult

_MOST_NOISE = 1000.0
"""The timestep of pure noise, for schedules of a thousand timesteps and for flows."""


@dataclass
class Pending:
    """What the micro-batches of the step under way have given so far, on this process."""

    loaded: list[Loaded] = field(default_factory=list)
    results: list[torch.Tensor] = field(default_factory=list)
    """(3, images) of each part: losses, noise levels, weights."""

    def losses(self) -> torch.Tensor:
        """Return the losses of this process's images, on their device."""
        return torch.cat(self.results, 1)[0]


@dataclass
class Accumulator:
    """Adds up gradients. Where a bucket's micro-batches do not fit into memory, they go in parts from then on."""

    launch: Launch
    family: Family
    loss: LossSettings
    timesteps: TimestepSettings
    images_per_step: int
    fused: FusedBackward | None
    """Steps inside the backward pass; None: after it."""
    drop_gradients: Callable[[], None]
    events: Events
    say: Callable[[str], None]
    largest: dict[tuple[int, int], int] = field(default_factory=dict)
    """(height, width) in pixels -> how many images of this size go through at a time; where it is less than all."""

    def add(self, loaded: Loaded, pending: Pending, epoch: int) -> None:
        """Add one micro-batch's gradients. Raises TrainingError if not even one image fits into memory."""
        pending.loaded.append(loaded)
        todo = [loaded]
        while (too_large := self._try(todo, pending, epoch)) is not None:
            self._make_smaller(too_large)
            # Some of its gradients may have been added before memory ended: the step begins anew.
            self.drop_gradients()
            pending.results.clear()
            todo = pending.loaded

    @contextmanager
    def advising(self) -> Iterator[None]:
        """Raise TrainingError with advice where memory ends in the optimizer's step; the first one makes its state."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise TrainingError(f"Out of memory in the optimizer's step: {_ADVICE}") from error

    def _try(self, todo: Sequence[Loaded], pending: Pending, epoch: int) -> Batch | None:
        """Add the micro-batches; return the one that memory did not suffice for, if there is one."""
        for loaded in todo:
            try:
                with self.launch.micro_batch(loaded.piece.is_last_of_step):
                    pending.results += [self._add(part, epoch) for part in self._parts(loaded.batch)]
            except torch.OutOfMemoryError:
                return loaded.batch
        return None

    def _add(self, batch: Batch, epoch: int) -> torch.Tensor:
        """Go forward and back; return losses, noise levels and weights of the real images, (3, B)."""
        batch = batch.to(self.launch.device)
        result = self.forward(batch)
        if self.fused is None:
            self.launch.backward(result.loss)
        elif batch.num_real:
            self.fused.run(result.loss, lambda: self.forward(batch).loss, epoch, self.launch.backward)
        rows = (result.per_image_B, result.t_B / _MOST_NOISE, result.weight_B)
        return torch.stack([row.float() for row in rows])[:, : batch.num_real]

    def forward(self, batch: Batch) -> StepResult:
        """Return the losses of a batch that is on the device."""
        with self.launch.autocast():
            return training_step(batch, self.family, self.loss, self.images_per_step, self.timesteps)

    def _parts(self, batch: Batch) -> list[Batch]:
        size = self.largest.get(batch.image_hw, len(batch.seeds))
        return [batch.part(first, first + size) for first in range(0, len(batch.seeds), size)]

    def _make_smaller(self, batch: Batch) -> None:
        """Halve what goes through at a time at this size; images weigh the same wherever they fall."""
        height, width = batch.image_hw
        size = min(self.largest.get((height, width), len(batch.seeds)), len(batch.seeds))
        if size == 1 or self.launch.world > 1 or self.fused is not None:
            raise TrainingError(_advice(batch, size, self.launch.world, self.fused is not None))
        self.largest[height, width] = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        told = f"Out of memory with {size} images of {width}x{height}: from now on {(size + 1) // 2} of them at a time"
        self.events.note("out of memory", width=width, height=height, images=size, now=(size + 1) // 2)
        self.say(f"{told}; the batch stays what it is.")


_ADVICE = (
    "Nothing is lost but the steps since the last save. Lower data.resolution or train.batch_size (with more "
    "train.gradient_accumulation), choose memory.level: low or minimal, or see what takes it: everydream preflight."
)


def _advice(batch: Batch, size: int, world: int, is_fused: bool) -> str:
    height, width = batch.image_hw
    why = "not even one image fits" if size == 1 else f"{size} images of {width}x{height} do not fit"
    if size > 1:
        why += (
            ", and with memory.fused_backward, which steps as it goes, a batch cannot be begun anew"
            if is_fused
            else f", and with {world} processes one of them cannot begin a step anew"
        )
    return f"Out of memory at {width}x{height}: {why}. {_ADVICE}"
