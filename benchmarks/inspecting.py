"""How long `everydream inspect --html` takes on many images, the first time and once they have been seen.

    python benchmarks/inspecting.py --work DIR [--images 10000]

Makes the JPEGs in DIR once (about 512 pixels, seven shapes, captions of two kinds), then runs whole processes with a
cache folder of its own, emptied first. CPU is user and system time of the command and all processes that it started.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((512, 512), (640, 426), (426, 640), (576, 448), (448, 576), (680, 384), (384, 680))
WORDS = (
    "standing", "sitting", "running", "old", "new", "small", "large", "red", "green", "blue", "wooden", "golden",
    "morning", "evening", "river", "mountain", "street", "garden", "window", "table", "summer", "winter", "bright",
    "dark", "quiet", "crowded", "empty", "near", "far", "above", "below", "beside", "painted", "broken",
)  # fmt: skip
SUBJECTS = ("dog", "castle", "bicycle", "teapot", "lighthouse", "violin", "orchard")


def make(folder: Path, first: int, last: int) -> None:
    """Write JPEGs of a few scales of noise, which encode to about 60 kB each."""
    for number in range(first, last):
        rng = np.random.default_rng(number)
        width, height = SIZES[number % len(SIZES)]
        total = np.zeros((height, width, 3), np.float32)
        for side, weight in ((4, 0.5), (16, 0.3), (96, 0.2)):
            layer = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
            total += weight * np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        subject = SUBJECTS[number % len(SUBJECTS)]
        place = folder / subject
        place.mkdir(parents=True, exist_ok=True)
        words = " ".join(rng.choice(WORDS, int(rng.integers(2, 30))).tolist())
        Image.fromarray(total.astype(np.uint8)).save(place / f"{number:06}.jpg", quality=90)
        (place / f"{number:06}.txt").write_text(f"a photo of a {subject}, {words}", encoding="utf-8")


def images(work: Path, count: int) -> Path:
    """Return the folder of images, made where it lacks."""
    folder = work / f"images-{count}"
    if not folder.exists():
        partial = work / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        bounds = [*range(0, count, 250), count]
        with ProcessPoolExecutor() as pool:
            list(pool.map(make, [partial] * (len(bounds) - 1), bounds[:-1], bounds[1:]))
        partial.rename(folder)
    return folder


def run(folder: Path, work: Path) -> tuple[float, float]:
    """Return (wall seconds, CPU seconds) of one inspection."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    outputs = ["--html", work / "report.html", "--cache", work / "cache"]
    subprocess.run(
        [sys.executable, "-m", "everydream.cli", "inspect", folder, "train.batch_size=8", *outputs],
        check=True, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    folder = images(arguments.work, arguments.images)
    shutil.rmtree(arguments.work / "cache", ignore_errors=True)
    for what in ("cold", "warm", "warm"):
        wall, cpu = run(folder, arguments.work)
        print(f"{what}: {wall:.1f} s, {cpu:.1f} s of CPU", flush=True)
    print(f"report.html: {(arguments.work / 'report.html').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
