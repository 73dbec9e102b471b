"""What a million images cost before the first step: scan, second scan, memory, plan.

    python benchmarks/scale.py --work DIR [--files 200000] [--repeats 5] [--only scan plan]

Makes folders of small JPEGs with captions beside them in DIR, once (hard links to a few real ones, so that a set takes
names and no space), tar shards, and indexes of numbers alone. `manifest` reads a Parquet file with a row an image, of
which one in a hundred names a file that is not there. `train` trains a tiny model on 300,000 images in shards and on
3,000 of them, and watches the memory of the run and its workers. Every measurement is a process of its own. What
is cold is our cache; the operating system's has seen the files. Rates per core are by CPU time, user and system, of all
processes.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

WHAT = ("scan", "plan", "table", "manifest", "train")
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
source = {"path": sys.argv[1], **({"captions": "manifest"} if sys.argv[1].endswith(".parquet") else {})}
index = scan(DataSettings(sources=[source]), CaptionSettings())
ended = time.perf_counter()
mine, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = mine.ru_utime + mine.ru_stime - before.ru_utime - before.ru_stime + others.ru_utime + others.ru_stime
print(json.dumps({
    "images": len(index), "rejected": len(index.rejected), "wall": ended - began, "cpu": cpu,
    "import_mb": before.ru_maxrss / 1024,
    "peak_mb": mine.ru_maxrss / 1024, "worker_mb": others.ru_maxrss / 1024,
}))
"""

PLAN = """
import json, sys, time, tracemalloc
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
began = time.perf_counter()
mix = make_mix(index, [SourceSettings(path="s0")], 1)
buckets = choose_buckets(index.width_N, index.height_N, mix.mean_counts(), resolution=512, step=64, max_aspect=4.0,
                         batch_size=16)
prepared = time.perf_counter()
plan = plan_epoch(index, mix, buckets, seed=1, epoch=0, batch_size=16, accumulation=1)
ended = time.perf_counter()
tracemalloc.start()
plan_epoch(index, mix, buckets, seed=1, epoch=0, batch_size=16, accumulation=1)
peak = tracemalloc.get_traced_memory()[1]
held = sum(a.nbytes for a in (plan.record_K, plan.nth_K, plan.batch_offsets, plan.bucket_of_batch))
print(json.dumps({
    "draws": len(plan.record_K), "wall": ended - prepared, "prepare": prepared - began,
    "bytes_per_draw": held / len(plan.record_K), "peak_bytes_per_draw": peak / len(plan.record_K),
}))
"""


TABLE = """
import json, os, resource, sys, tempfile, time
from pathlib import Path
import numpy as np
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.data.strings import Strings
from everydream.data.tables import read_table, write_table
from dataclasses import replace
from tests.data.synthetic import make_index
number = int(sys.argv[1])
data = DataSettings(sources=[{"path": "/nowhere/s0"}])
index = make_index([number])
rng = np.random.default_rng(0)
spans = np.stack([np.arange(number) % 8192 * 100_000, rng.integers(50_000, 150_000, number)], 1)
digests = rng.integers(0, 2**64, number, dtype=np.uint64)
paths = Strings.of(f"{n >> 13:05}.tar/{n:09}.jpg" for n in range(number))
captions = Strings.of(f"a photo of thing number {n}, in a row with all others" for n in range(number))
index = replace(index, digest_N=digests, span_N2=spans, paths=paths, captions=captions)
with tempfile.TemporaryDirectory() as folder:
    began = time.perf_counter()
    write_table(index, Path(folder) / "i.parquet", data, CaptionSettings())
    written = time.perf_counter()
    size = os.stat(Path(folder) / "i.parquet").st_size
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del index
    again = time.perf_counter()
    index = read_table(Path(folder) / "i.parquet", data, CaptionSettings())
    read = time.perf_counter() - again
held = sum(getattr(v, "nbytes", 0) for v in vars(index).values())
held += sum(len(t.data) + t.offsets.nbytes for t in (index.paths, index.captions))
print(json.dumps({"write": written - began, "read": read, "bytes": size / number, "held": held / number}))
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


def tables(work: Path) -> None:
    """Print what an index file takes."""
    row = run(TABLE, 1_000_000, work / "cache")
    print(f"index of 1,000,000 images as Parquet: written in {row['write']:.1f} s, read in {row['read']:.2f} s, "
          f"{row['bytes']:.0f} bytes an image on disk, {row['held']:.0f} in memory", flush=True)  # fmt: skip


def manifests(work: Path, rows: int) -> None:
    """Print what a manifest takes of which one path in a hundred leads nowhere."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    dead = range(99, rows, 100)
    folder = images(work, rows - len(dead), "numbers")
    manifest = folder.with_name(f"{folder.name}.parquet")
    if not manifest.exists():
        live = iter(f"{folder.name}/{n // PER_FOLDER:04}/{n:09}.jpg" for n in range(rows))
        names = [f"{folder.name}/gone/{n}.jpg" if n in dead else next(live) for n in range(rows)]
        captions = [f"a photo of thing number {n}, in a row with all others" for n in range(rows)]
        pq.write_table(pa.table({"path": names, "caption": captions}), manifest)
    shutil.rmtree(work / "cache", ignore_errors=True)
    for what in ("cold", "second"):
        row = run(SCAN, manifest, work / "cache")
        print(f"manifest of {rows:,} rows, {what}: {row['images']:,} images, {row['rejected']:,} rejected, "
              f"{row['wall']:.0f} s, {rows / row['cpu']:,.0f} rows/s a core, peak {row['peak_mb']:.0f} MB, largest "
              f"worker {row['worker_mb']:.0f} MB", flush=True)  # fmt: skip


