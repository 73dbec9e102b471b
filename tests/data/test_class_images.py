"""Class images: exactly one draw for each of the images that they pair with, and what sources must say for it."""

import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from data.synthetic import make_index
from data.tables import table_after
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from everydream.data.mix import make_mix
from everydream.data.pairing import partners_of, source_problems
from everydream.data.scan import require_usable, scan, source_warnings
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.errors import DataError


def source(name: str, **given: object) -> SourceSettings:
    return SourceSettings(path=name, name=name, **given)  # type: ignore[arg-type]


def class_source(name: str, **given: object) -> SourceSettings:
    return source(name, role="class", **given)


def drawn(per_source: list[int], sources: list[SourceSettings], epochs: int = 12, **more: object) -> np.ndarray:
    """Return the draws of each record in each epoch; sources are called as the index calls them: s0, s1, ..."""
    mix = make_mix(make_index(per_source, **more), sources, 1)  # type: ignore[arg-type]
    by_epoch = np.stack([mix.counts(epoch) for epoch in range(epochs)])
    np.testing.assert_allclose(by_epoch.mean(0), mix.mean_counts(), atol=2 / epochs + 1e-9)
    return by_epoch


def totals(by_epoch: np.ndarray, per_source: list[int]) -> np.ndarray:
    """Return the draws of each source in each epoch."""
    return np.stack([part.sum(1) for part in np.split(by_epoch, np.cumsum(per_source)[:-1], 1)], 1)


def in_turn(visits: np.ndarray) -> bool:
    return int(visits.max() - visits.min()) <= 1


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=3),
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.7, 10.0]), min_size=3, max_size=3),
)
def test_as_many_in_every_epoch_as_of_all_it_pairs_with_in_turn(
    training: list[int], class_images: list[int], repeats: list[float]
) -> None:
    per_source = [*training, *class_images]
    sources = [source(f"s{n}", repeats=repeats[n]) for n in range(len(training))]
    sources += [class_source(f"s{len(training) + n}") for n in range(len(class_images))]
    by_epoch = drawn(per_source, sources)
    each = totals(by_epoch, per_source)
    assert np.array_equal(each[:, : len(training)].sum(1), each[:, len(training) :].sum(1))
    so_far = each.cumsum(0)
    for number, size in enumerate(class_images, len(training)):
        due = so_far[:, len(training) :].sum(1) * size / sum(class_images)
        assert (abs(so_far[:, number] - due) < 1.5).all(), "in proportion to their images"
        first = sum(per_source[:number])
        for epoch in range(len(each)):
            assert in_turn(by_epoch[: epoch + 1, first : first + size].sum(0))


def test_training_is_drawn_as_without_class_images() -> None:
    alone = drawn([5, 3], [source("s0", repeats=1.7), source("s1", choose=4)])
    paired = drawn([5, 3, 7], [source("s0", repeats=1.7), source("s1", choose=4), class_source("s2")])
    assert np.array_equal(paired[:, :8], alone)


@pytest.mark.parametrize(
    ("training", "class_images", "draws"),
    table_after("- **`loss_scale`** left out means the weight of prior preservation."),
)
def test_every_case_of_the_documentation(training: str, class_images: str, draws: str) -> None:
    first = int(training.split(maxsplit=1)[0])
    repeats = float(found[1]) if (found := re.search(r"`repeats: ([\d.]+)`", training)) else 1.0
    sources = [source("s0", repeats=repeats)]
    per_source = [first]
    if "ground truth" in training:
        sources.append(source("s1", role="ground_truth", share=0.5))
        per_source.append(6)
    elif found := re.search(r"and (\d+) images", training):
        sources.append(source("s1"))
        per_source.append(int(found[1]))
    pairs_with = ["s0"] if "the first alone" in class_images else None
    for size in map(int, re.findall(r"\d+", class_images)):
        sources.append(class_source(f"s{len(sources)}", pairs_with=pairs_with))
        per_source.append(size)
    by_epoch = drawn(per_source, sources, epochs=15)
    each = totals(by_epoch, per_source)
    match draws:
        case "40 of each; all 200 in 5 epochs":
            assert (each == 40).all() and (by_epoch[:5, 4:].sum(0) == 1).all()
        case "40 of each: 5 or 6 an image":
            assert (each == 40).all() and set(by_epoch[:, 4:].ravel().tolist()) == {5, 6}
        case "1 or 2 of each, the same number in every epoch":
            assert (each[:, 0] == each[:, 1]).all() and set(each.ravel().tolist()) == {1, 2}
        case "40, and 30 + 10":
            assert (each == [40, 30, 10]).all()
        case "4 and 6, and 4":
            assert (each == [4, 6, 4]).all()
        case "4, 8 of ground truth, and 4":
            assert (each == [4, 8, 4]).all()
        case _:
            raise AssertionError(f"not tested: {draws}")


