"""A run's pieces as one stream over its epochs: its workers live as long as it does, and are always ahead of it.

While the last steps of an epoch compute, the first of the next one are decoded. A plan is made once, in this process,
which cuts it into jobs as workers ask for them.
"""

from collections.abc import Callable, Generator, Iterator
from types import TracebackType

from torch.utils.data import Dataset

from everydream.data.loader import Job, Loaded, jobs_of, load_pieces
from everydream.data.plan import pieces_for_rank
from everydream.types import EpochPlan


class Stream:
    """One process's pieces of a run, asked for by epoch; to be closed, which ends the workers."""

    def __init__(
        self,
        jobs: Dataset[Loaded],
        plan_of: Callable[[int], EpochPlan],
        first_steps: list[int],
        total_steps: int,
        part: tuple[int, int],
        workers: int,
        pin: bool = False,
    ) -> None:
        """`first_steps`: steps of the run before each of its epochs. `part`: (this process, how many)."""
        self.jobs, self.plan_of, self.first_steps, self.total_steps = jobs, plan_of, first_steps, total_steps
        self.part, self.workers, self.pin = part, workers, pin
        self._coming: Generator[Loaded, None, None] | None = None
        self._next: tuple[int, int] | None = None
        """The epoch and step that what is coming begins with; None where that was left in the middle."""

    def epoch(self, plan: EpochPlan, start: int) -> Iterator[Loaded]:
        """Yield the pieces of an epoch from a step on; where the last epoch ended, its workers go on."""
        if self._next != (plan.epoch, start):
            self.close()
            self._coming = load_pieces(self.jobs, self.workers, self._order(plan.epoch, start), self.pin)
        self._next = None
        last = min(plan.num_steps, self.total_steps - self.first_steps[plan.epoch]) - 1
        if start <= last and self._coming is not None:
            for loaded in self._coming:
                yield loaded
                if loaded.piece.is_last_of_step and loaded.piece.step_in_epoch == last:
                    break
        self._next = (plan.epoch + 1, 0)

    def _order(self, epoch: int, start: int) -> Iterator[Job]:
        for number, first_step in enumerate(self.first_steps):
            if number >= epoch and first_step < self.total_steps:
                yield from self._jobs_of(self.plan_of(number), start if number == epoch else 0, first_step)

    def _jobs_of(self, plan: EpochPlan, start: int, first_step: int) -> Iterator[Job]:
        for job in jobs_of(plan, pieces_for_rank(plan, *self.part, start), first_step):
            if job.step >= self.total_steps:
                return
            yield job

    def close(self) -> None:
        """End the workers."""
        if self._coming is not None:
            self._coming.close()
        self._coming, self._next = None, None

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
