"""Which point is the best and when a run stops; how often is measured; bleeding as a number."""

import pytest
import torch

from everydream.evaluation.bleeding import bleeding
from everydream.evaluation.cadence import epochs_between, passes
from everydream.evaluation.judging import BLED, FORGOTTEN, LEARNED, Decision, Judge, best_of, points_of


def look(validation: float, preservation: float | None = None, bleed: float | None = None) -> dict[str, float]:
    numbers = {"validation/coarse_change": validation}
    if preservation is not None:
        numbers["preservation/coarse_change"] = preservation
    return numbers | ({} if bleed is None else {"control/bleed": bleed})


def decisions(judge: Judge, looks: list[dict[str, float]]) -> list[Decision]:
    found = []
    for number, numbers in enumerate(looks):
        judge.note(10 * number, numbers)
        found.append(judge.decide(10 * number))
    return found


def test_the_latest_within_a_twentieth_of_what_was_won_is_the_best_and_patience_ends_a_run() -> None:
    judge = Judge(patience=2)
    found = decisions(judge, [look(x) for x in (0.0, -0.1, -0.2, -0.191, -0.189, -0.195, -0.1, -0.17, -0.192)])
    assert [decision.is_best for decision in found] == [False, True, True, True, False, True, False, False, True]
    assert [decision.stop for decision in found] == [False] * 7 + [True, False]
    best = best_of(points_of(judge.history))
    assert best is not None and best.step == 80, "a twentieth of 0.2 is 0.01"
    assert not any(decision.stop for decision in decisions(Judge(None), [look(0.0), *[look(0.1)] * 9]))


def test_where_nothing_was_won_the_least_bad_is_the_best() -> None:
    judge = Judge(patience=2)
    found = decisions(judge, [look(0.0), look(0.2), look(0.1), look(0.105), look(0.1)])
    assert [decision.is_best for decision in found] == [False, True, True, False, False]
    assert found[-1].stop


def test_forgetting_and_bleeding_count_and_keeping_earns_nothing() -> None:
    judge = Judge(None)
    decisions(judge, [look(0.0, 0.0, 0.0), look(-0.1, 0.0, 0.0), look(-0.2, 0.03, 0.4), look(-0.15, -0.1, -0.5)])
    costs = [point.cost for point in points_of(judge.history)]
    assert costs == pytest.approx([0.0, -0.1, -0.2 + 0.1, -0.15])
    best = best_of(points_of(judge.history))
    assert best is not None and best.step == 30


def test_a_point_is_where_all_was_measured() -> None:
    judge = Judge(None, {LEARNED, FORGOTTEN, BLED})
    judge.note(0, look(0.0, 0.0, 0.0))
    judge.note(5, {"control/bleed": 0.8})
    judge.note(10, look(-0.1))
    judge.note(15, {"moved/unet": 0.1})
    judge.note(20, look(-0.05, 0.01, 0.1))
    assert [point.step for point in points_of(judge.history)] == [0, 20], "a failed monitor makes no step a better one"
    assert judge.decide(10) == Decision(False, False) and judge.decide(20) == Decision(True, False)
    again = Judge(None, {LEARNED, FORGOTTEN, BLED})
    again.load_state_dict(judge.state_dict(20))
    assert again == judge and best_of([]) is None
    assert list(judge.state_dict(12)) == ["0", "5", "10"], "of steps that are taken back nothing is remembered"
    without = Judge(2, {LEARNED})
    without.load_state_dict(judge.state_dict(20))
    rest = [(30, -0.02), (40, -0.01), (50, 0.0)]
    for step, change in rest:
        without.note(step, look(change))
    assert [without.decide(step).stop for step, _ in rest] == [True, True, True], "what is off now is not waited for"


def test_measuring_takes_a_twentieth_of_the_passes() -> None:
    assert passes(8, 4) == 72
    for cost, draws in ((48, 100.0), (48, 10_000.0), (480, 60.0)):
        epochs = epochs_between(cost, draws)
        assert cost <= 0.05 * 4 * draws * epochs
        assert epochs == 1 or cost > 0.05 * 4 * draws * (epochs - 1)


def rows(*angles: float) -> torch.Tensor:
    """Return unit vectors of a plane."""
    angle = torch.tensor(angles)
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_bleeding_is_nothing_where_pictures_stay_and_all_where_they_become_training_images() -> None:
    training, base = rows(0.0, 0.1, -0.1, 0.05), rows(3.0, 3.1, 3.3, 3.2)
    still = bleeding(base, base, training)
    assert still.bleed_N.abs().max() < 1e-6 and still.moved_N.abs().max() < 1e-6
    gone = bleeding(training, base, training)
    assert gone.bleed_N.min() > 0.95 and gone.moved_N.min() > 1.5
    half = bleeding(rows(1.5, 1.5, 1.5, 1.5), base, training)
    assert 0.2 < half.bleed_N.mean() < 0.8
    away = bleeding(rows(3.6, 3.6, 3.6, 3.6), base, training)
    assert away.bleed_N.mean() < 0.1 and away.moved_N.mean() > 0.01, "it moved, and not towards them"
    one = bleeding(base, base, training[:1])
    assert torch.isfinite(one.bleed_N).all()
