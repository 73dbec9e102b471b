import pytest
from hypothesis import given
from hypothesis import strategies as st

from everydream.data.captions import (
    caption_from_name,
    cut_caption,
    index_siblings,
    lint,
    parse_yaml_sidecar,
    read_caption,
    sidecars_of,
    split_tags,
)
from everydream.data.drawing import TagRules, draw_caption, longest_reading
from everydream.data.texts import BadText, decode_text, normalise

NAME = "from the name_1.jpg"


def read(tmp_path, name, files=None, lines="join"):
    for file, content in (files or {}).items():
        (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    siblings = index_siblings(path.name for path in tmp_path.iterdir())
    return read_caption(tmp_path, "sub", name, siblings, lines)


@pytest.mark.parametrize(("name", "caption"), [
    ("a photo of John Jacob Jingleheimerschmidt riding a bicycle.webp",
     "a photo of John Jacob Jingleheimerschmidt riding a bicycle"),
    ("john sitting on a bench in a park_(1).png", "john sitting on a bench in a park"),
    ("a photo of ted bennet, sitting on a chair_2_x_y.jpg", "a photo of ted bennet, sitting on a chair"),
    ("dots a.b.c and more.d_3.jpg", "dots a.b.c and more.d"),
    ("parens (((weighted:1.2)))_(2).jpg", "parens (((weighted:1.2)))"),
    ("ünïcödé 日本語, タグ_1.jpg", "ünïcödé 日本語, タグ"),
    (" trailing space _4.jpg", "trailing space"),
    ("UPPER.JPG", "UPPER"),
    ("a close up of a person_ (1).jpg", "a close up of a person"),
    ("parens (1).jpg", "parens (1)"),
    ("two  spaces\tand a tab.png", "two spaces and a tab"),
    ("_001.jpg", ""),
    ("__.jpg", ""),
    ("one,, two , one.jpg", "one,, two , one"),  # verbatim: no tag operation is on
])  # fmt: skip
def test_caption_from_file_name(name, caption, tmp_path):
    assert caption_from_name(name) == caption
    assert read(tmp_path, name).variants == ((caption,) if caption else ())


@pytest.mark.parametrize(("files", "variants"), [
    ({"from the name_1.txt": ""}, ("from the name",)),
    ({"from the name_1.txt": " \n\t \r\n"}, ("from the name",)),
    ({"from the name_1.txt": "line one\nline two"}, ("line one line two",)),
    ({"from the name_1.txt": "\ufeffno mark"}, ("no mark",)),
    ({"from the name_1.txt": "mark ü 日".encode("utf-16")}, ("mark ü 日",)),
    ({"from the name_1.txt": "mark ü 日".encode("utf-32")}, ("mark ü 日",)),
    ({"from the name_1.txt": "/etc/hostname"}, ("/etc/hostname",)),  # EveryDream2 opens that file
    ({"from the name_1.TXT": "upper suffix"}, ("upper suffix",)),
    ({"from the name_1.jpg.txt": "with the extension"}, ("with the extension",)),
    ({"from the name_1.JPG.Txt": "with the extension"}, ("with the extension",)),
    ({"from the name_1.png.txt": "of another image"}, ("from the name",)),
    ({"from the name_1.txt": "txt", "from the name_1.jpg.txt": "ext"}, ("txt",)),
    ({"from the name_1.caption": "caption", "from the name_1.txt": "txt"}, ("caption",)),
    ({"from the name_1.caption": " ", "from the name_1.txt": "txt"}, ("txt",)),
    ({"from the name_1.yaml": "main_prompt: yaml", "from the name_1.caption": "caption"}, ("yaml",)),
    ({"from the name_1.yml": "main_prompt: yml"}, ("yml",)),
    ({"from the name_1.yaml": "", "from the name_1.txt": "txt"}, ("txt",)),
    ({"from the name_1.yaml": "~"}, ("from the name",)),
    ({"from the name_1.yaml": "main_prompt: ''\ntags: []", "from the name_1.txt": "txt"}, ("txt",)),
    ({"from the name_1.yaml": "multiply: 2", "from the name_1.txt": "txt"}, ("txt",)),
    ({"from the name_1.yaml": "main_prompt: from yaml\ntags: [one, two]"}, ("from yaml, one, two",)),
])  # fmt: skip
def test_sidecars(files, variants, tmp_path):
    assert read(tmp_path, NAME, files).variants == variants


def test_blank_name_with_a_sidecar(tmp_path):
    assert read(tmp_path, "__.jpg", {"__.txt": "a cat"}).variants == ("a cat",)


def test_lines_choose_gives_one_variant_a_line(tmp_path):
    files = {"from the name_1.txt": "line  one\r\n\r\nline two\n"}
    assert read(tmp_path, NAME, files, lines="choose").variants == ("line one", "line two")


def test_setting_files_are_no_sidecars():
    siblings = index_siblings(["multiply.txt", "flip_p.txt", "local.yaml", "global.yml", "a.txt"])
    assert [sidecars_of(f"{stem}.jpg", siblings) for stem in ("multiply", "flip_p", "local", "global")] == [[]] * 4
    assert sidecars_of("a.jpg", siblings) == ["a.txt"]


def test_two_captions_are_warned_of(tmp_path):
    both = {"a.caption": "one thing", "a.txt": "another"}
    assert read(tmp_path, "a.jpg", both).warnings == (
        "two captions: sub/a.caption is used, sub/a.txt says something else",
    )
    assert read(tmp_path, "b.jpg", {"b.caption": "the same", "b.txt": "the  same\n"}).warnings == ()


@pytest.mark.parametrize(("data", "message"), [
    (b"caf\xe9", "sub/a.txt: not UTF-8 at byte 3; save it as UTF-8"),
    ("ab".encode("utf-16-le"),
     "sub/a.txt: holds zero bytes, as UTF-16 without a byte order mark does; save it as UTF-8"),
    (b"\xff\xfea", "sub/a.txt: not UTF-16 at byte 2; save it as UTF-8"),
])  # fmt: skip
def test_text_that_would_be_mojibake(data, message, tmp_path):
    with pytest.raises(BadText) as caught:
        read(tmp_path, "a.jpg", {"a.txt": data})
    assert str(caught.value) == message


def test_sidecar_that_is_a_folder(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(BadText, match=r"^sub/a\.txt: cannot be read \(Is a directory\)$"):
        read(tmp_path, "a.jpg")


@pytest.mark.parametrize(("text", "message"), [
    ("main_prompt: [a\nb: {", "x.yaml, line 2: not valid YAML"),
    ("main_prompt: a\n\tb: c", "x.yaml, line 2: not valid YAML"),
    ("main_prompt: \x07", "x.yaml: not valid YAML (special characters are not allowed)"),
    ("- a\n- b", "x.yaml, line 1: expected `key: value` lines, found a list"),
    ("\n\njust text", "x.yaml, line 3: expected `key: value` lines, found a single value"),
    ("tags: [a]\nmain_prompt: 5", "x.yaml, line 2: main_prompt is 5, not a text or a list of texts; put it in quotes"),
    ("main_prompt: [a, yes]", "x.yaml, line 1: main_prompt is True, not a text"),
    ("main_prompt: {a: b}", "x.yaml, line 1: main_prompt is {'a': 'b'}, not a text"),
    ("main_promt: a", "x.yaml, line 1: unknown key `main_promt`; did you mean `main_prompt`?"),
    ("flip: 1", "x.yaml, line 1: unknown key `flip`; did you mean `flip_p`?"),
    ("zzz: 1", "x.yaml, line 1: unknown key `zzz`; known keys: batch_id, cond_dropout, flip_p,"),
    ("tags: one", "x.yaml, line 1: tags is 'one', not a list"),
    ("a: 1\na: 2", "x.yaml, line 2: `a` is given twice"),
    ("1: a", "x.yaml, line 1: the key 1 is not a word"),
    ("tags: [a, 5]", "x.yaml, line 1: the tag 5 is not a text or {tag, weight}; put it in quotes"),
    ("tags: [{weight: 1}]", "x.yaml, line 1: the tag {'weight': 1} is not a text"),
    ("tags:\n- {tag: a, wieght: 1}", "x.yaml, line 1: unknown key `wieght`; did you mean `weight`?"),
    ("tags: [{tag: a, weight: high}]", "x.yaml, line 1: the weight of the tag 'a' is 'high', not a number"),
    ("tags: [{tag: a, weight: .nan}]", "x.yaml, line 1: the weight of the tag 'a' is nan, not a number"),
    ("max_caption_length: 0", "x.yaml, line 1: max_caption_length is 0, not a number of characters of at least 1"),
    ("multiply: many", "x.yaml, line 1: multiply is 'many', expected a number of at least 0"),
    ("main_prompt: 2024-13-45", "x.yaml: not valid YAML (month must be in 1..12)"),
    ("[" * 5000, "x.yaml"),
])  # fmt: skip
def test_bad_yaml_names_file_and_line(text, message):
    with pytest.raises(BadText) as caught:
        parse_yaml_sidecar(text, "x.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("text", "variants", "num_fixed"), [
    ("main_prompt: a portrait\ntags:\n- low\n- {tag: high, weight: 1.5}\n- {tag: mid}\n- {tag: last, weight: 0.5}",
     ("a portrait, high, low, mid, last",), 1),
    ("tags: [one, two]", ("one, two",), 0),
    ("main_prompt: 'a cat, sitting'\ntags: [x]", ("a cat, sitting, x",), 2),
    ("main_prompt: [one, 'two, three', ' ']\ntags: [x]", ("one, x", "two, three, x"), 2),
    ("main_prompt: '  two   spaces '\ntags: [' a  b ', '']", ("two spaces, a b",), 1),
    ("main_prompt: abcdef ghi\ntags: [jk, l]\nmax_caption_length: 15", ("abcdef ghi, jk",), 1),
    ("main_prompt: abcdef ghi\ntags: [jkl, m]\nmax_caption_length: 14", ("abcdef ghi",), 1),
    ("main_prompt: abcdef ghi\nmax_caption_length: 9", ("abcdef",), 1),
    ("tags: [abcdef ghi]\nmax_caption_length: 7", ("abcdef",), 0),
    ("main_prompt: '5'", ("5",), 1),
])  # fmt: skip
def test_yaml_sidecar(text, variants, num_fixed):
    sidecar = parse_yaml_sidecar(text, "x.yaml")
    assert (sidecar.variants, sidecar.num_fixed) == (variants, num_fixed)


def test_yaml_settings_and_rating(tmp_path):
    caption = read(tmp_path, "a.jpg", {"a.yaml": "rating: 5\nmultiply: '2'\nkeep_tags: 3\nmax_caption_length: 4",
                                       "a.txt": "four words in all"})  # fmt: skip
    assert {key: setting.value for key, setting in caption.values.items()} == {"multiply": 2.0, "keep_tags": 3}
    assert caption.warnings == ("sub/a.yaml: rating is read but not used",)
    assert caption.variants == ("four",)


@pytest.mark.parametrize(("limit", "cut"), [
    (None, "a cat, a dog"), (12, "a cat, a dog"), (11, "a cat, a"), (7, "a cat"), (6, "a cat"), (5, "a cat"),
    (4, "a"), (1, "a"),
])  # fmt: skip
def test_cut_caption(limit, cut):
    assert cut_caption("a cat, a dog", limit) == cut


def test_cut_caption_inside_a_long_word():
    assert cut_caption("abcdef", 4) == "abcd"


@given(st.text(), st.integers(1, 50))
def test_cut_never_exceeds_the_limit(text, limit):
    caption = normalise(text)
    cut = cut_caption(caption, limit)
    assert len(cut) <= limit and caption.startswith(cut) and bool(cut) == bool(caption)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_survives_every_encoding_with_a_mark(text):
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        assert decode_text(text.encode(encoding), "f") == text


def test_split_tags():
    assert split_tags(" a, b ,,a,  , B,c d ") == ["a", "b", "B", "c d"]


def draw(variants, seed, dropout=0.0, shuffle_tags=False, keep_tags=0):
    return draw_caption(variants, seed, dropout=dropout, tags=TagRules(shuffle_tags, keep_tags))


def test_caption_is_verbatim_without_shuffling():
    assert draw([" odd ,, spacing ,odd "], 3, keep_tags=1) == " odd ,, spacing ,odd "


def test_shuffle_cleans_keeps_and_differs_between_visits():
    drawn = {draw(["k1 ,k2,a,, b,c ,d,a"], seed, shuffle_tags=True, keep_tags=2) for seed in range(60)}
    assert all(caption.startswith("k1, k2, ") for caption in drawn)
    assert {tuple(sorted(caption.split(", "))) for caption in drawn} == {("a", "b", "c", "d", "k1", "k2")}
    assert len(drawn) > 15  # of 24 orders


def test_every_order_is_drawn_equally_often():
    orders = [draw(["a,b,c"], seed, shuffle_tags=True) for seed in range(3000)]
    assert all(abs(orders.count(order) - 500) < 100 for order in set(orders)) and len(set(orders)) == 6


@pytest.mark.parametrize("keep_tags", [2, 3, 99])
def test_keep_tags_beyond_the_end_moves_nothing(keep_tags):
    assert draw(["a,b"], 5, shuffle_tags=True, keep_tags=keep_tags) == "a, b"


@pytest.mark.parametrize(("dropout", "low", "high"), [(0.0, 0, 0), (0.25, 220, 280), (1.0, 1000, 1000)])
def test_dropout_rate(dropout, low, high):
    assert low <= sum(draw(["a"], seed, dropout=dropout) == "" for seed in range(1000)) <= high


def test_variants_are_drawn_equally_often():
    drawn = [draw(["a", "b", "c", "d"], seed) for seed in range(2000)]
    assert all(430 < drawn.count(variant) < 570 for variant in "abcd")


def test_choices_are_independent_of_each_other():
    variants = ["a, b, c, d", "e, f, g, h"]
    for seed in range(100):
        plain, shuffled = draw(variants, seed), draw(variants, seed, shuffle_tags=True)
        assert set(split_tags(plain)) == set(split_tags(shuffled))
        assert draw(variants, seed, dropout=0.5) in ("", plain)
        assert draw(variants, seed, dropout=0.5, shuffle_tags=True) in ("", shuffled)


def test_no_caption_draws_the_empty_one():
    assert draw([], 1) == ""


def dropped(caption, rate, keep=0, shuffle=False, seeds=range(400)):
    return [draw_caption([caption], seed, dropout=0.0, tags=TagRules(shuffle, keep, rate)) for seed in seeds]


def test_tags_are_dropped_one_by_one_at_the_rate():
    drawn = dropped("a, b, c, d", 0.25)
    counts = {tag: sum(tag in caption for caption in drawn) for tag in "abcd"}
    assert all(270 <= count <= 330 for count in counts.values()), counts
    assert all(caption.split(", ") == sorted(caption.split(", ")) for caption in drawn), "the rest keeps its order"
    assert dropped("a, b, c, d", 0.0) == ["a, b, c, d"] * 400


def test_tags_that_stay_and_the_last_one():
    assert all(caption.startswith("rex, dog") for caption in dropped("rex, dog, red, big", 0.9, keep=2, shuffle=True))
    assert "rex, dog" in dropped("rex, dog, red, big", 0.9, keep=2)
    assert set(dropped("a, b, c", 0.99)) <= {"a", "b", "c"} and "" not in dropped("a", 0.99)


def test_dropped_tags_do_not_change_what_shuffling_draws():
    for seed in range(50):
        whole = draw_caption(["a, b, c, d, e"], seed, dropout=0.0, tags=TagRules(True, 1)).split(", ")
        part = draw_caption(["a, b, c, d, e"], seed, dropout=0.0, tags=TagRules(True, 1, 0.5)).split(", ")
        assert part == [tag for tag in whole if tag in part]


def test_wildcards_where_they_are_wanted():
    seeds = range(60)
    drawn = {draw_caption(["a {red|blue} {{x}} car"], s, dropout=0.0, tags=TagRules(), wildcards=True) for s in seeds}
    assert drawn == {"a red {x} car", "a blue {x} car"}
    assert draw_caption(["a {red|blue} car"], 1, dropout=0.0, tags=TagRules()) == "a {red|blue} car"
    assert longest_reading("a {red|blue} car", True, False) == "a blue car"
    assert longest_reading("a {red|blue} car", False, False) == "a {red|blue} car"


def test_draws_are_fixed_for_ever():
    """A resumed run must draw what an older version drew: these literals change only on purpose."""
    assert [draw(["a,b,c,d,e"], seed, shuffle_tags=True, keep_tags=1) for seed in range(3)] == GOLDEN
    assert [draw(list("abcdefgh"), seed, dropout=0.3) for seed in range(12)] == [
        "g",
        "e",
        "f",
        "e",
        "g",
        "",
        "c",
        "e",
        "d",
        "",
        "d",
        "b",
    ]


GOLDEN = ["a, d, e, c, b", "a, c, e, d, b", "a, d, e, c, b"]


@pytest.mark.parametrize(("caption", "stem", "warnings"), [
    ("parens (1)", "parens (1)", ['" (1)" looks like a copy\'s suffix']),
    ("a cat - Copy", "a cat - Copy", ["the file name looks like a copy's"]),
    ("a cat", "parens (1)", []),  # from a sidecar: the name does not matter
    ("IMG", "IMG_1234", ["the caption comes from a camera's file name"]),
    ("DSC", "DSC_0001", ["the caption comes from a camera's file name"]),
    ("DSC00012", "DSC00012", ["the caption comes from a camera's file name"]),
    ("IMG-20230101-WA0001", "IMG-20230101-WA0001", ["the caption comes from a camera's file name"]),
    ("Screenshot 2024-01-01", "Screenshot 2024-01-01", ["the caption comes from a camera's file name"]),
    ("00012", "00012", ["the caption is only a number"]),
    ("1girl", "1girl", []),
    ("d41d8cd98f00b204e9800998ecf8427e", "x", ["holds what looks like a hash"]),
    ("a cat 123e4567-e89b-12d3-a456-426614174000", "x", ["holds what looks like a hash"]),
    ("a decade in a facade", "x", []),
    ("size S shirt", "x", ["holds a lone S or C, as JoePenna's templates do"]),
    ("vitamin C", "x", ["holds a lone S or C, as JoePenna's templates do"]),
    ("SC and C-sharp", "x", []),
    ("bell\x07 and \u200bhidden", "x", ["holds control or invisible characters (U+0007, U+200B)"]),
    ("moj\ufffdbake", "x", ["holds control or invisible characters (U+FFFD)"]),
    ("a family 👨‍👩‍👧, ünïcödé 日本語", "x", []),  # emoji are joined by an invisible character
    ("Cat, dog, cat", "x", ["tags that differ only in case or plural: Cat / cat"]),
    ("dog, dogs, bus, as", "x", ["tags that differ only in case or plural: dog / dogs"]),
    ("", "_001", []),
])  # fmt: skip
def test_lint(caption, stem, warnings):
    assert lint(caption, stem) == warnings
