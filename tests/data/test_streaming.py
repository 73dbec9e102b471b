"""One pool of workers for a run: in the plan's order over all epochs, ahead of it, and gone at its end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from synthetic import make_index
from torch.utils.data import Dataset

from everydream.data.buckets import Buckets
from everydream.data.collating import collate
from everydream.data.cores import usable_cores
from everydream.data.loader import Job, Loaded, jobs_of
from everydream.data.mix import make_mix
from everydream.data.plan import Piece, pieces_for_rank, plan_epoch
from everydream.data.settings import SourceSettings
from everydream.data.streaming import Stream
from everydream.errors import TrainingError
from everydream.types import Batch, Conditioning, Crop, EpochPlan, Rejection, Sample

INDEX, BUCKETS, EPOCHS = make_index([11]), Buckets(((512, 512),)), 3
PLANS = [
    plan_epoch(
        INDEX, make_mix(INDEX, [SourceSettings(path="/nowhere", name="s0")], 1, np.zeros(0, np.int64)), BUCKETS,
        seed=1, epoch=epoch, batch_size=2, accumulation=2,
    )
    for epoch in range(EPOCHS)
]  # fmt: skip
STEPS = PLANS[0].num_steps


class Echo(Dataset[Loaded]):
    """Says of a job which it was and which process did it."""

    def __getitem__(self, job: Job) -> Loaded:
        if job.records == [-1]:
            os.kill(os.getpid(), signal.SIGKILL)
        return Loaded(job.piece, None, [Rejection(os.getpid(), "", "")], [f"{job.epoch} {job.step} {job.records}"])  # type: ignore[arg-type]


def stream(workers: int, total_steps: int = EPOCHS * STEPS, rank: int = 0, world: int = 1) -> tuple[Stream, list[int]]:
    asked: list[int] = []

    def plan_of(epoch: int) -> EpochPlan:
        asked.append(epoch)
        return PLANS[epoch]

    return Stream(Echo(), plan_of, [0, STEPS, 2 * STEPS], total_steps, (rank, world), workers), asked


def expected(epoch: int, start: int = 0, rank: int = 0, world: int = 1) -> list[str]:
    jobs = jobs_of(PLANS[epoch], pieces_for_rank(PLANS[epoch], rank, world, start), epoch * STEPS)
    return [f"{job.epoch} {job.step} {list(job.records)}" for job in jobs]


def told(loaded: Iterator[Loaded]) -> tuple[list[str], set[int]]:
    items = list(loaded)
    return [item.notes[0] for item in items], {item.failed[0].source for item in items}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_epochs_come_from_one_pool_in_the_order_of_their_plans(workers: int) -> None:
    pieces, asked = stream(workers)
    with pieces:
        first, pids = told(pieces.epoch(PLANS[0], 1))
        assert first == expected(0, 1)
        assert asked == ([0, 1] if workers else [0]), "workers are in the next epoch when this one's last piece comes"
        for epoch in (1, 2):
            found, same = told(pieces.epoch(PLANS[epoch], 0))
            assert found == expected(epoch) and same <= pids
        assert len(pids) == max(workers, 1) and (os.getpid() in pids) == (workers == 0)
        assert asked == [0, 1, 2]
    assert workers == 0 or not any(psutil.pid_exists(pid) for pid in pids)


def test_a_stream_that_was_left_begins_anew_where_it_is_asked_to() -> None:
    pieces, _ = stream(0)
    assert next(pieces.epoch(PLANS[0], 0)).notes == expected(0)[:1]
    assert told(pieces.epoch(PLANS[1], 1))[0] == expected(1, 1)
    assert told(pieces.epoch(PLANS[1], STEPS))[0] == []
    assert told(pieces.epoch(PLANS[2], 0))[0] == expected(2)
    assert told(pieces.epoch(PLANS[0], 0))[0] == expected(0)


def test_nothing_is_asked_for_beyond_the_last_step_of_the_run() -> None:
    pieces, asked = stream(0, total_steps=STEPS + 1)
    assert told(pieces.epoch(PLANS[0], 0))[0] == expected(0)
    assert told(pieces.epoch(PLANS[1], 0))[0] == expected(1)[:2]
    assert list(pieces._coming or ()) == [] and asked == [0, 1]


def test_each_process_streams_its_own_pieces() -> None:
    for rank in (0, 1, 2):
        pieces, _ = stream(0, rank=rank, world=3)
        for epoch in range(EPOCHS):
            assert told(pieces.epoch(PLANS[epoch], 0))[0] == expected(epoch, 0, rank, 3)


def test_a_worker_that_is_killed_ends_the_run_in_words() -> None:
    pieces, _ = stream(1)
    killing = Job(Piece(0, 0, 0, 1, False), 0, 0, [-1], [0], 0, 1)
    pieces._order = lambda epoch, start: iter([killing])  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="DataLoader worker .*lower data.workers, and resume"), pieces:
        list(pieces.epoch(PLANS[0], 0))


def test_images_come_as_one_batch_whatever_their_layout() -> None:
    rng = np.random.default_rng(0)
    views = [rng.integers(0, 256, (9, 8, 3), dtype=np.uint8)[1:, 1:].transpose(2, 0, 1) for _ in range(3)]
    crop = Crop((9, 8), 0, 0, (8, 7), False)
    batch = collate([Sample(view, None, "a", crop, 1.0, 1, "k", (0, 3)) for view in views])
    assert batch.pixels_BCHW.is_contiguous() and np.array_equal(batch.pixels_BCHW.numpy(), np.stack(views))


def test_all_tensors_of_a_batch_are_pinned_and_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing can be pinned, so what is asked for is counted."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    one = torch.ones(1, 3, 2, 2)
    batch = Batch(
        one, [""], [], torch.ones(1), [0], [""], 1, [(0, 1)], one[:, :1], one, Conditioning(one[0], one[0, 0])
    )
    loaded = Loaded(Piece(0, 0, 0, 1, True), batch, []).pin_memory()
    assert len(pinned) == 6 and vars(loaded.batch.to(torch.device("cpu"))).keys() == vars(batch).keys()
    assert loaded.batch.to(torch.device("meta")).read.pooled_BD.is_meta  # type: ignore[union-attr]


@pytest.mark.parametrize(("files", "own", "cores"), [
    ({}, "0::/", 6), ({"cpu.max": "max 100000"}, "0::/", 6), ({"cpu.max": "250000 100000"}, "0::/", 3),
    ({"cpu.max": "max 100000", "a/cpu.max": "50000 100000", "a/b/cpu.max": "400000 100000"}, "0::/a/b", 1),
    ({"cpu/x/cpu.cfs_quota_us": "200000", "cpu/x/cpu.cfs_period_us": "100000"}, "7:memory:/x\n3:cpu,cpuacct:/x", 2),
    ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "3:cpu,cpuacct:/gone", 6),
])  # fmt: skip
def test_cores_are_those_that_may_be_used(
    files: dict[str, str], own: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text(own + "\n")
    assert usable_cores(tmp_path, tmp_path / "own") == cores
    assert usable_cores(tmp_path, tmp_path / "nowhere") == 6
