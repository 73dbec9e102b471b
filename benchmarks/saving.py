"""`python benchmarks/saving.py`: how long a save keeps the training waiting, against a plain torch.save of the state.

plain    torch.save of the state to a file, as most trainers do it
first    the copy that is written beside the training, where its memory is new
later    the same at every later save
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from everydream.training.background import Snapshot

_TENSORS = 64


def seconds(work: Callable[[], object]) -> float:
    """Return how long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the state")
    parser.add_argument("--runs", type=int, default=5)
    wanted = parser.parse_args()
    state = {str(n): torch.randn(wanted.megabytes * 250_000 // _TENSORS) for n in range(_TENSORS)}
    snapshot = Snapshot()
    with TemporaryDirectory(prefix="everydream-saving-") as folder:
        path = Path(folder) / "plain.ckpt"
        first = seconds(lambda: snapshot.of(state))
        pairs = [
            (seconds(lambda: torch.save(state, path)), seconds(lambda: snapshot.of(state))) for _ in range(wanted.runs)
        ]
    plain, later = (statistics.median(row) for row in zip(*pairs, strict=True))
    print(
        f"{wanted.megabytes} MB, medians of {wanted.runs}; torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    print(f"plain  {plain:.2f} s")
    print(f"first  {first:.2f} s  {first / plain:.0%} of plain")
    print(f"later  {later:.2f} s  {later / plain:.0%} of plain")


if __name__ == "__main__":
    main()