def test_each_pool_draws_for_itself() -> None:
    sources = [source("s0", repeats=2.0), source("s1", repeats=3.0), class_source("s2", pairs_with=["s0"]),
               class_source("s3"), class_source("s4", pairs_with=["s1", "s0"])]  # fmt: skip
    each = totals(drawn([4, 5, 6, 30, 16], sources), [4, 5, 6, 30, 16])
    assert (each[:, :3] == [8, 15, 8]).all()
    assert (each[:, 3:].sum(1) == 23).all(), "null and both names are the same set, and share its draws"
    assert each[:, 3].sum() == round(12 * 23 * 30 / 46)


def test_a_class_source_may_come_first() -> None:
    sources = [class_source("s0"), source("s1", repeats=3.0)]
    assert (totals(drawn([7, 2], sources), [7, 2]) == 6).all()


@pytest.mark.parametrize(("given", "draws"), [({"repeats": 3.0}, 21), ({"choose": 5}, 5), ({"share": 0.5}, 8)])
def test_an_amount_of_its_own_wins(given: dict[str, float], draws: int) -> None:
    each = totals(drawn([4, 7], [source("s0", repeats=2.0), class_source("s1", **given)]), [4, 7])
    assert (each == [8, draws]).all()


def test_folder_multipliers_set_the_proportions_inside() -> None:
    multipliers = np.array([1.0] * 6 + [3.0, 1.0, 1.0, 1.0])
    by_epoch = drawn([6, 4], [source("s0"), class_source("s1")], multipliers=multipliers)
    assert (by_epoch[:, 6:] == [3, 1, 1, 1]).all()


def test_a_share_that_class_images_follow_is_still_that_share() -> None:
    """8 draws by repeats; a quarter of all is training too, and as many class images as of both."""
    sources = [source("s0", repeats=2.0), source("s1", share=0.25), class_source("s2")]
    each = totals(drawn([4, 9, 50], sources, epochs=20), [4, 9, 50])
    assert (each == [8, 8, 16]).all()
    truth = [source("s0"), source("s1", role="ground_truth", share=0.2), class_source("s2", pairs_with=["s0"])]
    assert (totals(drawn([8, 9, 5], truth), [8, 9, 5]) == [8, 4, 8]).all()


@settings(max_examples=80, deadline=None)
@given(st.floats(0.01, 0.3), st.floats(0.01, 0.3), st.integers(1, 9), st.booleans())
def test_shares_stay_exact_beside_class_images(a: float, b: float, images: int, follow: bool) -> None:
    sources = [source("s0", repeats=3.0), source("s1", share=round(a, 3)),
               source("s2", share=round(b, 3), role="ground_truth"),
               class_source("s3", pairs_with=["s0", "s1"] if follow else ["s0"])]  # fmt: skip
    mix = make_mix(make_index([images, 5, 5, 5]), sources, 1)
    amounts = [part.per_epoch for part in mix.sources]
    for number, share in (1, a), (2, b):
        assert amounts[number] == Fraction(round(share, 3)).limit_denominator(10**6) * sum(amounts)
    assert amounts[3] == amounts[0] + (amounts[1] if follow else 0)


def test_groups_and_held_out_images_are_followed_too() -> None:
    index = replace(make_index([6, 4]), groups={0: "g", 1: "g", 2: "g"})
    mix = make_mix(index, [source("s0", repeats=2.0), class_source("s1")], 1, [5])
    for epoch in range(4):
        counts = mix.counts(epoch)
        assert counts[:6].sum() == counts[6:].sum() == 6 and counts[5] == 0


def test_class_sources_without_images_take_no_draws_and_no_share() -> None:
    sources = [source("s0", repeats=2.0), class_source("s1"), class_source("s2"),
               source("s3", share=0.5, role="ground_truth")]  # fmt: skip
    assert (totals(drawn([4, 0, 5, 3], sources), [4, 0, 5, 3]) == [8, 0, 8, 16]).all()
    assert (totals(drawn([4, 0, 0, 3], sources), [4, 0, 0, 3]) == [8, 0, 0, 8]).all()


# Settings


def test_partners_are_training_sources() -> None:
    sources = [source("a"), source("b", role="ground_truth"), class_source("c"), source("d"),
               class_source("e", pairs_with=["d"])]  # fmt: skip
    assert [partners_of(n, sources, "abcde") for n in (2, 4)] == [(0, 3), (3,)]
    assert source_problems(sources) == []


