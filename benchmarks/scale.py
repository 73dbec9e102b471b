"""What a million images cost before the first step: scan, second scan, memory, plan.

    python benchmarks/scale.py --work DIR [--files 200000] [--repeats 5] [--only scan memory plan]

Makes folders of small JPEGs with captions beside them in DIR, once (hard links to a few real ones, so that a set takes
names and no space), and indexes of numbers alone. Every measurement is a process of its own. What is cold is our
cache; the operating system's has seen the files. Rates per core are by CPU time, user and system, of all processes.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PER_FOLDER = 10_000
LINKS = 30_000
"""Names that one file may have; file systems have a limit at about twice that."""


def images(work: Path, count: int, captions: str) -> Path:
    """Return a folder of so many JPEGs, made where it lacks; `captions`: beside them, or their names."""
    import numpy as np  # noqa: PLC0415 - in the parent alone
    from PIL import Image  # noqa: PLC0415

    folder = work / f"{captions}-{count}"
    if folder.exists():
        return folder
    partial = work / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    originals = partial.with_name("originals")
    originals.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        place = partial / f"{number // PER_FOLDER:04}"
        if number % PER_FOLDER == 0:
            place.mkdir(parents=True)
        original = originals / f"{number // LINKS}-{number % 8}.jpg"
        if not original.exists():
            width, height = ((512, 512), (640, 426), (426, 640), (768, 512))[number % 4]
            pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(original, quality=90)
        stem = f"a photo of thing {number}" if captions == "names" else f"{number:09}"
        os.link(original, place / f"{stem}.jpg")
        if captions == "sidecars":
            (place / f"{stem}.txt").write_text(f"a photo of a thing, number {number}, in a row", encoding="utf-8")
    partial.rename(folder)
    time.sleep(3)  # files just written are not known by their dates
    return folder


SCAN = """
import json, resource, sys, time
start = time.perf_counter()
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings
before = resource.getrusage(resource.RUSAGE_SELF)
began = time.perf_counter()
index = scan(DataSettings(sources=[{"path": sys.argv[1]}]), CaptionSettings())
ended = time.perf_counter()
mine, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = mine.ru_utime + mine.ru_stime - before.ru_utime - before.ru_stime + others.ru_utime + others.ru_stime
print(json.dumps({
    "images": len(index), "wall": ended - began, "cpu": cpu, "import_mb": before.ru_maxrss / 1024,
    "peak_mb": mine.ru_maxrss / 1024, "worker_mb": others.ru_maxrss / 1024,
}))
"""

PLAN = """
import json, resource, sys, time
import numpy as np
from everydream.data.buckets import choose_buckets
from everydream.data.mix import make_mix
from everydream.data.plan import plan_epoch
from everydream.data.settings import SourceSettings
from tests.data.synthetic import make_index
number = int(sys.argv[1])
rng = np.random.default_rng(0)
shapes = np.array([(512, 512), (640, 426), (426, 640), (768, 512), (1024, 576), (600, 800)])
index = make_index([number], sizes=shapes[rng.integers(0, 6, number)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
mix = make_mix(index, [SourceSettings(path="s0")], 1)
buckets = choose_buckets(index.width_N, index.height_N, mix.mean_counts(), resolution=512, step=64, max_aspect=4.0,
                         batch_size=16)
prepared = time.perf_counter()
plan = plan_epoch(index, mix, buckets, seed=1, epoch=0, batch_size=16, accumulation=1)
ended = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
held = sum(a.nbytes for a in (plan.record_K, plan.nth_K, plan.batch_offsets, plan.bucket_of_batch))
print(json.dumps({
    "draws": len(plan.record_K), "wall": ended - prepared, "prepare": prepared - began,
    "bytes_per_draw": held / len(plan.record_K), "peak_bytes_per_draw": (peak - before) * 1024 / len(plan.record_K),
}))
"""


def run(code: str, argument: object, cache: Path) -> dict[str, float]:
    """Run a piece of Python in a process of its own and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(argument)], check=True, cwd=ROOT, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def median(rows: list[dict[str, float]], key: str) -> float:
    """Return the median of one figure."""
    return statistics.median(row[key] for row in rows)


def scans(work: Path, files: int, repeats: int) -> None:
    """Print the rates of first and second scans."""
    for captions in ("names", "sidecars"):
        folder, cold, second = images(work, files, captions), [], []
        for _ in range(repeats):
            shutil.rmtree(work / "cache", ignore_errors=True)
            cold.append(run(SCAN, folder, work / "cache"))
            second.append(run(SCAN, folder, work / "cache"))
        for what, rows in (("cold", cold), ("second", second)):
            rate, wall = files / median(rows, "cpu"), median(rows, "wall")
            print(f"scan, captions from {captions}, {files} files, {what}: {rate:,.0f} images/s a core, {wall:.2f} s, "
                  f"peak {median(rows, 'peak_mb'):.0f} MB ({median(rows, 'import_mb'):.0f} MB of it imports), "
                  f"largest worker {median(rows, 'worker_mb'):.0f} MB", flush=True)  # fmt: skip
        print(f"second / cold: {median(cold, 'wall') / median(second, 'wall'):.1f}x")


def plans(work: Path, repeats: int) -> None:
    """Print the time and memory of plans."""
    for number, times in ((1_000_000, repeats), (10_000_000, min(repeats, 3))):
        rows = [run(PLAN, number, work / "cache") for _ in range(times)]
        print(f"plan of {number:,} draws: {median(rows, 'wall'):.2f} s (mix and buckets before: "
              f"{median(rows, 'prepare'):.2f} s), {median(rows, 'bytes_per_draw'):.1f} bytes a draw kept, "
              f"{median(rows, 'peak_bytes_per_draw'):.0f} at its peak", flush=True)  # fmt: skip


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=("scan", "plan"), default=("scan", "plan"))
    arguments = parser.parse_args()
    started = time.perf_counter()
    if "scan" in arguments.only:
        scans(arguments.work, arguments.files, arguments.repeats)
    if "plan" in arguments.only:
        plans(arguments.work, arguments.repeats)
    print(f"{time.perf_counter() - started:.0f} s in all; this process {resource.getrusage(0).ru_maxrss >> 10} MB")


if __name__ == "__main__":
    main()
