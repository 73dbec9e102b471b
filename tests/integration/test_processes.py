"""Two processes train as one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, metrics_of, train_here

from everydream.training.state import read_checkpoint


def launch_two(tool: list[str], *arguments: object, **more: str) -> str:
    """Run train.py on two CPU processes, with `more` in their environment, and return what was said."""
    done = subprocess.run(
        [sys.executable, "-m", *tool, str(ROOT / "train.py"), *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **more},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Processes 2 (cpu" in done.stderr, "both processes are one run"
    return done.stderr


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    # --multi_gpu is accelerate's word for a process group; --cpu would start one process unless mpirun is at hand.
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


# As sitecustomize.py: how many numbers DDP exchanges for each optimizer step, and how it was told to.
COUNTING = """
import json, os
if os.environ.get("LOCAL_RANK") == "0":
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel
    from torch.optim.optimizer import register_optimizer_step_post_hook
    file, seen, made = open(os.environ["COUNTS"], "a", buffering=1), [0], DistributedDataParallel.__init__
    def hook(state, bucket):
        seen[0] += bucket.buffer().numel()
        return allreduce_hook(state, bucket)
    def make(self, *inputs, **named):
        made(self, *inputs, **named)
        assert self.gradient_as_bucket_view and not self.broadcast_buffers
        self.register_comm_hook(None, hook)
    def note(*ignored):
        file.write(json.dumps(seen[0]) + "\\n")
        seen[0] = 0
    DistributedDataParallel.__init__ = make
    register_optimizer_step_post_hook(note)