@pytest.mark.parametrize(("given", "message"), [
    ({"pairs_with": ["a"]}, "`pairs_with` is only used with role: class, not with role: training"),
    ({"generate": 5, "label": "x"}, "`generate` is only used with role: class"),
    ({"role": "class", "pairs_with": []}, "`pairs_with` names no source"),
    ({"role": "class", "generate": 5}, "`generate` needs a `label`"),
    ({"role": "class", "generate": 5, "label": " "}, "`generate` needs a `label`"),
    ({"role": "class", "generate": 0, "label": "x"}, "greater than or equal to 1"),
    ({"role": "class", "share": 0.5, "repeats": 1.0}, "give one of repeats, share and choose"),
])  # fmt: skip
def test_what_a_source_may_not_say(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        source("x", **given)


def test_a_label_may_be_a_prompt_alone() -> None:
    both = class_source("x", generate=5, label="a person", captions="everydream")
    assert both.caption_rule == "everydream" and class_source("x", label="a person").caption_rule == "label"


MADE = {"role": "class", "generate": 9, "label": "a person"}


@pytest.mark.parametrize(("sources", "problems"), [
    ([SourceSettings()], [r"data\.sources\.0\.path: missing\. Folder, tar shards"]),
    ([source("a"), SourceSettings(role="class")], [r"data\.sources\.1\.path: missing\. Class images need a folder"]),
    ([source("a"), SourceSettings(**MADE)], []),
    ([source("a"), SourceSettings(**MADE, captions="manifest")], [r"data\.sources\.1\.path: missing\. Folder,"]),
    ([class_source("a"), class_source("b")], [r"data\.sources: every source has role: class, so there is no subject"]),
    ([source("a", role="ground_truth"), class_source("b")],
     [r"data\.sources\.1\.role: class images are drawn along with training images, and no source has"]),
    ([source("effy"), source("dog"), class_source("c", pairs_with=["efy", "zzz"])],
     [r"data\.sources\.2\.pairs_with: 'efy' is no training source; there are 'effy', 'dog'\. Did you mean 'effy'\?",
      r"data\.sources\.2\.pairs_with: 'zzz' is no training source; there are 'effy', 'dog'\.$"]),
    ([source("a"), source("b", role="ground_truth"), class_source("c", pairs_with=["b", "c"])],
     [r"data\.sources\.2\.pairs_with: 'b' is no training source; there are 'a'\.", r"'c' is no training source"]),
    ([source("a"), class_source("c", pairs_with=["a", "a"])], [r"pairs_with: names 'a' 2 times; once is enough"]),
    ([SourceSettings(path="1/a"), SourceSettings(path="2/a"), class_source("c", pairs_with=["a"])],
     [r"data\.sources\.2\.pairs_with: 2 sources are called 'a'; give each a `name` of its own"]),
    ([source("a"), class_source("c"), SourceSettings(path="./c", role="class", name="d")],
     [r"data\.sources\.2\.path: \./c is listed as data\.sources\.1 already, for the same training sources"]),
    ([source("a"), source("b"), class_source("c", pairs_with=["a"]),
      SourceSettings(path="c", role="class", name="d", pairs_with=["b"])], []),
    ([source("a", share=0.5), class_source("c")], [r"data\.sources: all sources have a share, but for class images"]),
    ([source("a"), source("b", share=0.5), class_source("c")],
     [r"data\.sources: the shares sum to 0\.5, and class images follow 0\.5 of that .*: 1 of all draws\. Leave room"]),
    ([source("a"), source("b", share=0.5), class_source("c", pairs_with=["a"])], []),
    ([source("a"), source("b", share=0.5), class_source("c", repeats=1.0)], []),
])  # fmt: skip
def test_problems_between_sources(sources: list[SourceSettings], problems: list[str]) -> None:
    found = source_problems(sources)
    assert len(found) == len(problems), found
    assert all(re.search(wanted, line) for wanted, line in zip(problems, found, strict=True)), found


# Images


def look(sources: list[SourceSettings], **data: object):  # type: ignore[no-untyped-def]
    return scan(DataSettings(sources=sources, **data), CaptionSettings())  # type: ignore[arg-type]


def test_a_class_folder_without_an_image_is_told_and_one_still_to_be_made_is_not(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for folder in ("mine", "empty"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "a cat.png")
    mine = SourceSettings(path=str(tmp_path / "mine"))
    index = look([mine, SourceSettings(path=str(tmp_path / "empty"), role="class")])
    with pytest.raises(DataError, match=r"^data\.sources\.1: no usable image in .*empty\nPut images there or take"):
        require_usable(index)
    sources = [mine, SourceSettings(**MADE)]
    index = look(sources)
    require_usable(index, strict=True)
    assert (index.names, index.roots[1], len(index)) == (["mine", "class images"], "", 1)
    assert source_warnings(index, sources) == {}
    with pytest.raises(DataError, match=r"^No usable image in .*empty\.$"):
        require_usable(look([SourceSettings(path=str(tmp_path / "empty")), SourceSettings(**MADE)]))


def test_one_caption_for_all_class_images_is_no_surprise(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for number in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a person_{number}.png")
    for role, warned in ("training", [0]), ("class", []):
        sources = [SourceSettings(path=str(tmp_path), role=role)]  # type: ignore[arg-type]
        assert list(source_warnings(look(sources), sources)) == warned


def test_the_loss_scale_is_1_where_nothing_says_otherwise(tmp_path) -> None:  # type: ignore[no-untyped-def]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for asked, found in (None, 1.0), (0.5, 0.5), (0.0, 0.0):
        index = look([SourceSettings(path=str(tmp_path), role="class", loss_scale=asked)])
        assert index.loss_scale_N.tolist() == [found]
