"""Two processes beside one, on a model that computes: images a second, by torchrun and by accelerate launch.

    python benchmarks/processes.py [--rounds 5] [--steps 12]

One thread a process, the same config and so the same steps (`train.batch_size` images, shared by the processes). On a
CPU the most that can come out is what two cores give one core that is alone: `cores` measures that with a plain loop of
matrix products in one process and in two at once, so that a busy or a hyperthreaded machine is seen for what it is.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import made
import yaml
from step import WARM_UP, config_of

_LOOP = """
import sys, time, torch
torch.set_num_threads(1)
a = torch.randn(768, 768)
for _ in range(10):
    a @ a
began, done = time.perf_counter(), 0
while time.perf_counter() - began < float(sys.argv[1]):
    a @ a
    done += 1
print(done)
"""
_TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
_ACCELERATE = [
    "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no",
    "--dynamo_backend", "no", "--num_processes",
]  # fmt: skip


def cores(work: Path, seconds: float) -> float:
    """Return how much more two processes at once compute than one alone."""

    def products(processes: int) -> int:
        command = [sys.executable, "-c", _LOOP, str(seconds)]
        running = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=made.environment(work, 1))
            for _ in range(processes)
        ]
        return sum(int(process.communicate()[0]) for process in running)

    return products(2) / products(1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny-large-pictures", "mid"), default="tiny-large-pictures")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12, help=f"of each run, the first {WARM_UP} not counted")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    about = {**made.machine(1), "model": options.model, "images a step": str(options.batch)}
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    found: dict[str, list[float]] = {"one": [], "torchrun, two": [], "accelerate launch, two": [], "cores": []}
    with tempfile.TemporaryDirectory(prefix="everydream-processes-") as temporary:
        work = Path(temporary)
        made.write_model(work / options.model, options.model)
        side = made.MODELS[options.model]["side"]
        made.write_pictures(work / f"{options.model}-pictures", 4 * options.batch, side)
        config = work / "config.yaml"
        config.write_text(yaml.safe_dump(config_of(work, options.model, options.batch, options.steps, True)))
        script = [str(made.ROOT / "train.py"), "--config", str(config)]
        sides = {
            "one": [sys.executable, *script],
            "torchrun, two": [sys.executable, *_TORCHRUN, "2", *script],
            "accelerate launch, two": [sys.executable, *_ACCELERATE, "2", *script],
        }
        for _ in range(options.rounds):
            for name, command in sides.items():
                found[name].append(options.batch / made.per_step(made.timed(command, work, 1), WARM_UP)[0])
            found["cores"].append(cores(work, 5.0))
            time.sleep(1.0)
    rows = []
    for name, rounds in found.items():
        ratio = statistics.median(
            mine / one if name != "cores" else mine for mine, one in zip(rounds, found["one"], strict=True)
        )
        speed = f"{statistics.median(rounds):.2f}" if name != "cores" else ""
        rows.append([name if name != "cores" else "two plain loops at once", speed, f"{ratio:.2f}"])
    made.print_table(["", "images/s", "one = 1"], rows)
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about, "images_per_s": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
