"""Run a command and print, as one line of JSON, what its whole tree of processes cost.

    python benchmarks/scrape/measure.py COMMAND [ARG ...]

CPU is that of all descendants, also of those that outlive their parents (Linux: this process adopts and reaps them).
Memory is the most that all of them held at a time, shared pages counted once (PSS), looked at every 0.2 s.
"""

import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

_SET_CHILD_SUBREAPER = 36
_EVERY_S = 0.2


def descendants(root: int) -> list[int]:
    """Return the processes below one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found, frontier = [], [root]
    while frontier:
        above = frontier.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found += below
        frontier += below
    return found


def memory_bytes(pids: list[int]) -> int:
    """Return the proportional set size of processes together."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def main() -> None:
    """Run and measure."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    samples = [0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY_S):
            samples.append(memory_bytes(descendants(os.getpid())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
    wall_s = time.perf_counter() - started
    ended.set()
    watcher.join()
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    middle = len(samples) // 2
    print(json.dumps({
        "code": code, "wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": max(samples),
        "first_half_peak_bytes": max(samples[:middle] or [0]), "second_half_peak_bytes": max(samples[middle:]),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
