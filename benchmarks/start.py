"""From the start of a process to the end of its first step: `train.py` beside a process that does the least there is.

    python benchmarks/start.py [--model tiny|mid] [--images 10] [--rounds 5]

least    imports torch and diffusers' and transformers' classes, and loads the same model folder
first    the same, and one step by hand (see step.py)
ours     train.py with a config, to the end of its first step: plan, model, run folder, trackers

Each is a new process with warm disk caches, and they take turns. `--profile` prints where ours spends its time: imports
by their own time, then functions.
"""

import argparse
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import made
import yaml
from step import config_of

_LEAST = """
import sys
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer
folder = sys.argv[1]
AutoencoderKL.from_pretrained(folder + "/vae"), UNet2DConditionModel.from_pretrained(folder + "/unet")
CLIPTextModel.from_pretrained(folder + "/text_encoder"), CLIPTokenizer.from_pretrained(folder + "/tokenizer")
DDPMScheduler.from_pretrained(folder + "/scheduler")
import json, os, time
with open(os.environ["STOPWATCH"], "a") as file:
    print(json.dumps([0, time.process_time(), time.time(), 0]), file=file)
"""


def to_first_step(command: list[str], work: Path, threads: int | None) -> tuple[float, float]:
    """Return the seconds from the start of a process to the first thing that is noted: on the wall, and of its CPU."""
    began = time.time()
    first = made.timed(command, work, threads)[0]
    return first[2] - began, first[1]


def profile(command: list[str], work: Path, threads: int | None) -> None:
    """Print what ours imports and calls on the way."""
    environment = made.environment(work, threads)
    said = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], env=environment, cwd=work, capture_output=True, text=True,
        check=True,
    ).stderr  # fmt: skip
    rows = [line[12:].split("|") for line in said.splitlines() if line.startswith("import time:") and "|" in line]
    times = sorted(((int(own), name.strip()) for own, _, name in rows if own.strip().isdigit()), reverse=True)
    print("\nimports by their own time, ms")
    for own, name in times[:25]:
        print(f"{own / 1000:8.0f}  {name}")
    stats = work / "profile"
    subprocess.run(
        [command[0], "-m", "cProfile", "-o", str(stats), *command[1:]], env=environment, cwd=work, check=True,
        capture_output=True,
    )  # fmt: skip
    pstats.Stats(str(stats)).sort_stats("cumulative").print_stats("everydream|accelerate|tensorboard", 45)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "mid"), default="tiny")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    about = {**made.machine(options.threads), "model": options.model, "images": str(options.images)}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    found: dict[str, list[tuple[float, float]]] = {"least": [], "first": [], "ours": []}
    with tempfile.TemporaryDirectory(prefix="everydream-start-") as temporary:
        work = Path(temporary)
        model, pictures = work / options.model, work / f"{options.model}-pictures"
        made.write_model(model, options.model)
        made.write_pictures(pictures, options.images, made.MODELS[options.model]["side"])
        config = work / "config.yaml"
        config.write_text(yaml.safe_dump(config_of(work, options.model, 4, 1, False)))
        ours = [sys.executable, str(made.ROOT / "train.py"), "--config", str(config)]
        script = str(Path(__file__).parent / "step.py")
        hand = [sys.executable, script, "--by-hand", str(model), str(pictures), "4", "1", "not cached"]
        for _ in range(options.rounds):
            found["least"].append(to_first_step([sys.executable, "-c", _LEAST, str(model)], work, options.threads))
            found["first"].append(to_first_step(hand, work, options.threads))
            found["ours"].append(to_first_step(ours, work, options.threads))
        rows = []
        for name, rounds in found.items():
            wall, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
            pairs = list(zip(rounds, found["least"], strict=True))
            ratios = [statistics.median(mine[column] / least[column] for mine, least in pairs) for column in (0, 1)]
            rows.append([name, f"{wall:.2f}", f"{cpu:.2f}", *(f"{ratio:.2f}" for ratio in ratios)])
        made.print_table(["", "wall s", "CPU s", "wall, least = 1", "CPU, least = 1"], rows)
        if options.profile:
            profile(ours, work, options.threads)
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
