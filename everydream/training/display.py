"""What the user sees while it trains: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_LOG_EVERY_S = 10.0


class Display:
    """Progress of the run; silent in every process but the main one."""

    def __init__(self, enabled: bool) -> None:
        self.console = Console(stderr=True, quiet=not enabled)
        self._enabled = enabled
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._images = 0

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a callable that shows (done, total) of something: a bar on a terminal, a line now and then in a log."""
        started = last_log = time.monotonic()
        with Progress(
            TextColumn(what), BarColumn(None), TextColumn("{task.completed}/{task.total}  {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console, transient=True, disable=not (self._enabled and self.console.is_terminal),
        ) as bar:  # fmt: skip
            task = bar.add_task(what, total=None, rate="")

            def show(done: int, total: int) -> None:
                nonlocal last_log
                now = time.monotonic()
                rate = done / max(now - started, 1e-9)
                bar.update(task, completed=done, total=total, rate=f"{rate:.1f}/s")
                if self._enabled and not self.console.is_terminal and now - last_log > _LOG_EVERY_S:
                    last_log = now
                    left = time.strftime("%H:%M:%S", time.gmtime((total - done) / max(rate, 1e-9)))
                    self.say(f"{what} {done}/{total}  {rate:.1f}/s  left {left}")

            yield show

    @contextmanager
    def training(self, total_steps: int, done_steps: int, epochs: int) -> Iterator[None]:
        """Show a bar inside the block, where there is a terminal."""
        self._total, self._epochs, self._done_at_start = total_steps, epochs, done_steps
        self._started = self._last_log = time.monotonic()
        if self._enabled and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}  step {task.completed}/{task.total}"),
                BarColumn(None),
                TextColumn("{task.fields[rate]}  loss {task.fields[loss]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("", total=total_steps, completed=done_steps, epoch="", rate="", loss="")
            self._bar.start()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()

    def say(self, message: str) -> None:
        """Print a message above the bar."""
        self.console.print(message, highlight=False, markup=False, soft_wrap=True)

    @property
    def images_per_s(self) -> float:
        """Images per second since the run was started or resumed, all processes together."""
        return self._images / max(time.monotonic() - self._started, 1e-9)

    def advance(self, step: int, epoch: int, images: int, loss: float) -> None:
        """Show that a step is done."""
        self._images += images
        rate = f"{self.images_per_s:.2f} images/s"
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, epoch=f"{epoch + 1}/{self._epochs}", rate=rate, loss=f"{loss:.4f}"
            )
        elif self._enabled and (time.monotonic() - self._last_log > _LOG_EVERY_S or step == self._total):
            self._last_log = time.monotonic()
            per_step = (self._last_log - self._started) / max(step - self._done_at_start, 1)
            left = time.strftime("%H:%M:%S", time.gmtime(per_step * (self._total - step)))
            self.say(
                f"epoch {epoch + 1}/{self._epochs}  step {step}/{self._total}  {rate}  loss {loss:.4f}  left {left}"
            )
