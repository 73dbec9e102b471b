"""The scan on a Ray cluster: some portions a task, results in order.

The machines must see the sources under the same paths: a shared file system, or URLs. The driver lists, keeps what is
found, and writes the index; a task that is lost with its machine is run again by Ray.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from everydream.data.columns import Chunk
from everydream.data.portions import Portion, survey
from everydream.data.surveying import Tasks
from everydream.errors import ConfigError, DataError

_PORTIONS = 16
"""Of a task: about a second of work."""
_AHEAD = 4
"""Tasks under way for each core."""


def surveyed_by_ray(tasks: Tasks, portions: Sequence[Portion]) -> Iterator[Chunk]:
    """Yield a chunk for each portion, in their order."""
    ray = _connected()
    common = ray.put(dict(tasks))
    remote = ray.remote(num_cpus=1, max_retries=3)(_survey_some)
    waiting: deque[Any] = deque()
    limit = max(1, int(ray.cluster_resources().get("CPU", 1))) * _AHEAD
    try:
        for first in range(0, len(portions), _PORTIONS):
            waiting.append(remote.remote(common, list(portions[first : first + _PORTIONS])))
            if len(waiting) >= limit:
                yield from ray.get(waiting.popleft())
        while waiting:
            yield from ray.get(waiting.popleft())
    except ray.exceptions.RayError as error:
        raise DataError(
            f"Ray could not finish the scan ({error}). Look at the cluster; the same command goes on."
        ) from error


def _survey_some(tasks: Tasks, portions: Sequence[Portion]) -> list[Chunk]:
    return [survey(tasks[portion.source], portion) for portion in portions]


def _connected() -> Any:
    """Return ray, connected to the cluster that RAY_ADDRESS names, or to one on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError('--engine ray needs Ray: pip install -c constraints.txt -e ".[ray]"') from error
    if not ray.is_initialized():
        # Said outright: left to itself, Ray joins whatever cluster runs on this machine.
        address = os.environ.get("RAY_ADDRESS") or "local"
        ray.init(address, include_dashboard=False, log_to_driver=False)
    return ray