def shards(work: Path, count: int, per_shard: int = 10_000) -> Path:
    """Return a folder of tar shards of so many 64-pixel JPEGs with captions, made where it lacks."""
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    folder = work / f"shards-{count}"
    if folder.exists():
        return folder
    partial = work / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng, pictures = np.random.default_rng(0), []
    for _ in range(8):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    for first in range(0, count, per_shard):
        with tarfile.open(partial / f"{first // per_shard:05}.tar", "w") as tar:
            for number in range(first, min(first + per_shard, count)):
                for ending, content in (("jpg", pictures[number % 8]), ("txt", f"a thing, number {number}".encode())):
                    member = tarfile.TarInfo(f"{number:09}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    partial.rename(folder)
    time.sleep(3)
    return folder


def memory_of(root: int) -> tuple[int, int]:
    """Return (bytes of its own, number) of a process and all below it: pages shared by several count once in all."""
    below, total = [root], 0
    for pid in below:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                below += map(int, (thread / "children").read_text().split())
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total, len(below)


def trains(work: Path, steps: int) -> None:
    """Print the memory of runs on 3,000 and on 300,000 images, by step."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import tiny  # noqa: PLC0415

    if not (work / "tiny").exists():
        tiny.save_pipeline(work / "tiny")
    for count in (3_000, 300_000):
        folder = shards(work, count)
        runs = work / f"runs-{count}"
        shutil.rmtree(runs, ignore_errors=True)
        config = {
            "project": "scale", "runs_dir": str(runs), "model": {"path": str(work / "tiny")}, "trackers": [],
            "data": {"resolution": 64, "bucket_step": 16, "workers": 2, "check": "headers",
                     "sources": [{"path": str(folder)}]},
            "train": {"epochs": 200, "max_steps": steps, "batch_size": 4, "precision": "fp32"},
            "checkpoints": {"formats": []}, "samples": {"every_steps": None},
        }  # fmt: skip
        (work / "scale.yaml").write_text(json.dumps(config), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(work / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "everydream.cli", "train", "--config", str(work / "scale.yaml")]
        seen: dict[int, int] = {}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None:
                time.sleep(0.5)
                found = list(runs.glob("*/metrics.jsonl"))
                step = len(found[0].read_bytes().splitlines()) if found else 0
                memory, processes = memory_of(process.pid)
                if step and processes > 2:
                    seen[step // (steps // 5) * (steps // 5)] = memory
        told = ", ".join(f"{memory >> 20} MB after {step}" for step, memory in sorted(seen.items()))
        print(f"training on {count:,} images in shards, {steps} steps of 4, run and workers: {told}", flush=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    started = time.perf_counter()
    if "scan" in arguments.only:
        scans(arguments.work, arguments.files, arguments.repeats)
    if "plan" in arguments.only:
        plans(arguments.work, arguments.repeats)
    if "table" in arguments.only:
        tables(arguments.work)
    if "manifest" in arguments.only:
        manifests(arguments.work, arguments.rows)
    if "train" in arguments.only:
        trains(arguments.work, arguments.steps)
    print(f"{time.perf_counter() - started:.0f} s in all; this process {resource.getrusage(0).ru_maxrss >> 10} MB")


if __name__ == "__main__":
    main()