"""


@pytest.mark.parametrize(("tool", "accumulation"), [(TORCHRUN, 2), (ACCELERATE, 3)])
def test_two_processes_give_the_loss_curve_of_one(
    project: Callable[..., Path], tmp_path: Path, tool: list[str], accumulation: int
) -> None:
    """Batches that do not divide by two, left-overs of one image and an odd accumulation included."""
    config = project(train={"epochs": 2, "batch_size": 3, "gradient_accumulation": accumulation}, ema={"decay": 0.9})
    one = train_here(config)
    one.parent.rename(tmp_path / "one")
    (tmp_path / "sitecustomize.py").write_text(COUNTING)
    counts = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "COUNTS": str(tmp_path / "counts")}
    launch_two(tool, "--config", config, **counts if tool is TORCHRUN else {})
    (two,) = (tmp_path / "runs").iterdir()
    ours, theirs = metrics_of(tmp_path / "one" / one.name), metrics_of(two)
    assert len(ours) == len(theirs) > 3
    for a, b in zip(ours, theirs, strict=True):
        assert (a["step"], a["epoch"], a["images_seen"]) == (b["step"], b["epoch"], b["images_seen"])
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    first = read_checkpoint(tmp_path / "one" / one.name / "checkpoints" / "last.ckpt")
    second = read_checkpoint(two / "checkpoints" / "last.ckpt")
    assert first.progress == second.progress
    if tool is TORCHRUN:
        trained = sum(state["exp_avg"].numel() for state in second.optimizer.values())
        exchanged = [json.loads(line) for line in (tmp_path / "counts").read_text().splitlines()]
        assert exchanged == [trained] * len(theirs), "each gradient once a step, whatever the micro-batches"
    for key, tensor in first.tensors.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, second.tensors[key], atol=2e-3, rtol=0)


def test_two_processes_make_class_images_and_train_an_adapter(project: Callable[..., Path], tmp_path: Path) -> None:
    made = {"role": "class", "label": "a photo of a thing", "generate": 5}
    config = project(
        method="lora",
        lora={"rank": 2},
        unet={"lr": 1e-3},
        data={"sources": [{"path": str(tmp_path / "mine"), "label": "a photo of rex"}, made]},
        train={"epochs": 1, "batch_size": 3},
        class_images={"steps": 2, "batch_size": 2},
    )
    one = train_here(config)
    one.parent.rename(tmp_path / "one")
    launch_two(TORCHRUN, "--config", config)
    (two,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "class_images")
    for folder in ("one", "runs"):
        assert len(list((tmp_path / folder / "class_images").glob("*/*.png"))) == 5
    pictures = [sorted((tmp_path / folder / "class_images").glob("*/*.png")) for folder in ("one", "runs")]
    assert [path.read_bytes() for path in pictures[0]] == [path.read_bytes() for path in pictures[1]]
    ours, theirs = metrics_of(tmp_path / "one" / one.name), metrics_of(two)
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)


def test_two_processes_with_samples_exports_workers_and_ema(project: Callable[..., Path], tmp_path: Path) -> None:
    """One process draws the samples while the other waits: no call of its may ask for both."""
    config = project(
        data={"workers": 1}, train={"epochs": 1}, ema={"decay": 0.9}, trackers=["tensorboard"],
        samples={"every_steps": 2, "steps": 2},
        checkpoints={"every_steps": 3, "formats": ["safetensors"], "keep": None},
    )  # fmt: skip
    launch_two(TORCHRUN, "--config", config)
    (run,) = (tmp_path / "runs").iterdir()
    steps = len(metrics_of(run))
    assert len(list((run / "samples").glob("*grid.png"))) == 1 + -(-steps // 2)
    assert len(list((run / "checkpoints").glob("*.safetensors"))) == -(-steps // 3)


def test_accelerates_environment_does_not_change_the_numbers(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = project(train={"max_steps": 2})
    plain = metrics_of(train_here(config))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert metrics_of(train_here(config)) == plain


def test_a_run_of_one_process_goes_on_with_two(project: Callable[..., Path]) -> None:
    config = project(train={"max_steps": 2}, lr_schedule={"name": "constant"})
    run = train_here(config)
    said = launch_two(
        TORCHRUN,
        "--config",
        config,
        "--resume",
        run / "checkpoints" / "last.ckpt",
        "--allow-changes",
        "train.max_steps=4",
    )
    assert "train.max_steps: was 2, is 4" in said
    straight = metrics_of(train_here(config, "train.max_steps=4"))
    assert [line["step"] for line in metrics_of(run)] == [1, 2, 3, 4]
    assert [line["loss"] for line in metrics_of(run)] == pytest.approx([line["loss"] for line in straight], rel=1e-4)


def test_a_lost_machine_ends_in_a_restart_on_those_that_are_left(project: Callable[..., Path], tmp_path: Path) -> None:
    """Two of torchrun's agents stand for two machines; one dies with all its processes in the middle of the run."""
    config = project(
        train={"epochs": 30, "max_steps": 24},
        checkpoints={"every_steps": 2, "every_epochs": None, "every_minutes": None},
        lr_schedule={"name": "constant"},
    )
    straight = metrics_of(train_here(config))
    (tmp_path / "runs").rename(tmp_path / "one")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machines = [_agent(config, port, tmp_path / f"agent{number}.txt", number == 0) for number in (0, 1)]
    try:
        deadline = time.monotonic() + 120
        while not any(len(path.read_text().splitlines()) > 5 for path in (tmp_path / "runs").glob("*/metrics.jsonl")):
            assert time.monotonic() < deadline and all(machine.poll() is None for machine in machines)
            time.sleep(0.05)
        _kill(machines[1])
        assert machines[0].wait(timeout=150) == 0, (tmp_path / "agent0.txt").read_text()[-3000:]
    finally:
        for machine in machines:
            _kill(machine)
    said = (tmp_path / "agent0.txt").read_text()
    assert "A restart by torchrun may hang" not in said, "it was launched as it should be"
    assert "Processes 2 (cpu" and "Processes 1 (cpu" in said and "This launch began" in said
    (run,) = (tmp_path / "runs").iterdir()
    assert [line["step"] for line in metrics_of(run)] == list(range(1, 25))
    assert [line["loss"] for line in metrics_of(run)] == pytest.approx([line["loss"] for line in straight], rel=1e-3)


def _kill(machine: subprocess.Popen[Any]) -> None:
    """Kill an agent and what it started, each of which is in a session of its own."""
    if machine.poll() is None:
        children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()
        for pid in (*map(int, children), machine.pid):
            os.kill(pid, signal.SIGKILL)
        machine.wait()


def _agent(config: Path, port: int, said: Path, is_host: bool) -> subprocess.Popen[Any]:
    """Start torchrun as one machine of up to two. `is_host`: whether it keeps the rendezvous."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "job",
                  "--rdzv-conf", f"last_call_timeout=10,keep_alive_interval=1,is_host={is_host}"]  # fmt: skip
    with said.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc_per_node", "1", *rendezvous,
             "--max-restarts", "3", str(ROOT / "train.py"), "--config", str(config)],
            cwd=ROOT, stdout=out, stderr=out, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )  # fmt: skip
