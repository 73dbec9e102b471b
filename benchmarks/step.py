"""What the framework costs a step: ours beside a loop by hand with the same modules, and beside diffusers' own script.

    python benchmarks/step.py [--model tiny|mid] [--rounds 5] [--steps 30] [--diffusers CLONE --peer-python PYTHON]

by hand      diffusers' UNet, VAE and text encoder, PyTorch's fused AdamW, one clip, nothing else: about forty lines
ours         `train.py` with a config, trackers and metrics on
diffusers    examples/text_to_image/train_text_to_image.py of a clone, which encodes every image at every step

The UNet trains and the text encoder is evaluated at each step, as diffusers' script has it; fp32, one process, no data
workers. `cached`: the VAE's moments are there. Each side is a process of its own, and they take turns; a stopwatch in
the optimizer's hooks sees them all alike (`made.py`). CPU time leaves other work on the machine out.
The script of diffusers needs torchvision and datasets: give a Python that has them.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import made
import yaml

WARM_UP = 5


def config_of(work: Path, model: str, batch: int, steps: int, cached: bool) -> dict[str, Any]:
    """Return the settings of our run."""
    return {
        "project": "step", "runs_dir": str(work / "runs"), "model": {"path": str(work / model)},
        "data": {"sources": [{"path": str(work / f"{model}-pictures")}], "resolution": made.MODELS[model]["side"],
                 "workers": 0, "crop": "center"},
        "train": {"epochs": 1000, "max_steps": steps, "batch_size": batch, "precision": "fp32",
                  "gradient_checkpointing": False},
        "unet": {"lr": 1e-5}, "text_encoder": {"train": False},
        "cache": {"latents": True, "folder": str(work / "c")} if cached else {},
        "lr_schedule": {"name": "constant"}, "samples": {"every_steps": None},
        "checkpoints": {"formats": [], "every_epochs": None, "every_minutes": None},
    }  # fmt: skip


def by_hand(model: Path, pictures: Path, batch: int, steps: int, cached: bool) -> None:
    """Train in a plain loop."""
    import numpy as np  # noqa: PLC0415 - these belong to the process that trains
    import torch  # noqa: PLC0415
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: PLC0415

    unet = UNet2DConditionModel.from_pretrained(model / "unet").train()
    vae = AutoencoderKL.from_pretrained(model / "vae").requires_grad_(False)
    encoder = CLIPTextModel.from_pretrained(model / "text_encoder").requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    schedule = DDPMScheduler.from_pretrained(model / "scheduler")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, fused=True)
    paths = sorted(pictures.glob("*.jpg"))

    def moments(path: Path) -> torch.Tensor:
        pixels_HWC = torch.from_numpy(np.asarray(Image.open(path)).copy())
        return pixels_HWC.permute(2, 0, 1)

    def encoded(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return vae.encode(pixels_BCHW / 127.5 - 1.0).latent_dist.parameters

    known = {path: encoded(moments(path)[None])[0] for path in paths} if cached else {}
    for step in range(steps):
        mine = [paths[(step * batch + number) % len(paths)] for number in range(batch)]
        rows = torch.stack([known[path] if cached else moments(path) for path in mine])
        mean, log_variance = (rows if cached else encoded(rows)).chunk(2, dim=1)
        x0 = (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)) * vae.config.scaling_factor
        noise, t_B = torch.randn_like(x0), torch.randint(0, 1000, (batch,))
        ids = tokenizer([path.stem for path in mine], padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            tokens_BLD = encoder(ids.input_ids)[0]
        predicted = unet(schedule.add_noise(x0, noise, t_B), t_B, tokens_BLD, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(predicted, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def commands(work: Path, options: argparse.Namespace) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Return how each side is run: its command, and what is put into its environment."""
    model, side = options.model, made.MODELS[options.model]["side"]
    sides: dict[str, tuple[list[str], dict[str, str]]] = {}
    for how in ("cached", "not cached"):
        own = work / f"{how.replace(' ', '-')}.yaml"
        own.write_text(yaml.safe_dump(config_of(work, model, options.batch, options.steps, how == "cached")))
        hand = [str(work / model), str(work / f"{model}-pictures"), str(options.batch), str(options.steps), how]
        sides[f"by hand, {how}"] = ([sys.executable, __file__, "--by-hand", *hand], {})
        sides[f"ours, {how}"] = ([sys.executable, str(made.ROOT / "train.py"), "--config", str(own)], {})
    if options.diffusers is not None:
        script = options.diffusers / "examples" / "text_to_image" / "train_text_to_image.py"
        flags = {
            "pretrained_model_name_or_path": work / model, "train_data_dir": work / f"{model}-pictures",
            "resolution": side, "train_batch_size": options.batch, "max_train_steps": options.steps,
            "learning_rate": 1e-5, "lr_scheduler": "constant", "lr_warmup_steps": 0, "mixed_precision": "no",
            "dataloader_num_workers": 0, "checkpointing_steps": 10**9, "output_dir": work / "diffusers-out",
            "cache_dir": work / "hub",
        }  # fmt: skip
        more = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        peer = {"STOPWATCH_TORCHVISION": "1", "ACCELERATE_USE_CPU": "true"}
        sides["diffusers, not cached"] = ([options.peer_python, str(script), "--center_crop", *more], peer)
    return sides


def report(found: dict[str, list[tuple[float, float]]], batch: int) -> list[list[str]]:
    """Return the table's rows: each side's median, and its ratio to the loop by hand, round by round."""
    rows = []
    for name, rounds in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
        base = found[f"by hand, {name.partition(', ')[2]}"]
        ratios = [
            statistics.median(mine[column] / theirs[column] for mine, theirs in zip(rounds, base, strict=True))
            for column in (0, 1)
        ]
        told = [f"{wall * 1000:.1f}", f"{cpu * 1000:.1f}", f"{batch / wall:.1f}", *(f"{ratio:.3f}" for ratio in ratios)]
        rows.append([name, *told])
    return rows


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--by-hand"]:
        model, pictures, batch, steps, how = sys.argv[2:]
        by_hand(Path(model), Path(pictures), int(batch), int(steps), how == "cached")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "mid"), default="tiny")
    parser.add_argument("--batch", type=int, default=None, help="images a step; 16 for tiny, 4 for mid")
    parser.add_argument("--steps", type=int, default=30, help=f"of each run, the first {WARM_UP} not counted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--diffusers", type=Path, default=None, help="a clone of huggingface/diffusers")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python with torchvision and datasets")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    options.batch = options.batch or {"tiny": 16, "mid": 4}[options.model]
    about = {**made.machine(options.threads), "model": options.model, "images a step": str(options.batch)}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="everydream-step-") as temporary:
        work = Path(temporary)
        made.write_model(work / options.model, options.model)
        made.write_pictures(work / f"{options.model}-pictures", 4 * options.batch, made.MODELS[options.model]["side"])
        sides = commands(work, options)
        for _ in range(options.rounds):
            for name, (command, more) in sides.items():
                seen = made.timed(command, work, options.threads, **more)
                found.setdefault(name, []).append(made.per_step(seen, WARM_UP))
    rows = report(found, options.batch)
    made.print_table(["", "wall ms/step", "CPU ms/step", "images/s", "wall, by hand = 1", "CPU, by hand = 1"], rows)
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
