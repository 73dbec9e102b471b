"""Proves exact resume for a user's own config: a straight run against one that is killed and resumed."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from everydream.errors import TrainingError

_POLL_S = 0.005


def verify(config: Path, overrides: list[str], steps: int) -> str:
    """Train `steps` steps twice, the second time with SIGKILL half-way, and compare every byte of state and metrics.

    Returns the proof in words. Raises TrainingError if the two differ or a run fails.
    """
    with TemporaryDirectory(prefix="everydream-verify-") as temporary:
        common = [
            "train", "--config", str(config), *overrides, f"train.max_steps={steps}", "checkpoints.every_steps=2",
            "checkpoints.formats=[]", "samples.every_steps=null", "trackers=[]",
        ]  # fmt: skip
        # Both run in a folder of one name, for the settings travel in last.ckpt.
        killed, straight = Path(temporary) / "runs", Path(temporary) / "straight"
        common.append(f"runs_dir={killed}")
        _run(common)
        killed.rename(straight)
        killed_at = _run_and_kill(common, killed, steps // 2)
        _run(["train", "--resume", str(_last(killed))])
        differing = [
            name for name in ("checkpoints/last.ckpt", "metrics.jsonl") if _hash(straight, name) != _hash(killed, name)
        ]
        if differing:
            raise TrainingError(
                f"Not the same bits after {steps} steps, killed at {killed_at}: {', '.join(differing)} differ. "
                "On a GPU set train.deterministic: true; on a CPU keep OMP_NUM_THREADS the same."
            )
        digest = _hash(straight, "checkpoints/last.ckpt")
        return (
            f"Proved: {steps} steps straight, and {steps} steps killed at step {killed_at} and resumed, end with "
            "the same bits.\nlast.ckpt (weights, optimizer, average, progress) and metrics.jsonl are equal; "
            f"sha256 of last.ckpt: {digest}"
        )


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "everydream.cli", *arguments]


def _run(arguments: list[str]) -> None:
    done = subprocess.run(_command(arguments), capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise TrainingError(f"A trial run failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")


def _run_and_kill(arguments: list[str], runs_dir: Path, at_step: int) -> int:
    """Start a run, SIGKILL it once it has saved and done `at_step` steps; return the step it had reached."""
    process = subprocess.Popen(
        _command(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None:
        done = _steps_done(runs_dir)
        if done >= at_step and list(runs_dir.glob("*/checkpoints/last.ckpt")):
            # The whole group, so that no worker process is left behind.
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
            process.wait()
            return _steps_done(runs_dir)
        time.sleep(_POLL_S)
    done = _steps_done(runs_dir)
    if process.returncode == 0:
        raise TrainingError(
            f"The trial run was over after {done} steps, before it could be killed: this config has no more. Give it "
            "more epochs for the proof, e.g. train.epochs=20."
        )
    raise TrainingError(f"The trial run ended with exit code {process.returncode} after {done} steps.")


def _steps_done(runs_dir: Path) -> int:
    # Not the lines: some steps have one of their own for what was measured after them.
    lines = [line for path in runs_dir.glob("*/metrics.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def _last(runs_dir: Path) -> Path:
    return next(runs_dir.glob("*/checkpoints/last.ckpt"))


def _hash(runs_dir: Path, name: str) -> str:
    with next(runs_dir.glob(f"*/{name}")).open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )
