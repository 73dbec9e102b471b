"""The engine on a Ray cluster: portions of the rows as tasks, at most one at a time for the hosts of a group.

So a site is asked by one machine only, and its limits hold. The driver reads the source, keeps the ledger and
publishes; the machines share the folder of the set. A task that is lost with its machine is run again.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typing_extensions import Self

from scrapers.domains import group_of
from scrapers.errors import ScrapeError
from scrapers.fetch.robots import Store
from scrapers.settings import ScrapeSettings
from scrapers.shard import ShardSpec, run_shard
from scrapers.types import Item, Outcome

PORTION = 256
"""Items of a task: some seconds of work, so that little is lost with a machine."""
_TRIES = 4


class RayEngine:
    """Gives portions to Ray and outcomes to `done`."""

    num_bytes = 0
    """Not known here: the machines receive."""

    def __init__(self, settings: ScrapeSettings, staging: Path, store: Store, done: Callable[[Outcome], None]) -> None:
        # A decoder per task, as Ray gives it one core.
        self._settings = settings.model_copy(update={"workers": 1}).model_dump_json()
        self._staging, self._done = str(staging.absolute()), done
        self._wake = asyncio.Event()
        self._flush = False
        self._ray = _connected()
        self._run_shard = self._ray.remote(num_cpus=1, max_retries=3)(run_shard)
        num_groups = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._groups: list[deque[Item]] = [deque() for _ in range(num_groups)]
        self._busy: dict[int, asyncio.Task[None]] = {}
        self.window = 2 * num_groups * PORTION

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        """The cluster is the user's, and stays."""

    def submit(self, item: Item) -> None:
        """Put an item with the others of its host."""
        self._groups[group_of(item.url, len(self._groups))].append(item)
        self._flush = False
        self._wake.set()

    def flush(self) -> None:
        """Give out small portions too."""
        self._flush = True
        self._wake.set()

    async def run(self) -> None:
        """Give out portions until cancelled."""
        try:
            while True:
                self._wake.clear()
                for group, items in enumerate(self._groups):
                    if group not in self._busy and items and (self._flush or len(items) >= PORTION):
                        portion = tuple(items.popleft() for _ in range(min(PORTION, len(items))))
                        spec = ShardSpec(self._settings, self._staging, group, portion)
                        self._busy[group] = asyncio.create_task(self._one(spec))
                await self._wake.wait()
                for task in [task for task in self._busy.values() if task.done()]:
                    task.result()
                self._busy = {group: task for group, task in self._busy.items() if not task.done()}
        finally:
            for task in self._busy.values():
                task.cancel()
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def _one(self, spec: ShardSpec) -> None:
        try:
            for outcome in await self._outcomes(spec):
                self._done(outcome)
        finally:
            self._wake.set()

    async def _outcomes(self, spec: ShardSpec) -> list[Outcome]:
        """Run a portion, once more for each time that the cluster loses it."""
        for left in reversed(range(_TRIES)):
            reference = self._run_shard.remote(spec)
            try:
                outcomes: list[Outcome] = await reference
                return outcomes
            except self._ray.exceptions.RayTaskError:
                raise  # our own error: the disk is full
            except self._ray.exceptions.RayError as error:
                if not left:
                    raise ScrapeError(
                        f"Ray lost the rows {spec.items[0].number} to {spec.items[-1].number} {_TRIES} times: {error}. "
                        "Look at the cluster; the same command goes on from here."
                    ) from error
            except asyncio.CancelledError:
                self._ray.cancel(reference, force=True)
                raise
        raise AssertionError("the last try returns or raises")


def _connected() -> Any:
    """Return ray, connected to the cluster that RAY_ADDRESS names, or to one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ScrapeError('--engine ray needs Ray: pip install -c constraints.txt -e ".[ray]"') from error
    if not ray.is_initialized():
        # Said outright: left to itself, Ray joins whatever cluster runs on this machine.
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address, include_dashboard=False, log_to_driver=False)
    return ray
