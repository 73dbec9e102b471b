"""FSDP on two CPU processes: the same training, a checkpoint that is a folder, and any number of processes after it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, metrics_of, train_here
from safetensors.torch import load_file

from everydream.errors import ConfigError, DiskError
from everydream.formats.files import write_pickle
from everydream.formats.sharded import is_sharded, read_sharded, write_sharded
from everydream.tools.models.convert import convert
from everydream.training.sharding import require_shardable
from everydream.training.state import read_checkpoint


def launch_sharded(*arguments: object, reshard: str = "true") -> None:
    """Run train.py on two CPU processes with FSDP."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "train.py"),
         *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "ACCELERATE_USE_FSDP": "true", "FSDP_RESHARD_AFTER_FORWARD": reshard},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key].float() - b[key].float()).abs().max()) for key in a)


def test_sharded_runs_train_stop_and_go_on_with_any_number_of_processes(
    project: Callable[..., Path], tmp_path: Path
) -> None:
    sections = {
        "train": {"epochs": 1, "batch_size": 3, "gradient_accumulation": 2},
        "lr_schedule": {"name": "constant"},
        "ema": {"decay": 0.9},
        "text_encoder": {"clip_skip": 1},  # a layer before the last, which FSDP must not hide
        "samples": {"every_steps": 100, "steps": 1},
        "preservation": {"images": 2, "timesteps": 2},
        "checkpoints": {"formats": ["safetensors"]},
    }
    config = project(**sections)
    one = train_here(config)
    one.parent.rename(tmp_path / "one")
    one = tmp_path / "one" / one.name

    launch_sharded("--config", config)
    (straight,) = (tmp_path / "runs").iterdir()
    straight.parent.rename(tmp_path / "straight")
    straight = tmp_path / "straight" / straight.name
    last = straight / "checkpoints" / "last.ckpt"
    assert is_sharded(last) and len(list(last.glob("shard-*.safetensors"))) == 2
    assert not [path for path in last.rglob("*") if path.name == ".metadata"], "nothing that is a pickled program"
    for a, b in zip(metrics_of(one), metrics_of(straight), strict=True):
        for key in ("loss", "grad_norm", "preservation/loss"):
            assert a.get(key) == (pytest.approx(b[key], rel=1e-3) if key in b else None)
    assert len(list((straight / "samples").glob("*.png"))) == len(list((one / "samples").glob("*.png"))) > 0
    exports = [next((run / "checkpoints").glob("*.safetensors")) for run in (one, straight)]
    assert largest_difference(*map(load_file, exports)) < 2e-3, "the average, exported whole by the main process"

    # Stopped after two steps, and gone on with by two processes: the same bits as the run that was not.
    launch_sharded("--config", config, "train.max_steps=2")
    (stopped,) = (tmp_path / "runs").iterdir()
    launch_sharded("--resume", stopped, "train.max_steps=null", "--allow-changes")
    whole, resumed = read_checkpoint(last), read_checkpoint(stopped / "checkpoints" / "last.ckpt")
    assert resumed.progress == whole.progress
    assert largest_difference(whole.tensors, resumed.tensors) == 0.0
    assert largest_difference(whole.ema, resumed.ema) == 0.0
    for name, held in whole.optimizer.items():
        assert all(torch.equal(value, resumed.optimizer[name][key]) for key, value in held.items()), name


def test_one_process_goes_on_with_a_sharded_run_and_convert_makes_one_file_of_it(
    project: Callable[..., Path], tmp_path: Path
) -> None:
    config = project(train={"epochs": 1, "batch_size": 4}, lr_schedule={"name": "constant"}, method="lora")
    launch_sharded("--config", config, "train.max_steps=2", reshard="false")  # ZeRO-2
    (run,) = (tmp_path / "runs").iterdir()
    last = run / "checkpoints" / "last.ckpt"
    single = tmp_path / "single.ckpt"
    (told,) = convert(last, single, None, None, False)
    assert single.is_file() and "as one file" in told
    with pytest.raises(ConfigError, match="a last.ckpt is copied as it is"):
        convert(last, tmp_path / "half.ckpt", "fp16", None, False)
    folder, file = read_checkpoint(last), read_checkpoint(single)
    assert largest_difference(folder.tensors, file.tensors) == 0.0 and folder.added.keys() == file.added.keys()
    assert (folder.progress, folder.facts) == (file.progress, file.facts)
    alone = train_here(config, "train.max_steps=2")
    assert largest_difference(read_checkpoint(alone / "checkpoints" / "last.ckpt").added, folder.added) < 1e-4
    finished = [train_here(config, resume=path, allow_changes=True) for path in (last, single)]
    states = [read_checkpoint(path / "checkpoints" / "last.ckpt") for path in finished]
    assert states[0].progress == states[1].progress and states[0].progress.step > 2
    assert largest_difference(states[0].added, states[1].added) == 0.0
    assert (run / "checkpoints" / "last.ckpt").is_file(), "one process writes one file, in the place of the folder"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_that_cannot_be_finished_is_told_to_all_and_the_older_one_stays(tmp_path: Path) -> None:
    """What the main process alone meets reaches the others, who would wait for it for ever."""
    path, told = tmp_path / "last.ckpt", []

    def from_main(problem: str) -> str:
        told.append(problem)
        return problem

    def full(file: Path, plain: object) -> None:
        raise OSError(28, "No space left on device")

    def write(rest: object, value: float) -> None:
        write_sharded(path, {"w": torch.tensor([value]), "n": 3}, rest, True, from_main)  # type: ignore[arg-type]

    write(write_pickle, 1.0)
    with pytest.raises(DiskError, match=r"last\.ckpt could not be written: .*No space left on device"):
        write(full, 2.0)
    assert told[-1] and read_sharded(path) == {"w": torch.tensor([1.0]), "n": 3}


def test_optimizers_that_want_whole_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="optimizer.name: adafactor does not go with FSDP"):
        require_shardable("adafactor")
    require_shardable("adamw")
