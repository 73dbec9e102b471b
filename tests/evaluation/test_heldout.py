"""Which images are held out: stable, spread over the ground truth, at most half of it, and never drawn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_images
from data.synthetic import make_index
from hypothesis import given, settings
from hypothesis import strategies as st

from everydream.config import load_config
from everydream.data.mix import make_mix
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.errors import ConfigError, DataError
from everydream.evaluation.heldout import (
    Measured,
    hold_out,
    most_held_out,
    require_enough,
    shared_with_training,
    watched_images,
)
from everydream.evaluation.settings import PreservationSettings
from everydream.plan import plan_run
from everydream.types import Index

Sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def roles(num: int, training: int = 1) -> list[SourceSettings]:
    """Return so many training sources by repeats, then ground truth by share."""
    sources = [SourceSettings(path=f"t{n}", repeats=2.0) for n in range(training)]
    return sources + [SourceSettings(path=f"g{n}", share=0.4 / num, role="ground_truth") for n in range(num)]


@settings(max_examples=150, deadline=None)
@given(Sizes, st.integers(0, 100), st.integers(0, 9))
def test_as_many_as_asked_in_proportion_and_at_most_half_of_each(per_source: list[int], wanted: int, seed: int) -> None:
    index, sources = make_index([7, *per_source]), roles(len(per_source))
    chosen = hold_out(index, sources, "ground_truth", wanted, seed)
    counts = [int((index.source_N[chosen] == number).sum()) for number in range(1 + len(per_source))]
    most = [0, *(size // 2 for size in per_source)]
    assert most_held_out(index, sources, "ground_truth") == most
    assert len(set(chosen.tolist())) == len(chosen) == min(wanted, sum(most))
    assert all(count <= limit for count, limit in zip(counts, most, strict=True))
    for count, limit in zip(counts, most, strict=True):
        assert abs(count - len(chosen) * limit / max(sum(most), 1)) < 2


@settings(max_examples=150, deadline=None)
@given(Sizes.filter(lambda sizes: max(sizes) > 1), st.integers(1, 60), st.integers(0, 5))
def test_what_is_held_out_is_never_drawn_and_the_shares_stay_exact(
    per_source: list[int], wanted: int, seed: int
) -> None:
    index, sources = make_index([9, *per_source]), roles(len(per_source))
    held_out = hold_out(index, sources, "ground_truth", wanted, seed)
    mix = make_mix(index, sources, seed, held_out)
    total = np.zeros(len(index), np.int64)
    for epoch in range(60):
        total += mix.counts(epoch)
    assert total[held_out].sum() == 0 and (mix.mean_counts()[held_out] == 0).all()
    there = [size for size in per_source if size]
    share = 0.4 / len(per_source)
    # 18 draws by repeats make up what the shares leave; each share is exact over the epochs to half a draw.
    all_draws = 18 * 60 / (1 - share * len(there))
    for number, size in enumerate(per_source, 1):
        mine = index.source_N == number
        assert abs(int(total[mine].sum()) - (share * all_draws if size else 0)) <= 0.5 + 1e-6
        rest = total[mine & ~np.isin(np.arange(len(index)), held_out)]
        assert not len(rest) or rest.max() - rest.min() <= 1, "the rest is drawn in turn"


def test_crops_of_one_photo_are_not_held_out_from_one_another() -> None:
    index = replace(make_index([3, 10]), groups=dict.fromkeys(range(3, 11), "photo"))
    assert most_held_out(index, roles(1), "ground_truth") == [0, 2], "two stand alone"
    assert hold_out(index, roles(1), "ground_truth", 5, 0).tolist() == [11, 12]


def test_the_choice_is_by_key_and_seed_and_not_by_order() -> None:
    index, sources = make_index([4, 30]), roles(1)
    chosen = {index.key(int(record)) for record in hold_out(index, sources, "ground_truth", 8, 1)}
    backwards = replace(index, paths=[*index.paths[:4], *index.paths[:3:-1]])
    assert {backwards.key(int(record)) for record in hold_out(backwards, sources, "ground_truth", 8, 1)} == chosen
    assert {index.key(int(record)) for record in hold_out(index, sources, "ground_truth", 8, 2)} != chosen
    assert {index.key(int(record)) for record in hold_out(index, sources, "ground_truth", 9, 1)} > chosen, (
        "one more is one more"
    )


def test_another_image_moves_one_at_most() -> None:
    sources = roles(1)
    before, after = make_index([4, 30]), make_index([4, 31])
    kept = {before.key(int(record)) for record in hold_out(before, sources, "ground_truth", 10, 1)}
    assert len(kept & {after.key(int(record)) for record in hold_out(after, sources, "ground_truth", 10, 1)}) >= 9


def test_more_than_half_is_refused_with_what_to_do() -> None:
    index, sources = make_index([20, 9, 5]), roles(2)
    require(index, sources, 6)
    with pytest.raises(ConfigError, match=r"preservation\.images: 7 images cannot be held out.*here 6 in all"):
        require(index, sources, 7)
    require_enough(index, sources, {"preservation": PreservationSettings(images=7, path="elsewhere")}, {})


def require(
    index: Index, sources: list[SourceSettings], images: int, kin: Sequence[Sequence[int]] = (), seed: int = 0
) -> None:
    wanted = {"preservation": PreservationSettings(images=images)}
    watched = watched_images(index, wanted, DataSettings(sources=sources), CaptionSettings(), seed, kin)
    require_enough(index, sources, wanted, watched, kin)


@pytest.fixture
def scanned(tmp_path: Path) -> Callable[..., tuple[Index, DataSettings]]:
    """Return a function that looks at a folder of ground truth with everything random switched on."""
    from everydream.data.scan import scan

    def look(**changed: object) -> tuple[Index, DataSettings]:
        if not (tmp_path / "real").exists():
            make_images(tmp_path / "real", 12, ((96, 64), (64, 96), (300, 64)))
            (tmp_path / "real" / "a picture of thing 3_(1).txt").write_text("first, of two\nsecond, of two\n")
        source = SourceSettings(path=str(tmp_path / "real"), role="ground_truth", lines="choose", shuffle_tags=True)
        data = DataSettings(sources=[source], resolution=64, bucket_step=16, flip_p=0.5, **changed)  # type: ignore[arg-type]
        return scan(data, CaptionSettings(dropout=0.5)), data

    return look


def test_sets_that_are_held_out_together_are_not_passed_over_in_silence() -> None:
    """Five pairs of twins: one image cannot be had, two can; what fits no source's share comes from another."""
    index = make_index([3, 10])
    pairs = [[n, n + 1] for n in range(3, 13, 2)]
    assert not len(hold_out(index, roles(1), "ground_truth", 1, 0, pairs))
    with pytest.raises(ConfigError, match=r"images: 1 are fewer than the smallest set of images that show the same"):
        require(index, roles(1), 1, pairs)
    assert any(hold_out(index, roles(1), "ground_truth", 2, 0, pairs).tolist() == pair for pair in pairs)
    two = make_index([2, 6, 6])
    alone = [[n, n + 1] for n in range(2, 8, 2)]
    assert len(hold_out(two, roles(2), "ground_truth", 5, 0, alone)) == 5


