"""Images a second and the share of the GPU's matrix rate at full size, ours and others', in one call of nine minutes.

    python benchmarks/gpu.py [--model sd15|sdxl] [--batches 8 1 32] [--json FILE] [--table FILE]
        [--diffusers CLONE] [--kohya CLONE] [--peer-python PYTHON]
    python benchmarks/gpu.py --tiny      # the same with a tiny model, on any machine: to see that it runs

It makes its own model (random weights in the true shape) and pictures (square, of the model's size). bf16, AdamW with
fp32 weights, no gradient checkpointing, no samples; SD 1.5 with its text encoder trained, SDXL's UNet alone. Ours has
latents cached, `not cached` is there beside diffusers' script, which encodes them each time. Each case is a process of
its own under one stopwatch (`made.py`), which waits for the GPU after each step; the first steps are not counted, so
neither is compiling, which is said apart. Cases stand in the order of what matters most, and those that no longer fit
into `--minutes` are left out and named.

Utilisation is images/s times the operations of the UNet's forward and backward pass (2.41 TFLOP an image for SD 1.5 at
512 px, 20.2 for SDXL at 1024), over what this GPU reaches in a product of large bf16 matrices, measured first.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import made
import torch
import yaml

sys.path.insert(0, str(made.ROOT))  # the demo is not installed

WARM_UP, STEPS = 4, 16
TFLOP = {"sd15": 2.41, "sdxl": 20.2, "tiny": 0.001}
SIDE = {"sd15": 512, "sdxl": 1024, "tiny": 64}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, compile regional": {"compile": "regional"},
    "ours, channels last": {"channels_last": True},
    "ours, compile whole": {"compile": "whole"},
    "ours, not cached": {},
}


def matrix_rate(device: str, size: int) -> float:
    """Return the TFLOP/s of a product of square bf16 matrices."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times) / 1e12


def write_model(folder: Path, name: str) -> None:
    """Write random weights, in fp16, which half the time of writing and reading takes."""
    from demo.sizes import full_size  # noqa: PLC0415 - seconds to import

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    family = full_size(name, device="cpu")
    torch.set_default_dtype(torch.float32)
    family.write_folder(folder, torch.float16)


def ours(work: Path, name: str, batch: int, model: str, steps: int) -> list[str]:
    """Return the command of our run."""
    cached = "not cached" not in name
    config = {
        "project": "gpu", "runs_dir": str(work / "runs"), "model": {"path": str(work / model)},
        "data": {"sources": [{"path": str(work / "pictures")}], "resolution": SIDE[model], "crop": "center"},
        "cache": {"latents": True, "folder": str(work / "cache")} if cached else {},
        "train": {"epochs": 10000, "max_steps": steps, "batch_size": batch, "precision": "bf16",
                  "gradient_checkpointing": False, **OURS[name]},
        "unet": {"lr": 1e-6}, "text_encoder": {"train": model != "sdxl"}, "lr_schedule": {"name": "constant"},
        "samples": {"every_steps": None}, "checkpoints": {"formats": [], "every_epochs": None, "every_minutes": None},
    }  # fmt: skip
    path = work / f"{name}-{batch}.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, str(made.ROOT / "train.py"), "--config", str(path)]


def diffusers(work: Path, batch: int, model: str, steps: int, options: argparse.Namespace) -> list[str]:
    """Return the command of diffusers' script; it trains the UNet alone."""
    script = "train_text_to_image_sdxl.py" if model == "sdxl" else "train_text_to_image.py"
    flags = {
        "pretrained_model_name_or_path": work / model, "train_data_dir": work / "pictures", "resolution": SIDE[model],
        "train_batch_size": batch, "max_train_steps": steps, "learning_rate": 1e-6, "lr_scheduler": "constant",
        "mixed_precision": "bf16", "dataloader_num_workers": 8, "checkpointing_steps": 10**9,
        "output_dir": work / "diffusers-out", "cache_dir": work / "hub",
    }  # fmt: skip
    path = options.diffusers / "examples" / "text_to_image" / script
    return [options.peer_python, str(path), "--center_crop", *_flags(flags)]


def kohya(work: Path, batch: int, model: str, steps: int, options: argparse.Namespace) -> list[str]:
    """Return the command of kohya's fine_tune.py, with its latents cached."""
    listing = work / "kohya.json"
    sides = [SIDE[model], SIDE[model]]
    files = sorted((work / "pictures").glob("*.jpg"))
    listing.write_text(json.dumps({str(file): {"caption": file.stem, "train_resolution": sides} for file in files}))
    flags = {
        "pretrained_model_name_or_path": work / model, "train_data_dir": work / "pictures", "in_json": listing,
        "output_dir": work / "kohya-out", "resolution": f"{SIDE[model]},{SIDE[model]}", "train_batch_size": batch,
        "max_train_steps": steps, "learning_rate": 1e-6, "mixed_precision": "bf16", "optimizer_type": "AdamW",
        "max_data_loader_n_workers": 8,
    }  # fmt: skip
    script = "sdxl_train.py" if model == "sdxl" else "fine_tune.py"
    more = [] if model == "sdxl" else ["--train_text_encoder"]
    return [options.peer_python, str(options.kohya / script), "--sdpa", "--cache_latents", *more, *_flags(flags)]


