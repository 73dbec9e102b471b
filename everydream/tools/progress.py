"""The progress of a tool: a bar on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG_EVERY_S = 10.0


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yield a callable that shows (images done, counts in words) on stderr, with images per second and time left."""
    console = Console(stderr=True)
    started = last_log = time.monotonic()
    bar = Progress(
        TextColumn(what), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task(what, total=total, said="")

    def show(done: int, counts: str) -> None:
        nonlocal last_log
        now = time.monotonic()
        rate = done / max(now - started, 1e-9)
        said = f"{rate:.1f} images/s  {counts}".rstrip()
        bar.update(task, completed=done, said=said)
        if not console.is_terminal and now - last_log > _LOG_EVERY_S:
            last_log = now
            left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate))
            console.print(f"{what} {done}/{total}  {said}  left {left}", highlight=False, markup=False, soft_wrap=True)

    with bar:
        yield show