def preserved(index: Index, settings: PreservationSettings, data: DataSettings, seed: int) -> Measured | None:
    return watched_images(index, {"preservation": settings}, data, CaptionSettings(), seed).get("preservation")


def test_nothing_is_left_to_chance(scanned: Callable[..., tuple[Index, DataSettings]]) -> None:
    index, data = scanned()
    found = preserved(index, PreservationSettings(images=6), data, 1)
    assert found is not None and len(found.index) == 6 and found.held_out.tolist() == sorted(found.held_out)
    for column in (found.index.dropout_N, found.index.flip_p_N, found.index.shuffle_tags_N):
        assert not column.any()
    for number, record in enumerate(found.held_out.tolist()):
        assert found.index.key(number) == index.key(record)
        assert found.index.captions[number] == index.captions[index.caption_offsets[record]]
        assert found.index.width_N[number] == index.width_N[record]
    assert len(found.index.captions) == 6 and {w > h for w, h in found.sizes()} == {True, False}
    assert preserved(index, PreservationSettings(), data, 1) is None


def test_an_identity_tells_what_is_measured(scanned: Callable[..., tuple[Index, DataSettings]]) -> None:
    """A base is compared with only as long as image, bucket, seed and noise levels are the same."""
    index, data = scanned()

    def identities(seed: int = 1, timesteps: int = 4, index: Index = index, data: DataSettings = data) -> set[int]:
        found = preserved(index, PreservationSettings(images=4, timesteps=timesteps), data, seed)
        assert found is not None
        return set(found.identities)

    assert identities() == identities() and len(identities()) == 4
    bigger = scanned(background="#000000")
    for other in (
        identities(timesteps=5),
        identities(index=replace(index, digest_N=index.digest_N + np.uint64(1))),
        identities(data=data.model_copy(update={"resolution": 128})),
        identities(index=bigger[0], data=bigger[1]),
    ):
        assert not identities() & other
    assert all(0 <= identity < 2**63 for identity in identities()), "as last.ckpt holds them"


