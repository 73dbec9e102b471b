"""What several benchmarks make for themselves: a model of random weights, pictures, and a stopwatch for any trainer."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"widths": (32, 32, 64, 64), "vae": (16, 16, 32, 32), "text": 64, "layers": 2, "side": 64},
    "tiny-large-pictures": {"widths": (32, 32, 64, 64), "vae": (16, 16, 32, 32), "text": 64, "layers": 2, "side": 128},
    "mid": {"widths": (96, 192, 384, 384), "vae": (32, 32, 64, 64), "text": 256, "layers": 4, "side": 128},
    "sd15": {"widths": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 768, "layers": 12, "side": 512},
}
"""Shapes like Stable Diffusion 1.5's: widths of UNet and VAE, the text encoder's width and layers, pixels of a side."""
_STOPWATCH = """
import json, os, time
if (_file := os.environ.get("STOPWATCH")) and os.environ.get("LOCAL_RANK", "0") == "0":
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    _seen = open(_file, "a", buffering=1)
    def _note(*ignored):
        # Nothing is waited for, so that who does not wait gains by it; steps of a steady loop are as long either way.
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        _seen.write(json.dumps([time.perf_counter(), time.process_time(), time.time(), peak]) + "\\n")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
    register_optimizer_step_post_hook(_note)
if os.environ.get("STOPWATCH_TORCHVISION"):
    # PyPI's torchvision is built for CUDA; with a torch without it, two of its operators are not declared.
    import torch
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
"""As sitecustomize.py it notes the end of every optimizer step of whatever trains, without touching its source."""


def write_model(folder: Path, name: str) -> None:
    """Write a model of `MODELS` as a diffusers folder, with random weights."""
    import torch  # noqa: PLC0415 - what only starts other processes needs none of these
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: PLC0415
    from transformers import CLIPTextConfig, CLIPTextModel  # noqa: PLC0415

    from everydream.models import sd1  # noqa: PLC0415
    from everydream.models.common.kinds import Parts  # noqa: PLC0415
    from everydream.models.common.stable_diffusion import StableDiffusion  # noqa: PLC0415
    from everydream.models.common.tokenizer_files import packaged_files  # noqa: PLC0415

    shape = MODELS[name]
    torch.manual_seed(0)
    width = shape["text"]
    text = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=shape["layers"],
        num_attention_heads=max(width // 64, 1), projection_dim=width,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=shape["vae"], down_block_types=("DownEncoderBlock2D",) * 4, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2 if name == "sd15" else 1,
        norm_num_groups=min(32, shape["vae"][0]),
    )  # fmt: skip
    networks = {
        "unet": UNet2DConditionModel(
            sample_size=shape["side"] // 8, block_out_channels=shape["widths"], cross_attention_dim=width,
            attention_head_dim=8,
        ),
        "text_encoder": CLIPTextModel(text), "vae": vae,
    }  # fmt: skip
    schedule = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    files = {"text_encoder": packaged_files("<|endoftext|>")}
    family = StableDiffusion(sd1.KIND, Parts(networks, files, {**schedule, "prediction_type": "epsilon"}))
    family.write_folder(folder, torch.float32)


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Write square JPEGs with captions, in EveryDream's way and in that of the datasets library."""
    import numpy as np  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415

    folder.mkdir(parents=True)
    with (folder / "metadata.jsonl").open("w") as lines:
        for number in range(count):
            coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            name = f"a picture of thing {number}.jpg"
            Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(folder / name, quality=95)
            lines.write(json.dumps({"file_name": name, "text": Path(name).stem}) + "\n")


def environment(work: Path, threads: int | None = None, **more: str) -> dict[str, str]:
    """Return the environment of a process that is timed: our stopwatch first, then this clone."""
    (work / "stopwatch").mkdir(exist_ok=True)
    (work / "stopwatch" / "sitecustomize.py").write_text(_STOPWATCH)
    paths = os.pathsep.join([str(work / "stopwatch"), str(ROOT)])
    usual = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub")}
    limited = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return {**os.environ, **usual, **limited, "PYTHONPATH": paths, **more}


def timed(command: list[str], work: Path, threads: int | None = None, **more: str) -> list[list[float]]:
    """Run a trainer; return what the stopwatch saw of each step: wall, CPU and clock time in seconds, peak bytes."""
    watch = work / f"watch-{time.monotonic_ns()}.jsonl"
    done = subprocess.run(
        command, env=environment(work, threads, STOPWATCH=str(watch), **more), cwd=work, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return [json.loads(line) for line in watch.read_text().splitlines()]


def per_step(seen: list[list[float]], warm_up: int) -> tuple[float, float]:
    """Return the median seconds of a step after the first ones: on the wall, and of this process's CPU."""
    rows = list(zip(seen[warm_up:], seen[warm_up + 1 :], strict=False))
    wall, cpu = ([after[column] - before[column] for before, after in rows] for column in (0, 1))
    return statistics.median(wall), statistics.median(cpu)


def machine(threads: int | None = None) -> dict[str, str]:
    """Return what was measured on, and with which versions."""
    names = ("torch", "diffusers", "transformers", "accelerate")
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor(),
    )
    return {
        "machine": f"{os.cpu_count()} x {model}",
        "load at the start": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "threads": str(threads or os.environ.get("OMP_NUM_THREADS", "as PyTorch chooses")),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(head) + " |")
    print("|---" + "|---:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
