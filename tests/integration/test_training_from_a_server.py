"""A WebDataset on a server trains as it does from this machine, and a run that is killed goes on to the bit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import metrics_of, train_here
from tars import png, write_shard
from web import served

from everydream.data import fetched
from everydream.training import accumulating
from everydream.training.runs import find_checkpoint
from everydream.training.state import read_checkpoint

Project = Callable[..., Path]


class Killed(BaseException):
    """Stands for a process that ends without another word."""


def make_shards(folder: Path) -> None:
    for number in range(2):
        members = {f"{n:03}.{end}": png(n + 10 * number, (64, 64)) if end == "png" else f"thing {number} {n}"
                   for n in range(8) for end in ("png", "txt")}  # fmt: skip
        write_shard(folder / f"{number:03}.tar", members)  # type: ignore[arg-type]


def test_a_run_on_a_server_is_the_run_on_this_machine_killed_or_not(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cache: a worker process asks for each image's bytes."""
    monkeypatch.setenv(fetched.LIMIT, "0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_shards(tmp_path / "web")
    with served(tmp_path / "web") as server:

        def config(path: str, **data: object) -> Path:
            source = {"path": path, "name": "set"}
            return project(data={"sources": [source], **data}, checkpoints={"every_steps": 1})

        here = train_here(config(str(tmp_path / "web" / "{000..001}.tar")))
        there = config(f"{server.url}/{{000..001}}.tar", workers=1)
        step, count = accumulating.training_step, [0]

        def dying(*args: object, **kwargs: object) -> object:
            count[0] += 1
            if count[0] > 3:
                raise Killed
            return step(*args, **kwargs)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(accumulating, "training_step", dying)
            with pytest.raises(Killed):
                train_here(there)
        last = find_checkpoint("auto", here.parent, "trial")
        assert last is not None and here not in last.parents
        resumed = train_here(there, resume=last)
        assert server.asked["GET 000.tar"] > 8 * 2
    losses = [[line["loss"] for line in metrics_of(run)] for run in (here, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    one, other = (read_checkpoint(run / "checkpoints" / "last.ckpt").tensors for run in (here, resumed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
