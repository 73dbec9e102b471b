"""One optimizer step of the true SD1.5 shape at 512 px, with random weights: time and peak memory.

    python benchmarks/full_size_step.py --work /some/disk/with/20/GB [--precision fp32] [--keep] [method=lora ...]

Writes a random model of SD1.5's configuration as a diffusers folder (860 M UNet, 123 M text encoder, 84 M VAE; fp16),
two pictures, and runs `train.py` on them in a process of its own, whose peak memory the operating system reports.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the demo is not installed

from demo.sizes import full_size  # noqa: E402


def write_model(folder: Path) -> None:
    """Write SD1.5's shape with random weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)  # half the memory while it is made
    family = full_size(device="cpu")
    torch.set_default_dtype(torch.float32)
    family.write_folder(folder, torch.float16)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("overrides", nargs="*", help="settings over the run's")
    options = parser.parse_args()
    work: Path = options.work / "full-size-step"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model" / "model_index.json").exists():
        # In a process of its own, whose memory is not counted.
        subprocess.run(
            [sys.executable, "-c", f"import full_size_step as f; f.write_model(f.Path({str(work / 'model')!r}))"],
            cwd=Path(__file__).parent,
            check=True,
        )
    for i in range(2):
        (work / "images").mkdir(exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (640, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(work / "images" / f"a picture_{i}.jpg")
    config = {
        "project": "full-size",
        "runs_dir": str(work / "runs"),
        "model": {"path": str(work / "model")},
        "data": {"sources": [{"path": str(work / "images"), "label": "a photo of <new>"}], "workers": 0},
        "train": {"max_steps": 1, "batch_size": 1, "precision": options.precision},
        "samples": {"every_steps": None},
        "trackers": [],
    }
    (work / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    started = time.monotonic()
    command = [sys.executable, str(ROOT / "train.py"), "--config", str(work / "config.yaml"), *options.overrides]
    subprocess.run(command, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    took = time.monotonic() - started
    what = " ".join([options.precision, *options.overrides])
    print(f"precision {what}: whole process {took:.0f} s, peak memory {peak / 1e9:.1f} GB")
    print(next((work / "runs").glob("*/metrics.jsonl")).read_text())
    if not options.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
