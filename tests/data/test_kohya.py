"""The `kohya` rule: folders, sidecars and grammar, every case of the documentation as real files and real draws."""

import re

import pytest
from data.tables import table_after
from PIL import Image

from everydream.data.drawing import TagRules, draw_caption, longest_reading
from everydream.data.kohya import Named, parse_folder
from everydream.data.scan import require_usable, scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings

FILES = table_after("With `path: set`:")
WRITTEN = table_after("3. `;;;` keeps the parts")


def look(path, **settings):
    source = SourceSettings(path=str(path), captions="kohya", **settings)
    return scan(DataSettings(sources=[source]), CaptionSettings())


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def found_in(index):
    offsets = index.caption_offsets.tolist()
    return {
        path: (index.repeats_N[n], index.captions[offsets[n] : offsets[n + 1]]) for n, path in enumerate(index.paths)
    }


@pytest.mark.parametrize(("file", "repeats", "caption"), FILES)
def test_every_file_of_the_documentation(file, repeats, caption, tmp_path):
    path = tmp_path / re.match("`(.*?)`", file)[1]
    image(path)
    for blank in re.findall(r"(?:a blank|an empty) `(\S+)`", file):
        (path.parent / blank).write_text(" \n")
    for sidecar, text in re.findall(r'`(\S+)` "(.*?)"', file):
        (path.parent / sidecar).write_text(text)
    index = look(tmp_path / "set")
    if caption.startswith("rejected: "):
        assert not len(index) and index.rejected[0].reason.startswith(caption.removeprefix("rejected: "))
        return
    caption, warned, _ = (*caption.partition(" (inspect warns)"),) if "(inspect" in caption else (caption, "", "")
    assert list(found_in(index).values()) == [(float(repeats), [caption])]
    assert bool(index.warnings) == bool(warned)


def test_a_folder_that_is_itself_named_so(tmp_path):
    """As the documentation says below its table."""
    image(tmp_path / "40_tok class" / "1.png")
    image(tmp_path / "40_tok class" / "3_other" / "2.png")
    image(tmp_path / "40_tok class" / "more" / "3.png")
    index = look(tmp_path / "40_tok class")
    assert found_in(index) == {"1.png": (40, ["tok class"]), "3_other/2.png": (3, ["other"])}
    assert index.rejected[0].reason.startswith("lies in the folder 'more'; kohya captions want folders named")


def test_a_number_of_0_is_taken_out_on_purpose(tmp_path):
    image(tmp_path / "0_off" / "1.png")
    image(tmp_path / "2_on" / "2.png")
    require_usable(look(tmp_path), strict=True)


def test_settings_files_and_the_sources_repeats_count_on_top(tmp_path):
    image(tmp_path / "40_tok class" / "1.png")
    (tmp_path / "40_tok class" / "multiply.txt").write_text("0.5")
    (tmp_path / "global.yaml").write_text("flip_p: 0.25\ngroup: g")
    index = look(tmp_path, repeats=2.0)
    assert index.repeats_N.tolist() == [20] and index.flip_p_N.tolist() == [0.25] and index.groups == {0: "g"}


def test_lines_are_variants_and_default_captions_fill_in(tmp_path):
    for name in "ab":
        image(tmp_path / "2_" / f"{name}.png")
    (tmp_path / "2_" / "a.txt").write_text("one  {x|y}\r\n\n two\n")
    assert found_in(look(tmp_path, default_caption="a thing")) == {
        "2_/a.png": (2, ["one {x|y}", "two"]), "2_/b.png": (2, ["a thing"])}  # fmt: skip


def test_the_grammar_is_of_this_rule_alone_and_a_fact_of_each_image(tmp_path):
    image(tmp_path / "set" / "1_a {b|c}" / "x.png")
    (tmp_path / "set" / "1_a {b|c}" / "x.txt").write_text("a {b|c}")
    kohya, plain = look(tmp_path / "set"), scan(
        DataSettings(sources=[SourceSettings(path=str(tmp_path / "set"))]), CaptionSettings()
    )  # fmt: skip
    assert (kohya.grammars, plain.grammars) == ([True], [False]) and kohya.captions == plain.captions
    assert kohya.digest_N[0] != plain.digest_N[0]


@pytest.mark.parametrize(("name", "named"), [
    ("40_tok class", Named(40, "tok class")), ("1_a_b", Named(1, "a_b")), ("007_x", Named(7, "x")), ("10_", (10, "")),
    ("10_ a  b ", Named(10, "a b")), ("tok_40", None), ("40", None), ("-1_a", None), ("1.5_a", None), ("_a", None),
    ("", None),
])  # fmt: skip
def test_names_of_folders(name, named):
    assert parse_folder(name) == named


def draws(written, shuffle, num=200):
    return {draw_caption([written], seed, dropout=0.0, tags=TagRules(shuffle, 0), grammar=True) for seed in range(num)}


@pytest.mark.parametrize(("written", "shuffling", "captions"), WRITTEN)
def test_every_caption_of_the_documentation(written, shuffling, captions):
    assert draws(written.strip("`"), shuffling == "on") == set(re.findall(r'"(.*?)"', captions))


def test_the_tables_are_there():
    assert len(FILES) == 13 and len(WRITTEN) == 11


def test_choices_are_equally_likely_and_drawn_apart():
    written, seeds = "{a|b|c} {x|y}", range(3000)
    drawn = [draw_caption([written], s, dropout=0.0, tags=TagRules(False, 0), grammar=True) for s in seeds]
    assert set(drawn) == {f"{one} {two}" for one in "abc" for two in "xy"}
    assert all(abs(drawn.count(caption) - 500) < 100 for caption in set(drawn))
    assert [draw_caption(["{a|b}"], s, dropout=0.0, tags=TagRules(False, 0)) for s in (1, 2)] == ["{a|b}"] * 2


def test_the_grammar_changes_no_other_choice():
    """Neither dropout nor the variant nor the shuffle of a caption without marks depends on it."""
    variants = ["a, b, c, d", "e, f, g, h"]
    for seed in range(50):
        for options in {"dropout": 0.5}, {"dropout": 0.0}:
            for shuffle in (False, True):
                plain, read = (
                    draw_caption(variants, seed, **options, tags=TagRules(shuffle, 1), grammar=grammar)
                    for grammar in (False, True)
                )
                assert plain == read


def test_keep_tags_counts_where_no_separator_does():
    drawn = {draw_caption(["k, a, b"], seed, dropout=0.0, tags=TagRules(True, 1), grammar=True) for seed in range(40)}
    assert drawn == {"k, a, b", "k, b, a"}
    assert draws("x ||| k, a", shuffle=True) == {"x, k, a", "x, a, k"}


def test_wildcard_draws_are_fixed_for_ever():
    """A resumed run must draw what an older version drew: these literals change only on purpose."""
    drawn = [
        draw_caption(["{a|b|c|d} {e|f|g}"], seed, dropout=0.0, tags=TagRules(False, 0), grammar=True)
        for seed in range(6)
    ]
    assert drawn == GOLDEN


GOLDEN = ["c e", "d f", "c f", "d g", "b e", "c e"]


@pytest.mark.parametrize(("written", "longest"), [
    ("{a|bbb|cc} x ||| y;;;z", "bbb x, y,z"), ("plain, caption", "plain, caption"), ("{{a|b}}", "{a|b}"),
])  # fmt: skip
def test_the_longest_reading(written, longest):
    assert longest_reading(written, False, True) == longest
