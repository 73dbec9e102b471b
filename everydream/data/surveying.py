"""Who opens the images of portions that are not known yet: threads, processes, or a Ray cluster; results as they come.

What was found is written down every few seconds, so a scan that is killed goes on from there.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from everydream.data.checking import num_threads
from everydream.data.columns import Chunk
from everydream.data.kept import Kept
from everydream.data.portions import Portion, Task, survey

Tasks = Mapping[int, Task]
"""What the portions of each source have in common, by its number."""
Engine = Callable[[Tasks, Sequence[Portion]], Iterator[Chunk]]
"""Yields a chunk for each portion, in their order."""

_FEW_IMAGES = 4000
"""Up to so many headers are read by this process: starting others takes longer."""
_AT_ONCE = 4
_WRITE_S = 2.0


def surveyed(
    tasks: Tasks, portions: Sequence[Portion], kept: Kept, engine: Engine | None = None
) -> Iterator[tuple[Portion, Chunk]]:
    """Yield every portion with what is found in it: first those that are known, then the others, which are opened."""
    missing = []
    for portion in portions:
        chunk = kept.get(_key(tasks, portion))
        if chunk is None:
            missing.append(portion)
        else:
            yield portion, chunk
    kept.renew([_key(tasks, portion) for portion in portions])
    fresh: list[tuple[bytes, Chunk]] = []
    written = time.monotonic()
    try:
        for portion, chunk in zip(missing, (engine or _local)(tasks, missing), strict=True):
            fresh.append((_key(tasks, portion), chunk))
            yield portion, chunk
            if time.monotonic() > written + _WRITE_S:
                kept.put(fresh)
                fresh, written = [], time.monotonic()
    finally:
        kept.put(fresh)


def _key(tasks: Tasks, portion: Portion) -> bytes:
    """Return what a portion is known by: decoded images and their headers are two things."""
    return portion.signature and portion.signature + (b"f" if tasks[portion.source].full else b"h")


def _local(tasks: Tasks, portions: Sequence[Portion]) -> Iterator[Chunk]:
    """Survey on this machine: in threads where pixels are decoded, in processes where headers of many are read."""
    images = sum(portion.images for portion in portions)
    full = any(task.full for task in tasks.values())
    if full or images <= _FEW_IMAGES or num_processes() == 1:
        with ThreadPoolExecutor(num_threads() if full else 1) as pool:
            yield from pool.map(lambda portion: survey(tasks[portion.source], portion), portions)
        return
    # Never forks of this process: it may hold threads and a model library.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(num_processes(), context, _begin, (dict(tasks),))
    done = 0
    try:
        for chunk in executor.map(_survey, portions, chunksize=_AT_ONCE):
            done += 1
            yield chunk
    except BrokenProcessPool:
        pass  # what killed it kills this process or does not
    finally:
        executor.shutdown(cancel_futures=True)
    yield from (survey(tasks[portion.source], portion) for portion in portions[done:])


def num_processes() -> int:
    """Return how many processes this one may start: the cores, shared with the other ranks of a run on this machine."""
    return max(1, (os.cpu_count() or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class _Worker:
    """What a process of the pool was started with."""

    tasks: Tasks = {}


def _begin(tasks: Tasks) -> None:
    # Ctrl-C is left to the main process, which ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Worker.tasks = tasks


def _survey(portion: Portion) -> Chunk:
    return survey(_Worker.tasks[portion.source], portion)
