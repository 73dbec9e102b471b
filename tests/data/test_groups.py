"""Groups: images that are drawn as one and take turns."""

from dataclasses import replace

import numpy as np
import pytest
from data.synthetic import make_index, sources
from data.tables import table_after
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from everydream.data.buckets import Buckets
from everydream.data.mix import make_mix
from everydream.data.plan import count_steps, plan_epoch
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.types import Index

AMOUNTS = [{"repeats": 1.0}, {"repeats": 2.0}, {"repeats": 0.3}, {"repeats": 2.7}, {"choose": 7}]


def grouped(per_source: list[int], groups: dict[int, str], multipliers: np.ndarray | None = None) -> Index:
    return replace(make_index(per_source, multipliers=multipliers), groups=groups)


def look(root, **files):
    for name, text in files.items():
        stem = name.replace("__", "/")
        (root / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / f"{stem}.png")
        if text:
            (root / f"{stem}.yaml").write_text(text)
    return scan(DataSettings(sources=[SourceSettings(path=str(root))]), CaptionSettings())


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["", "", "a", "b", "c"]), min_size=1, max_size=30),
    st.sampled_from(AMOUNTS),
    st.integers(0, 5),
)
def test_a_group_is_drawn_as_one_image_and_its_members_take_turns(
    names: list[str], amount: dict[str, float], seed: int
) -> None:
    groups = {record: name for record, name in enumerate(names) if name}
    units = [record for record, name in enumerate(names) if not name or name not in names[:record]]
    index, alone = grouped([len(names)], groups), make_index([len(units)])
    mix, reference = make_mix(index, sources(amount), seed), make_mix(alone, sources(amount), seed)
    unit_of = [units.index(r if not names[r] else names.index(names[r])) for r in range(len(names))]
    total = np.zeros(len(index), np.int64)
    for epoch in range(25):
        now = mix.counts(epoch)
        assert np.array_equal(np.bincount(unit_of, now, len(units)), reference.counts(epoch))
        total += now
        assert (now >= 0).all()
        for unit in range(len(units)):
            members = total[np.array(unit_of) == unit]
            assert members.max() - members.min() <= 1, "never more than a visit apart"
            assert (np.diff(members) <= 0).all(), "in the order of their paths"
    np.testing.assert_allclose(np.bincount(unit_of, mix.mean_counts(), len(units)), reference.mean_counts())


def test_the_example_of_the_documentation() -> None:
    rows = table_after("Example, with `repeats: 1`:")
    mix = make_mix(grouped([3], {1: "b", 2: "b"}), sources({"repeats": 1.0}), 1)
    drawn = np.stack([mix.counts(epoch) for epoch in range(4)], 1)
    assert [[int(count) for count in row[1].split(", ")] for row in rows] == drawn.tolist()


def test_a_plan_and_its_number_of_steps_agree_with_the_groups() -> None:
    index = grouped([40, 10], {record: f"g{record % 3}" for record in range(5, 30)})
    mix = make_mix(index, sources({"repeats": 1.5}, {"share": 0.4}), 3)
    buckets = Buckets(((512, 512),))
    for epoch in range(6):
        plan = plan_epoch(index, mix, buckets, seed=3, epoch=epoch, batch_size=3, accumulation=2)
        assert np.array_equal(np.bincount(plan.record_K, minlength=50), mix.counts(epoch))
        assert plan.num_steps == count_steps(index, mix, buckets, seed=0, epoch=epoch, batch_size=3, accumulation=2)
        visits = sorted(zip(plan.record_K.tolist(), plan.nth_K.tolist(), strict=True))
        assert visits == [(record, nth) for record, num in enumerate(mix.counts(epoch)) for nth in range(num)]


def test_the_first_member_says_how_often() -> None:
    mix = make_mix(grouped([4], {1: "g", 3: "g"}, np.array([1.0, 3.0, 1.0, 50.0])), sources({"repeats": 2.0}), 1)
    assert [int(mix.counts(epoch)[[1, 3]].sum()) for epoch in range(3)] == [6, 6, 6]
    assert mix.counts(0).tolist() == [2, 3, 2, 3]


def test_equal_names_in_two_sources_are_two_groups() -> None:
    mix = make_mix(grouped([2, 2], dict.fromkeys(range(4), "g")), sources({"repeats": 1.0}, {"repeats": 1.0}), 1)
    assert mix.counts(0).tolist() == [1, 0, 1, 0] and mix.counts(1).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("held_out", "totals"), [([0], [0, 6, 6, 12]), ([1], [6, 0, 6, 12]), ([0, 1, 2], [0, 0, 0, 12])]
)
def test_what_is_held_out_leaves_its_group_to_the_others(held_out: list[int], totals: list[int]) -> None:
    mix = make_mix(grouped([4], dict.fromkeys(range(3), "g")), sources({"repeats": 1.0}), 1, held_out)
    assert sum(mix.counts(epoch) for epoch in range(12)).tolist() == totals  # type: ignore[union-attr]
    assert (mix.mean_counts()[held_out] == 0).all()


def test_a_million_images_in_groups() -> None:
    num = 1_000_000
    index = grouped([num], dict(enumerate(str(record // 4) for record in range(num))))
    mix = make_mix(index, sources({"repeats": 1.0}), 1)
    counts = mix.counts(2)
    assert counts.sum() == num // 4 and np.array_equal(np.flatnonzero(counts), np.arange(2, num, 4))


def test_settings_say_what_is_in_a_group(tmp_path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "global.yaml").write_text("group: clip 1")
    index = look(tmp_path, a="group: 1", b="group: '1'", c="", clip__d="", clip__e="group: other", clip__deep__f="")
    assert index.paths == ["a.png", "b.png", "c.png", "clip/d.png", "clip/deep/f.png", "clip/e.png"]
    assert index.groups == {0: "1", 1: "1", 3: "clip 1", 4: "clip 1", 5: "other"} and not index.warnings


def test_members_that_disagree_are_warned_of(tmp_path) -> None:
    index = look(tmp_path, a="group: g\nmultiply: 2", b="group: g\nmultiply: 2", c="group: g", d="")
    assert index.warnings == {
        2: ['repeats 1 is not used: its group "g" is drawn as often as its first image, a.png, which has 2']
    }


def test_the_digest_knows_the_group_and_is_the_old_one_without(tmp_path) -> None:
    seen = [int(look(tmp_path, a=text).digest_N[0]) for text in ("", "group: g", "group: h")]
    assert len(set(seen)) == 3
    Image.new("RGB", (8, 8)).save(tmp_path / "a.bmp")  # not compressed: the same bytes with every version of Pillow
    (tmp_path / "a.yaml").unlink()
    assert look(tmp_path).digest_N.tolist()[0] == DIGEST_BEFORE_GROUPS, "older checkpoints go on"


DIGEST_BEFORE_GROUPS = 6182499198479927426
