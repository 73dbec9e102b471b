"""From JPEG files to batches of 512 px: our loader, the bare decoder and other trainers' loaders, in one go.

    python benchmarks/loading.py --work DIR [--photos FOLDER] [--everydream2 DIR] [--kohya DIR] [--json FILE]

The photos are made up (noise whose strength falls with its frequency, quality 90, 4:2:0): squares of 1024 px, and a mix
of shapes from 0.8 to 12 megapixels; or those of a folder. Everyone takes the same files in batches of 8, in turn; a
table has medians of 5. "Bare" is a loop of simplejpeg (libjpeg-turbo) and PyTorch's resize that makes the very pixels
of our batches, which is checked; "bare, areas" is the quickest recipe at hand, softer: OpenCV's INTER_AREA after a full
decode. Everything that is not ours has one bucket or its own, of the same area, and no tokenizer. CPU time counts all
processes and is what other work on the machine disturbs least.

The others' clones are driven by their own dataset classes. They need torchvision, tqdm, imagesize, toml, voluptuous,
einops and colorama in the environment (in one of your own: `pip install --no-deps` of them beside ours); the diffusers
script's transform is written out here as its file has it, by torchvision, or by Pillow where that is not installed.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import accumulate, cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from other_loaders import BATCH, SIDE, Way, diffusers_way, everydream2_way, kohya_way, transforms
from PIL import Image

from everydream.config import resolve
from everydream.data.cores import usable_cores
from everydream.data.fitting import cover_size
from everydream.data.loader import JobDataset
from everydream.data.streaming import Stream
from everydream.plan import Planned, plan_run

ROUNDS, PASSES = 5, 4
SIZES = {
    "square": [(1024, 1024)],
    "mix": [
        (4000, 3000), (3000, 4000), (3840, 2160), (2592, 1944), (2048, 1365), (1536, 2048), (1280, 853), (1024, 768),
    ],
}  # fmt: skip


def make_photos(folder: Path, sizes: Iterable[tuple[int, int]]) -> None:
    """Write photo-like JPEGs of (width, height) `sizes`: noise whose strength falls with its frequency."""
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        rng = np.random.default_rng(number)
        pixels = np.zeros((height, width, 3), np.float32)
        for octave in range(1, 9):
            grain = rng.standard_normal((max(height >> octave, 2), max(width >> octave, 2), 3), np.float32)
            pixels += 6.0 * 1.6**octave / 4 * cv2.resize(grain, (width, height), interpolation=cv2.INTER_CUBIC)
        image = Image.fromarray((128 + pixels + 4 * rng.standard_normal(pixels.shape)).clip(0, 255).astype(np.uint8))
        image.save(folder / f"a picture of thing {number}.jpg", quality=90)


# Ours, and the bare decoder


def planned_of(photos: Path, work: Path) -> Planned:
    """Return the plan of some epochs of the photos; a batch of another size than BATCH is a left-over."""
    raw = {
        "runs_dir": str(work / "runs"), "project": "loading", "trackers": [], "model": {"path": str(work)},
        "data": {"sources": [{"path": str(photos)}], "resolution": SIDE, "check": "headers", "flip_p": 0.5},
        "train": {"epochs": PASSES, "batch_size": BATCH},
    }  # fmt: skip
    return plan_run(resolve(raw, Path("benchmark")))


def ours(planned: Planned, workers: int, passes: int = 1) -> Iterator[Any]:
    """Yield the batches of the first epochs as training gets them."""
    config = planned.config
    jobs = JobDataset(planned.index, planned.buckets, config.data, config.seed, config.captions, planned.total_steps)
    first_steps = [0, *accumulate(planned.steps_per_epoch)][:-1]
    with Stream(jobs, planned.epoch, first_steps, planned.total_steps, (0, 1), workers) as stream:
        for number in range(passes):
            for loaded in stream.epoch(planned.epoch(number), 0):
                assert not loaded.failed
                yield loaded.batch


def bare(planned: Planned, areas: bool) -> Way:
    """Return a loop of decoder and resize that makes what is in our batches, and nothing else."""
    paths = {planned.index.key(record): str(planned.index.file(record)) for record in range(len(planned.index))}
    plan = [[(paths[key], crop) for key, crop in zip(b.keys, b.crops, strict=True)] for b in ours(planned, 0)]

    def cut(path: str, crop: Any) -> np.ndarray:
        (height, width), (bottom, right) = crop.original_size, crop.target_size
        cover = cover_size((width, height), (right, bottom))
        by = 1
        for factor in () if areas else (2, 4):
            whole = not (width % factor or height % factor)
            if whole and width // factor >= 2 * cover[0] and height // factor >= 2 * cover[1]:
                by = factor
        with open(path, "rb") as file:  # noqa: PTH123 - bare
            pixels = simplejpeg.decode_jpeg(
                file.read(), "RGB", min_factor=by, min_width=width // by, min_height=height // by
            )
        if areas:
            pixels = cv2.resize(pixels, cover, interpolation=cv2.INTER_AREA)
        elif cover != (width, height):
            pixels_BCHW = torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)
            resized = torch.nn.functional.interpolate(pixels_BCHW, cover[::-1], mode="bicubic", antialias=True)
            pixels = resized[0].permute(1, 2, 0).numpy()
        left = cover[0] - right - crop.left if crop.flipped else crop.left
        window = pixels[crop.top : crop.top + bottom, left : left + right]
        return window[:, ::-1] if crop.flipped else window

    def loop() -> Iterator[np.ndarray]:
        for batch in plan:
            pixels_BCHW = np.empty((len(batch), 3, *batch[0][1].target_size), np.uint8)
            for place, (path, crop) in enumerate(batch):
                pixels_BCHW[place] = cut(path, crop).transpose(2, 0, 1)
            yield pixels_BCHW

    if not areas:
        same = zip(loop(), ours(planned, 0), strict=True)
        assert all(np.array_equal(mine, batch.pixels_BCHW.numpy()) for mine, batch in same), "not at equal pixels"
    return loop


# Measuring


def used_s() -> float:
    """Return the CPU seconds of this process and of those that it has waited for."""
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in found)


def measured(ways: dict[str, Way], images: int) -> dict[str, dict[str, float]]:
    """Let all take turns; return each one's images a second, and milliseconds of CPU an image.

    Those with workers go through the photos PASSES times, so that their start counts as little as it does in a run.
    """
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            wall, used = time.perf_counter(), used_s()
            for _ in way():
                pass
            wall, used = time.perf_counter() - wall, used_s() - used
            if turn:  # the first warms caches up
                seen[name].append((wall / PASSES, used / PASSES) if "workers" in name else (wall, used))
    return {
        name: {
            "images_per_s": images / statistics.median(wall for wall, _ in runs),
            "cpu_ms_per_image": 1000 * statistics.median(used for _, used in runs) / images,
        }
        for name, runs in seen.items()
    }


def ways_of(options: argparse.Namespace, photos: Path, planned: Planned) -> dict[str, Way]:
    """Return who takes part."""
    paths, many = sorted(photos.glob("*.jp*g")), options.workers
    ways: dict[str, Way] = {
        "bare": bare(planned, False),
        "bare, areas": bare(planned, True),
        "ours": lambda: ours(planned, 0),
        "diffusers script": diffusers_way(paths, 0),
    }
    if options.everydream2:
        ways["EveryDream2"] = everydream2_way(options.everydream2, paths, 0)
    if options.kohya:
        ways["kohya"] = kohya_way(options.kohya, photos, 0)
    again = diffusers_way(paths, many)
    ways[f"ours, {many} workers"] = lambda: ours(planned, many, PASSES)
    ways[f"diffusers script, {many} workers"] = lambda: (batch for _ in range(PASSES) for batch in again())
    return ways


def main() -> None:
    """Print a table for each set of photos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where photos are made and kept")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs instead")
    parser.add_argument("--images", type=int, default=48, help="of each kind; a multiple of 8")
    parser.add_argument("--workers", type=int, default=usable_cores())
    parser.add_argument("--everydream2", type=Path, help="a clone")
    parser.add_argument("--kohya", type=Path, help="a clone of sd-scripts")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    kinds = {"photos": options.photos} if options.photos else {kind: options.work / kind for kind in SIZES}
    for kind, folder in kinds.items():
        if not folder.exists():
            make_photos(folder, islice(cycle(SIZES[kind]), options.images))
    names = ("torch", "simplejpeg", "opencv-python-headless", "pillow", *(("torchvision",) if transforms() else ()))
    machine = f"{platform.machine()}, {usable_cores()} cores, Python {platform.python_version()}"
    versions = {name: version(name) for name in names}
    print(machine, *(f"{name} {number}" for name, number in versions.items()), sep=", ")
    results = {}
    for kind, folder in kinds.items():
        planned = planned_of(folder, options.work)
        images = int(planned.epoch(0).batch_offsets[-1])
        assert images == len(list(folder.glob("*.jp*g"))), "the folder holds something else than usable JPEGs"
        results[kind] = found = measured(ways_of(options, folder, planned), images)
        print(f"\n| {kind}, {images} images | images/s | CPU ms/image | CPU of ours |\n|---|---:|---:|---:|")
        for name, one in found.items():
            ratio = one["cpu_ms_per_image"] / found["ours"]["cpu_ms_per_image"]
            print(f"| {name} | {one['images_per_s']:.0f} | {one['cpu_ms_per_image']:.2f} | {ratio:.2f} |", flush=True)
    if options.json:
        facts = {"machine": machine, "versions": versions, "results": results}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
