"""A launch finds the run that it began, and no other one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everydream.errors import ConfigError
from everydream.training.launch import Launch
from everydream.training.runs import create_run, launch_id, restarted
from everydream.training.settings import TrainSettings


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")


def saved(folder: Path) -> Path:
    path = folder / "checkpoints" / "last.ckpt"
    path.write_bytes(b"")
    return path


def test_its_own_run_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert restarted(tmp_path, "cat", None) is None
    ours = create_run(tmp_path, "cat")
    assert restarted(tmp_path, "cat", None) is None, "nothing is saved yet"
    last = saved(ours)
    assert restarted(tmp_path, "cat", None) == last == restarted(tmp_path, "cat", "auto")
    assert restarted(tmp_path, "dog", None) is None
    for other in ("another job", ""):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", other)
        assert restarted(tmp_path, "cat", None) is None
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    saved(create_run(tmp_path, "cat"))
    assert restarted(tmp_path, "cat", None) is None


def test_what_the_command_says_to_go_on_with_counts_until_it_is_done(tmp_path: Path) -> None:
    """A checkpoint that was moved here begins a run; a restart goes on with that. Another one is another wish."""
    elsewhere = tmp_path / "moved.ckpt"
    last = saved(create_run(tmp_path, "cat", elsewhere))
    assert restarted(tmp_path, "cat", str(elsewhere)) == last
    assert restarted(tmp_path, "cat", os.path.relpath(elsewhere)) == last
    assert restarted(tmp_path, "cat", str(tmp_path / "another.ckpt")) is None
    assert restarted(tmp_path, "cat", None) is None


def test_a_marker_that_was_cut_short_is_nobodys(tmp_path: Path) -> None:
    for content in ("", "{", "[]"):
        (broken := create_run(tmp_path, "cat")).joinpath("run.json").write_text(content)
        saved(broken)
    last = saved(create_run(tmp_path, "cat"))
    assert restarted(tmp_path, "cat", None) == last


def test_without_a_name_a_launch_is_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of processes come again, in containers each time."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    mine = launch_id()
    assert mine is not None and mine == launch_id() and str(os.getppid()) in mine
    code = "from everydream.training.runs import launch_id; print(launch_id())"
    outcomes = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(outcomes) == 1 and mine not in outcomes.pop()
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"On several machines torchrun needs --rdzv-id, any name"):
        launch_id()


def test_processes_that_do_not_agree_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(TrainSettings(precision="fp32"), [], 0)
    launch.require_same("what to go on with", "/runs/a")
    monkeypatch.setattr(launch, "gather", lambda item: [item, None])
    with pytest.raises(ConfigError, match=r"do not agree on what to go on with: '/runs/a', None\. Do all machines"):
        launch.require_same("what to go on with", "/runs/a")