def test_a_folder_of_its_own(scanned: Callable[..., tuple[Index, DataSettings]], tmp_path: Path) -> None:
    index, data = scanned()
    make_images(tmp_path / "own", 5)
    (tmp_path / "own" / "broken.png").write_bytes(b"no")

    def measured(images: int, path: Path = tmp_path / "own") -> list[str]:
        settings = PreservationSettings(images=images, path=str(path))
        found = preserved(index, settings, data, 1)
        assert found is not None and not len(found.held_out)
        return [found.index.key(number) for number in range(len(found.index))]

    assert len(measured(99)) == 5 and len(measured(2)) == 2 and set(measured(2)) < set(measured(3))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"preservation\.path: no usable image in .*none"):
        measured(2, tmp_path / "none")
    with pytest.raises(DataError, match=r"preservation\.path: .* is a file, not a folder"):
        measured(2, next((tmp_path / "own").glob("a*.png")))


def test_a_plan_holds_out_what_it_says(project: Callable[..., Path], tmp_path: Path) -> None:
    planned = plan_run(load_config(project(preservation={"images": 2})))
    held_out = set(planned.watched["preservation"].held_out.tolist())
    assert len(held_out) == 2 and all(planned.index.key(record).startswith("real/") for record in held_out)
    drawn: set[int] = set()
    for epoch in range(12):
        plan = planned.epoch(epoch)
        of_truth = planned.index.source_N[plan.record_K] == 1
        assert (len(plan.record_K), int(of_truth.sum())) == (16, 4), "a quarter, of the three images that are left"
        drawn |= set(plan.record_K.tolist())
    assert drawn == set(range(11)) - held_out


def test_files_in_both_roles_are_noticed(project: Callable[..., Path], tmp_path: Path) -> None:
    apart = load_config(project())
    assert shared_with_training(plan_run(apart).index, apart.data.sources) == []
    make_images(tmp_path / "mine" / "part", 2)
    sources = [
        {"path": str(tmp_path / "mine")},
        {"path": str(tmp_path / "mine" / "part"), "share": 0.2, "role": "ground_truth"},
        {"path": str(tmp_path / "real"), "share": 0.2, "role": "ground_truth"},
    ]
    found = load_config(project(data={"sources": sources}))
    assert shared_with_training(plan_run(found).index, found.data.sources) == [(0, 1, 2)]
