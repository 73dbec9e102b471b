"""When something is due."""

import pytest

from everydream.training import cadence
from everydream.training.cadence import SaveCadence
from everydream.training.settings import CheckpointSettings
from everydream.types import Progress


def test_by_minutes_and_the_clock_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(cadence.time, "monotonic", lambda: now[0])
    saves = SaveCadence(CheckpointSettings(every_epochs=None, every_minutes=2.0))
    seen = []
    for step in range(1, 8):
        now[0] += 50.0
        seen.append(saves.due(Progress(step=step), False, saves.is_time())[1])
        if seen[-1]:
            saves.restart()
    assert seen == [False, False, True, False, False, True, False]


def test_by_steps_and_by_epochs_from_one_on() -> None:
    due = SaveCadence(CheckpointSettings(every_steps=3, every_epochs=2, from_epoch=3, every_minutes=None)).due
    assert [due(Progress(step=step), False) for step in (1, 2, 3)] == [(False, False), (False, False), (True, True)]
    ends = [due(Progress(step=10, epoch=epoch), True) for epoch in (1, 2, 3, 4)]
    assert ends == [(False, False), (True, False), (False, False), (True, True)]
