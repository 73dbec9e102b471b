"""`python -m demo.run`: what `make demo` does, in the order of the report.

look at the model before -> train, kill -9 half-way, resume -> look again -> report
with --forgetting: train without ground truth and put that beside it
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from demo.score import describe, exam, sample, score, write_report

ROOT = Path(__file__).resolve().parents[1]
REPORT = Path("runs") / "demo-report"
WITH, WITHOUT = "with ground truth", "without ground truth"
NEW_AT_LEAST, OLD_LOSS_AT_MOST = 0.90, 0.05


def train(config: str, kill_at_step: int | None = None) -> Path:
    """Run train.py; with `kill_at_step` kill it without warning there and go on from its last.ckpt. Return the run."""
    before = set(Path("runs").glob("*/checkpoints"))
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--config", config], start_new_session=True)
    try:
        run = _new_run(process, before)
        if kill_at_step is not None:
            _kill(process, run, kill_at_step)
            last = run / "checkpoints" / "last.ckpt"
            print(f"\nKilled with SIGKILL. Going on with: python train.py --resume {last}\n", flush=True)
            process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--resume", str(last)])
        if process.wait() != 0:
            raise SystemExit(f"Training ended with exit code {process.returncode}; what it said stands above.")
    finally:
        if process.poll() is None:
            process.kill()
    return run


def _new_run(process: subprocess.Popen[bytes], before: set[Path]) -> Path:
    """Wait for the run folder that the process makes."""
    while process.poll() is None:
        found = set(Path("runs").glob("*/checkpoints")) - before
        if found:
            return found.pop().parent
        time.sleep(0.05)
    raise SystemExit(f"Training did not start (exit code {process.returncode}); what it said stands above.")


def _kill(process: subprocess.Popen[bytes], run: Path, at_step: int) -> None:
    """Send SIGKILL once `at_step` steps are done."""
    metrics = run / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and f'"step": {at_step}, '.encode() in metrics.read_bytes():
            # The group, so that the process that decodes images ends too.
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
            return
        time.sleep(0.05)


def pictures(model: Path) -> list[Image.Image]:
    """Return the exam's pictures by a model."""
    expected, seeds = exam()
    return sample(model, [subject.caption for subject in expected], seeds)


def export_of(run: Path) -> Path:
    """Return the newest diffusers folder of a run."""
    return max(path for path in (run / "checkpoints").iterdir() if path.is_dir() and path.suffix != ".partial")


def main() -> None:
    """Run the demo from the repository's root."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forgetting", action="store_true", help="train without ground truth and compare")
    forgetting: bool = parser.parse_args().forgetting
    os.chdir(ROOT)
    started = time.monotonic()
    model = Path("demo/model")
    columns = {"before": pictures(model)}
    print(
        f"Before, the model does not know what a ring is:\n{describe(score(columns['before'], exam()[0]))}\n",
        flush=True,
    )
    if forgetting:
        newest = _newest_run("demo")
        if newest is None:
            print("There is no run of `make demo` yet, so the comparison will lack its column.\n", flush=True)
        else:
            print(f"Comparing with the newest run of `make demo`: {newest}\n", flush=True)
            columns[WITH] = pictures(export_of(newest))
        columns[WITHOUT] = pictures(export_of(train("configs/demo_forgetting.yaml")))
    else:
        columns[WITH] = pictures(export_of(train("configs/demo.yaml", kill_at_step=130)))
    _conclude(columns, started)


def _newest_run(project: str) -> Path | None:
    """Return the newest finished run of a project, or None."""
    runs = [
        p for p in Path("runs").glob("*/run.json") if json.loads(p.read_text(encoding="utf-8"))["project"] == project
    ]
    done = [p.parent for p in runs if any(path.is_dir() for path in (p.parent / "checkpoints").iterdir())]
    return max(done, key=lambda run: run.stat().st_mtime, default=None)


def _conclude(columns: dict[str, list[Image.Image]], started: float) -> None:
    """Write the report, say what came out, and fail if the demo did not show what it is for."""
    expected: Sequence[object]
    expected, _ = exam()
    write_report(REPORT, expected, columns)
    boards = {name: score(images, expected) for name, images in columns.items()}
    for name, board in boards.items():
        print(f"\n{name}:\n{describe(board)}")
    print(
        f"\nPictures: {REPORT / 'grid.png'}\nReport:   {REPORT / 'report.md'}\nTook {time.monotonic() - started:.0f} s"
    )
    if WITH in boards:
        new, lost = boards[WITH].new.all_three, boards["before"].old.all_three - boards[WITH].old.all_three
        if new < NEW_AT_LEAST or lost > OLD_LOSS_AT_MOST:
            raise SystemExit(f"Not what the demo should show: rings {new:.0%} right, known shapes lost {lost:.0%}.")


if __name__ == "__main__":
    main()
