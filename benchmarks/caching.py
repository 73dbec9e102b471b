"""Images per second with and without caches, on the demo-size model, in one go: epochs after the first.

    python benchmarks/caching.py [--images 24] [--rounds 5] [--sides 64 1024 2048 4000]

The model has the demo's networks with random weights, and trains its UNet at 64 px; the text encoder is frozen. The
pictures are made up, of a photograph's size and with a photograph's detail: JPEGs, quality 90. For each size runs with
and without caches take turns, on the same images and steps, in this process; a stopwatch at the optimizer's steps
leaves out start, first epoch and end. What filling took is said apart.

Beside the whole training stands what caches replace: images a second from the disk to the UNet's door (decoding,
cutting, encoding image and caption; or reading the cache), by this process's CPU time, which other work on the machine
leaves alone.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the demo is not installed
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from demo.make_model import build, save  # noqa: E402
from everydream import train as room  # noqa: E402
from everydream.caching import Caches, make_caches, variants_of  # noqa: E402
from everydream.config import resolve  # noqa: E402
from everydream.data.loader import PieceDataset  # noqa: E402
from everydream.data.plan import pieces_for_rank  # noqa: E402
from everydream.plan import plan_run  # noqa: E402
from everydream.preparing import load_family  # noqa: E402
from everydream.step import training_step  # noqa: E402
from everydream.training import accumulating  # noqa: E402
from everydream.training.display import Display  # noqa: E402
from everydream.training.launch import Launch  # noqa: E402

EPOCHS = 4
BATCH = 8


def make_pictures(folder: Path, side: int, count: int) -> None:
    """Write photograph-like JPEGs of 4:3, `side` long: noise whose strength falls with its frequency."""
    folder.mkdir()
    width, height = side, max(side * 3 // 4, 64) if side > 64 else 64
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = np.zeros((height, width, 3), np.float32)
        for octave in range(1, 9):
            grain = rng.standard_normal((max(height >> octave, 2), max(width >> octave, 2), 3), np.float32)
            pixels += 6.0 * 1.6**octave / 4 * cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
        image = Image.fromarray((128 + pixels + 4 * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8))
        image.save(folder / f"a picture of thing {number}.jpg", quality=90)


@contextlib.contextmanager
def stopwatch() -> Iterator[dict[str, list[float]]]:
    """Note when each optimizer step begins, how long filling takes, and the seconds of each step's networks."""
    seen: dict[str, list[float]] = {"steps": [], "fill": []}
    fill = Caches.fill

    def step(*arguments: object) -> object:
        seen["steps"].append(time.perf_counter())
        return training_step(*arguments)  # type: ignore[arg-type]

    def timed_fill(*arguments: object) -> None:
        started = time.perf_counter()
        fill(*arguments)  # type: ignore[arg-type]
        seen["fill"].append(time.perf_counter() - started)

    with mock.patch.object(accumulating, "training_step", step), mock.patch.object(Caches, "fill", timed_fill):
        yield seen


def settings(work: Path, pictures: Path, cached: bool) -> dict[str, Any]:
    """Return the settings of a run."""
    return {
        "runs_dir": str(work / "runs"), "project": "cached" if cached else "plain", "trackers": [],
        "model": {"path": str(work / "model")},
        "data": {"sources": [{"path": str(pictures)}], "resolution": 64, "crop": "center", "check": "headers"},
        "cache": {"latents": cached, "text": cached}, "text_encoder": {"train": False}, "unet": {"lr": 1e-4},
        "train": {"epochs": EPOCHS, "batch_size": BATCH, "precision": "fp32", "gradient_checkpointing": False},
        "checkpoints": {"formats": [], "every_epochs": None, "every_minutes": None}, "samples": {"every_steps": None},
    }  # fmt: skip


def run(work: Path, pictures: Path, cached: bool) -> tuple[float, float]:
    """Train; return images per second after the first epoch, and the seconds of filling."""
    raw = settings(work, pictures, cached)
    with stopwatch() as seen, contextlib.redirect_stderr(io.StringIO()), mock.patch.object(room, "review"):
        room.train(resolve(raw, Path("benchmark")))
    steps, per_epoch = seen["steps"], len(seen["steps"]) // EPOCHS
    seconds = steps[-1] - steps[per_epoch]
    return (len(steps) - per_epoch - 1) * BATCH / seconds, sum(seen["fill"])


def to_the_door(work: Path, pictures: Path, cached: bool, passes: int = 3) -> float:
    """Return the images per CPU second that this process alone brings from the disk to the UNet."""
    config = resolve(settings(work, pictures, cached), Path("benchmark"))
    planned, launch = plan_run(config), Launch(config.train, [], config.seed)
    family = load_family(config)
    known = None
    if cached:
        known = make_caches(planned, family, launch, print, Display(False).counting).known()
    pieces = list(pieces_for_rank(planned.epoch(0), 0, 1))
    dataset = PieceDataset(
        pieces, planned.epoch(0), planned.index, planned.buckets, config.data, config.seed, config.captions,
        variants=variants_of(config), known=known,
    )  # fmt: skip
    best, images = float("inf"), sum(piece.size for piece in pieces)
    with torch.no_grad():
        for _ in range(passes):
            started = time.process_time()
            for number in range(len(dataset)):
                batch = dataset[number].batch
                family.encode_images(batch.images, batch.seeds)
                family.encode_text(batch.texts, batch.crops)
            best = min(best, time.process_time() - started)
    return images / best


def main() -> None:
    """Print a row per size of picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24, help="a multiple of 8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 1024, 2048, 4000])
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, medians of {options.rounds}")
    print("| pictures | training, images/s: not cached | cached | ratio", end="")
    print(" | to the UNet, images/CPU-s: not cached | cached | ratio | filling, images/s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        save(build(0), work / "model")
        for side in options.sides:
            pictures = work / str(side)
            make_pictures(pictures, side, options.images)
            _, filling = run(work, pictures, True)
            plain, cached = [], []
            for _ in range(options.rounds):
                plain.append(run(work, pictures, False)[0])
                cached.append(run(work, pictures, True)[0])
            slow, fast = statistics.median(plain), statistics.median(cached)
            ratio = statistics.median(b / a for a, b in zip(plain, cached, strict=True))
            doors = [to_the_door(work, pictures, known) for known in (False, True)]
            kilobytes = statistics.mean(path.stat().st_size for path in pictures.iterdir()) / 1000
            print(
                f"| {side} px, {kilobytes:.0f} kB | {slow:.1f} | {fast:.1f} | {ratio:.1f} "
                f"| {doors[0]:.1f} | {doors[1]:.0f} | {doors[1] / doors[0]:.0f} | {options.images / filling:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
