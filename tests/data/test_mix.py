"""Shares and repeats, exact."""

from fractions import Fraction

import numpy as np
import pytest
from data.synthetic import make_index, sources
from hypothesis import given, settings
from hypothesis import strategies as st

from everydream.data.mix import apportion, fair_counts, make_mix


def counts(
    per_source: list[int], *amounts: dict[str, float], epochs: int = 1, multipliers: np.ndarray | None = None
) -> np.ndarray:
    mix = make_mix(make_index(per_source, multipliers=multipliers), sources(*amounts), seed=1)
    return np.stack([mix.counts(epoch) for epoch in range(epochs)])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=30), st.integers(1, 12))
def test_a_fair_sequence_is_exact_monotone_and_near_its_quota(weights: list[int], stride: int) -> None:
    w = np.array(weights, dtype=np.int64)
    before = np.zeros(len(w), np.int64)
    for slots in range(0, 40 * stride, stride):
        now = fair_counts(w, slots)
        assert now.sum() == (slots if w.sum() else 0)
        assert (now >= before).all()
        if w.sum():
            assert (abs(now - slots * w / w.sum()) < 2).all()
        before = now


def test_apportion_favours_nobody_at_equal_weight() -> None:
    assert apportion([1, 1, 1], 7) == [3, 2, 2]
    assert apportion([0, 3, 1], 8) == [0, 6, 2]
    assert apportion([], 5) == []
    assert apportion([0], 5) == [0]


def test_whole_repeats_are_exact_for_every_image() -> None:
    assert (counts([7], {"repeats": 3.0}, epochs=3) == 3).all()


def test_ten_images_at_a_tenth_are_one_draw_and_each_gets_its_turn() -> None:
    """Defect 16: elsewhere 10 images x 0.1 give 0, and the front of the list is favoured."""
    by_epoch = counts([10], {"repeats": 0.1}, epochs=20)
    assert by_epoch.sum(1).tolist() == [1] * 20
    assert (by_epoch[:10].sum(0) == 1).all() and (by_epoch[10:].sum(0) == 1).all()


def test_two_point_nine_repeats_mean_two_point_nine() -> None:
    """Defect 17: elsewhere 2.9 means 2."""
    by_epoch = counts([10], {"repeats": 2.9}, epochs=10)
    assert set(by_epoch.ravel().tolist()) == {2, 3}
    assert by_epoch.sum(1).tolist() == [29] * 10
    assert (by_epoch.sum(0) == 29).all()


def test_half_draws_add_up_over_epochs() -> None:
    assert counts([5], {"repeats": 0.5}, epochs=4).sum(1).tolist() in ([3, 2, 3, 2], [2, 3, 2, 3])


def test_folder_multipliers_count_inside_their_source() -> None:
    multipliers = np.array([1.0, 1.0, 2.0, 0.5, 0.5])
    by_epoch = counts([5], {"repeats": 2.0}, epochs=6, multipliers=multipliers)
    assert (by_epoch == np.array([2, 2, 4, 1, 1])).all()


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.5, 0.9])
def test_a_share_is_that_share_of_all_draws(share: float) -> None:
    by_epoch = counts([40, 30], {"repeats": 3.0}, {"share": share}, epochs=30)
    mine, theirs = by_epoch[:, :40].sum(), by_epoch[:, 40:].sum()
    assert abs(theirs - share * (mine + theirs)) < 1
    assert (abs(by_epoch[:, 40:].sum(1) - 120 * share / (1 - share)) <= 1).all()


def test_a_shared_source_rotates_through_all_its_images() -> None:
    by_epoch = counts([10, 100], {"repeats": 1.0}, {"share": 0.5}, epochs=10)
    assert (by_epoch[:, 10:].sum(1) == 10).all()
    assert (by_epoch[:, 10:].sum(0) == 1).all()


def test_choose_is_a_number_of_draws_whatever_the_size() -> None:
    by_epoch = counts([3, 50], {"choose": 8}, {"choose": 7}, epochs=5)
    assert (by_epoch[:, :3].sum(1) == 8).all() and (by_epoch[:, 3:].sum(1) == 7).all()


def test_several_shares_and_an_empty_source() -> None:
    by_epoch = counts([60, 20, 20], {"repeats": 1.0}, {"share": 0.2}, {"share": 0.2})
    assert [int(part.sum()) for part in np.split(by_epoch[0], [60, 80])] == [60, 20, 20]
    assert counts([60, 0], {"repeats": 1.0}, {"share": 0.5}).sum() == 60


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 25), min_size=1, max_size=4),
    st.lists(st.floats(0.01, 5.0).map(lambda x: round(x, 3)), min_size=4, max_size=4),
    st.integers(0, 10),
)
def test_no_repeats_ever_drift(per_source: list[int], repeats: list[float], seed: int) -> None:
    index = make_index(per_source)
    mix = make_mix(index, sources(*({"repeats": r} for r in repeats[: len(per_source)])), seed)
    total = np.zeros(len(index), np.int64)
    for epoch in range(12):
        now = mix.counts(epoch)
        total += now
        for source, r in enumerate(repeats[: len(per_source)]):
            mine = index.source_N == source
            exact = Fraction(round(r * 1e6), 10**6) * per_source[source] * (epoch + 1)
            assert abs(total[mine].sum() - exact) <= Fraction(1, 2)
            assert set(now[mine].tolist()) <= {int(r), int(r) + 1}
            assert (abs(total[mine] - r * (epoch + 1)) < 1.5).all()
    np.testing.assert_allclose(mix.mean_counts(), [repeats[s] for s in index.source_N], atol=1e-6)