def _flags(flags: dict[str, Any]) -> list[str]:
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def cases(work: Path, model: str, steps: int, options: argparse.Namespace) -> list[tuple[str, int, list[str]]]:
    """Return (name, images a step, command) of all cases, the most telling first."""
    found = []
    for batch in options.batches:
        found.append(("ours", batch, ours(work, "ours", batch, model, steps)))
        if options.diffusers is not None:
            found.append(("ours, not cached", batch, ours(work, "ours, not cached", batch, model, steps)))
            found.append(("diffusers, not cached", batch, diffusers(work, batch, model, steps, options)))
        if options.kohya is not None:
            found.append(("kohya", batch, kohya(work, batch, model, steps, options)))
    for name in ("ours, compile regional", "ours, channels last", "ours, compile whole"):
        found += [(name, batch, ours(work, name, batch, model, steps)) for batch in options.batches]
    return found


def measure(work: Path, command: list[str], model: str, batch: int, rate: float) -> list[str]:
    """Return the cells of a case: images/s, utilisation, spread, first step, peak."""
    began = time.time()
    more = {"EVERYDREAM_COMPILE_BACKEND": "eager"} if model == "tiny" else {}
    if not torch.cuda.is_available() and str(made.ROOT) not in command[1]:
        more["STOPWATCH_TORCHVISION"] = "1"
    try:
        seen = made.timed(command, work, **more)
    except SystemExit as failure:
        return [f"failed: {str(failure).strip().splitlines()[-1][:80]}", "", "", "", ""]
    steps = [after[0] - before[0] for before, after in zip(seen[WARM_UP:], seen[WARM_UP + 1 :], strict=False)]
    seconds = statistics.median(steps)
    spread = (max(steps) - min(steps)) / seconds
    speed = batch / seconds
    return [
        f"{speed:.2f}", f"{speed * TFLOP[model] / rate:.0%}", f"{spread:.0%}", f"{seen[0][2] - began:.0f} s",
        f"{max(row[3] for row in seen[WARM_UP:]) / 2**30:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Measure, print and write a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("sd15", "sdxl"), default="sd15")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on any machine")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="images a step, in order; 8 1 32")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--diffusers", type=Path, default=None, help="a clone of huggingface/diffusers")
    parser.add_argument("--kohya", type=Path, default=None, help="a clone of kohya-ss/sd-scripts")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with what these two need")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--table", type=Path, default=None, help="a Markdown file for the table")
    options = parser.parse_args()
    began, device = time.monotonic(), "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.tiny:
        sys.exit("No GPU is visible, and the full size would take hours without. --tiny shows that the script runs.")
    model = "tiny" if options.tiny else options.model
    options.batches = options.batches or ([2] if options.tiny else [8, 1, 32])
    about = {**made.machine(), "model": model, "device": torch.cuda.get_device_name() if device == "cuda" else "CPU"}
    rate = matrix_rate(device, 8192 if device == "cuda" else 512)
    about["matrix products, bf16"] = f"{rate:.3g} TFLOP/s"
    lines = [", ".join(f"{name} {value}" for name, value in about.items())]
    if options.tiny:
        lines.append("A tiny model: these figures measure nothing worth quoting.")
    print("\n".join(lines), flush=True)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="everydream-gpu-") as temporary:
        work = Path(temporary)
        made.write_model(work / model, model) if options.tiny else write_model(work / model, model)
        made.write_pictures(work / "pictures", 2 * max(options.batches), SIDE[model])
        longest = 0.0
        for name, batch, command in cases(work, model, WARM_UP + (2 if options.tiny else STEPS), options):
            started = time.monotonic()
            if started - began + longest > 60 * options.minutes:
                rows.append([name, str(batch), "left out: no time", "", "", "", ""])
                continue
            rows.append([name, str(batch), *measure(work, command, model, batch, rate)])
            longest = max(longest, time.monotonic() - started)
            print(*rows[-1], sep=" | ", flush=True)
    head = ["", "batch", "images/s", "utilisation", "spread", "to the first step", "peak GiB"]
    made.print_table(head, rows)
    if options.table is not None:
        body = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
        options.table.write_text("\n".join([*lines, "", *(f"| {row} |" for row in body)]) + "\n")
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about, "rows": [head, *rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
