"""The processes in which images are decoded: each has its own tasks, so that a crash has few suspects."""

import asyncio
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import IO

from scrapers.errors import ScrapeError
from scrapers.settings import FilterSettings, ImageSettings
from scrapers.types import Item, Picture, Reason, Verdict

Task = tuple[Path, Path, Item]
"""(file as it came, where to write without extension, item)"""

MAX_S = 30.0
"""Seconds for one image; the largest take two or three. A decoder that is caught in one ends itself."""

MAX_MEMORY_BYTES = 4 << 30
"""Address space of a decoder; an image of the largest size allowed takes less than a quarter of it."""


class Decoders:
    """As many processes as there are cores, each replaced when it breaks."""

    def __init__(self, workers: int | None, images: ImageSettings, filters: FilterSettings) -> None:
        self._rules = (images, filters)
        self.num_workers = workers or os.cpu_count() or 1
        # A server process that has loaded the decoders once, and forks: no second start-up, no fork of our threads.
        method = "spawn" if sys.platform == "win32" else "forkserver"
        self._context = multiprocessing.get_context(method)
        if method == "forkserver":
            self._context.set_forkserver_preload(["scrapers.images"])
        self._free: asyncio.Queue[ProcessPoolExecutor] = asyncio.Queue()
        for _ in range(self.num_workers):
            self._free.put_nowait(self._new())

    async def check(self) -> None:
        """Raise ScrapeError if no process can be started; otherwise every image would seem to be at fault."""
        if await self._run([]) is None:
            raise ScrapeError(
                "The processes that decode images end as soon as they are started, so no image can be checked. Is "
                "there a limit on memory (ulimit -v), or does `python -c 'import scrapers.images'` fail?"
            )

    async def make(self, tasks: Sequence[Task]) -> list[Picture | Verdict]:
        """Run `make_picture` for each task in the next free process. Raises OSError if the disk takes no more."""
        if (made := await self._run(tasks)) is not None:
            return made
        tries = 1 if len(tasks) == 1 else 2
        return [await self._alone(task, tries) for task in tasks]

    async def _alone(self, task: Task, tries: int) -> Picture | Verdict:
        """Make one picture; it is to blame if its process breaks twice, since the first one may have been killed."""
        for _ in range(tries):
            if (made := await self._run([task])) is not None:
                return made[0]
        return Verdict(Reason.DECODER_CRASHED, f"the decoder crashed on it, or took more than {MAX_S:.0f} s")

    async def _run(self, tasks: Sequence[Task]) -> list[Picture | Verdict] | None:
        """Return what a process made of the tasks; None: it broke, and there is a new one."""
        pool = await self._free.get()
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, _make, tasks)
        except BrokenProcessPool:
            pool.shutdown(wait=False)
            pool = self._new()
            return None
        finally:
            self._free.put_nowait(pool)

    def close(self) -> None:
        """End the processes."""
        while not self._free.empty():
            self._free.get_nowait().shutdown(wait=True, cancel_futures=True)

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, _prepare, self._rules)


_nowhere: IO[str]
_rules: tuple[ImageSettings, FilterSettings]
"""Of the process; given once and not with every task."""


def _make(tasks: Sequence[Task]) -> list[Picture | Verdict]:
    from scrapers.images import make_picture  # noqa: PLC0415 - the main process needs no decoder

    made = []
    for task in tasks:
        # The watchdog is a thread in C, so it fires however deep in a library the process is.
        faulthandler.dump_traceback_later(MAX_S, exit=True, file=_nowhere)
        try:
            made.append(make_picture(*task, *_rules))
        finally:
            faulthandler.cancel_dump_traceback_later()
    return made


def _prepare(images: ImageSettings, filters: FilterSettings) -> None:
    """Leave Ctrl-C to the main process, which ends its workers; keep to one core, and within bounds."""
    global _rules, _nowhere
    _rules, _nowhere = (images, filters), open(os.devnull, "w")  # noqa: PTH123, SIM115 - open as long as the process
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()
    import cv2  # noqa: PLC0415

    cv2.setNumThreads(1)
    if sys.platform != "win32":
        import resource  # noqa: PLC0415

        _, most = resource.getrlimit(resource.RLIMIT_AS)
        with suppress(ValueError, OSError):  # where the system does not know such a limit
            bytes_ = MAX_MEMORY_BYTES if most == resource.RLIM_INFINITY else min(MAX_MEMORY_BYTES, most)
            resource.setrlimit(resource.RLIMIT_AS, (bytes_, most))


def _end_with_the_main_process() -> None:
    """A main process that was killed cannot end its workers, and they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
