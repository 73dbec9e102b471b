"""`everydream caption`: captions moved between names and sidecars, edited, counted; by the trainer's own reader."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_app import run

from everydream.data.captions import caption_from_name
from everydream.data.settings import CaptionSettings, SourceSettings
from everydream.data.sources import Candidate, list_source
from everydream.data.texts import normalise
from everydream.errors import ConfigError
from everydream.tools.captioning.names import safe_stem
from everydream.tools.captioning.rewording import prefixing, replacing, suffixing


def folder(path: Path, *images: str, **sidecars: str) -> Path:
    """Make empty images and sidecars; the tools never open the images. `a__txt="x"` writes a.txt."""
    for name in images:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"pixels of " + name.encode())
    for name, text in sidecars.items():
        (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return path


def captions(root: Path) -> dict[str, tuple[str, ...]]:
    """Return what the trainer would read: image -> its captions."""
    found = list_source(0, SourceSettings(path=str(root)), CaptionSettings(), 0.0)
    return {item.path: item.captions if isinstance(item, Candidate) else () for item in found}


def by_content(root: Path) -> dict[bytes, tuple[str, ...]]:
    return {(root / path).read_bytes(): texts for path, texts in captions(root).items()}


def files(root: Path) -> dict[str, bytes]:
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


# Rewording


@pytest.mark.parametrize(
    ("find", "new", "before", "after"),
    [
        ("cat", "dog", "a cat, cats, concat, cat", "a dog, cats, concat, dog"),
        ("Cat", "dog", "a cat", "a cat"),
        ("red car", "bike", "a red car, red cars", "a bike, red cars"),
        ("cat", "", "a cat on a mat", "a on a mat"),
        ("caf", "x", "café caf\u0065\u0301", "café caf\u0065\u0301"),
        ("cafe", "x", "cafe cafe\u0301", "x cafe\u0301"),
        ("हिन्द", "x", "हिन्दी हिन्द", "हिन्दी x"),
        ("猫", "犬", "猫, 黒猫", "犬, 黒猫"),
        ("(x)", "y", "a (x) b(x)", "a y by"),
        ("x", r"\1", "x_1 x", r"x_1 \1"),
        ("a", "aa", "a a", "aa aa"),
    ],
)
def test_whole_words_are_replaced(find: str, new: str, before: str, after: str) -> None:
    assert replacing(find, new, ignore_case=False)(before) == after


def test_capitals_can_be_ignored() -> None:
    assert replacing("cat", "dog", ignore_case=True)("CAT Cat cats") == "dog dog cats"


def test_adding_is_done_once() -> None:
    prefix, suffix, tail = prefixing("photo of "), suffixing("by ted"), suffixing(", film grain")
    assert [prefix("a cat"), suffix("a cat"), tail("a cat")] == ["photo of a cat", "a cat by ted", "a cat, film grain"]
    for add in (prefix, suffix, tail):
        assert add(add("a cat")) == add("a cat")
    assert prefix("photo office") == "photo of photo office" and suffix("goodby ted") == "goodby ted by ted"
    assert prefix("photo of") == "photo of" and suffix("by ted") == "by ted"


def test_blank_texts_are_refused() -> None:
    for make in (lambda: replacing(" ", "x", False), lambda: prefixing("\n"), lambda: suffixing("")):
        with pytest.raises(ConfigError, match="blank"):
            make()


# Names and sidecars


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_any_caption_gives_a_valid_name(caption: str) -> None:
    stem = safe_stem(normalise(caption))
    assert 0 < len(stem.encode()) <= 210 and not set(stem) & set('<>:"/\\|?*_\n\0')
    assert stem == stem.strip(" .") and not stem.startswith(("-", "~", "."))
    assert caption_from_name(f"{stem}_(1).png") == normalise(stem)


def test_device_names_are_no_names() -> None:
    assert [safe_stem(text) for text in ("CON", "com1.x", "...", "console")] == [
        "image CON", "image com1.x", "image", "console"
    ]  # fmt: skip


def test_to_sidecars_and_back_gives_the_same_captions(tmp_path: Path) -> None:
    long = "word " * 45
    root = folder(
        tmp_path / "in", "a cat_1.png", "a cat_1.jpg", "a cat_2.png", "sub/ünïcödé 日本語, タグ_1.jpg", f"{long}.png",
        "_001.png", "multiply.png", "x.png", "y.png", "z.png", "w.png", "A CAT_3.webp",
        x__txt='"quotes" / slashes: a_b?', y__caption="from caption", z__json='{"caption": "from json"}',
        w__yaml="main_prompt: [one, two]\nmultiply: 2",
    )  # fmt: skip
    (root / "sub" / "multiply.txt").write_text("2", encoding="utf-8")
    before, images = by_content(root), {name: data for name, data in files(root).items() if name.endswith("g")}
    assert "7 captions written" in run("caption", "to-sidecars", root).stdout
    assert by_content(root) == before
    assert (root / "a cat_1.png.txt").read_text(encoding="utf-8") == "a cat\n"
    assert (root / "multiply.png.txt").exists() and not (root / "multiply.txt").exists()
    assert {name: data for name, data in files(root).items() if name.endswith("g")} == images
    run("caption", "to-names", root, "--out", tmp_path / "out")
    assert by_content(tmp_path / "out") == before
    names = files(tmp_path / "out")
    assert {"a cat_(1).png", "a cat_(2).png", "a cat_(1).jpg", "A CAT_(1).webp"} & set(names) != set()
    assert "from caption_(1).png" in names and "from caption_(1).caption" not in names  # the name says it now
    assert names["quotes slashes a b_(1).txt"] == b'"quotes" / slashes: a_b?'
    assert names["sub/multiply.txt"] == b"2" and "one_(1).yaml" in names and "_001.png" in names
    lowered = [name.lower() for name in names]
    assert len(set(lowered)) == len(lowered)


def test_sidecars_that_are_there_are_kept(tmp_path: Path) -> None:
    root = folder(tmp_path, "a.png", "b.png", "c.png", a__txt="mine", b__yaml="main_prompt: other", c__txt=" ")
    said = run("caption", "to-sidecars", root).stdout
    assert "0 captions written" in said and "a.png: a.txt is there already; --overwrite replaces it" in said
    assert "b.png: b.yaml says its caption and is left alone" in said
    run("caption", "to-sidecars", root, "--overwrite")
    assert captions(root) == {"a.png": ("a",), "b.png": ("other",), "c.png": ("c",)}
    assert not (root / "b.txt").exists()


def test_variants_survive_in_their_sidecar(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", "a.png", a__txt="one\ntwo")
    run("caption", "to-names", root, "-o", tmp_path / "out")
    assert files(tmp_path / "out") == {"one two_(1).png": b"pixels of a.png", "one two_(1).txt": b"one\ntwo"}


def test_copies_go_to_new_folders_only(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", "a.png")
    folder(tmp_path / "full", "mine.png")
    before = files(tmp_path)
    for out in (tmp_path / "full", root / "inside", tmp_path):
        run("caption", "to-names", root, "-o", out, check=2)
    assert files(tmp_path) == before


# Edits


def test_nothing_changes_without_apply(tmp_path: Path) -> None:
    root = folder(tmp_path, "x.png", "y.png", "z.png", x__txt="a cat\n", y__caption="two cats", z__txt="no\n")
    before = files(root)
    said = run("caption", "replace", root, "cat", "dog").stdout
    assert "x.png: a cat\n  -> a dog" in said and "1 captions would change, 2 stay as they are" in said
    assert files(root) == before
    assert "1 captions changed" in run("caption", "replace", root, "cat", "dog", "--apply").stdout
    assert files(root) == {**before, "x.txt": b"a dog\n"}


def test_prefix_and_suffix_on_sidecars(tmp_path: Path) -> None:
    root = folder(tmp_path, "x.png", "y.png", x__txt="a cat", y__txt="sks, a dog, b\n")
    (root / "x.txt").write_text("a cat", encoding="utf-16")
    run("caption", "prefix", root, "sks,", "--apply")
    said = run("caption", "suffix", root, ", b", "--apply").stdout
    assert "1 captions changed, 1 stay as they are" in said
    assert files(root)["x.txt"] == b"sks, a cat, b\n" and files(root)["y.txt"] == b"sks, a dog, b\n"


@pytest.mark.parametrize(
    ("names", "sidecars", "reason"),
    [
        (["x.png"], {"x__yaml": "main_prompt: a cat"}, "its caption is in x.yaml, which is not rewritten"),
        (["x.png"], {"x__json": '{"caption": "a cat"}'}, "its caption is in x.json"),
        (["a cat_1.png"], {}, "its caption is its name; give --out for a copy"),
        (["x.png"], {"x__txt": "cat"}, "nothing would be left of x.txt"),
        (["x.png"], {"x__txt": "a cat\na mat"}, "x.txt has several lines; say --lines join"),
    ],
)
def test_what_cannot_be_changed_stops_the_whole_edit(
    tmp_path: Path, names: list[str], sidecars: dict[str, str], reason: str
) -> None:
    root = folder(tmp_path, "good.png", *names, good__txt="a cat", **sidecars)
    before = files(root)
    for options in ([], ["--apply"]):
        found = run("caption", "replace", root, "cat", "", *options, check=2)
        assert reason in found.stderr and "1 captions cannot be changed, so none is" in found.stderr
    assert files(root) == before


def test_what_would_not_change_stops_nothing(tmp_path: Path) -> None:
    root = folder(tmp_path, "a dog.png", "x.png", "_1.png", x__yaml="main_prompt: a dog")
    said = run("caption", "replace", root, "cat", "puma", "--apply").stdout
    assert "0 captions changed, 2 stay as they are, 1 images have none" in said


@pytest.mark.parametrize(("lines", "text"), [("join", "my a cat my cat\n"), ("choose", "my a cat\nmy cat\n")])
def test_lines_are_what_the_user_says(tmp_path: Path, lines: str, text: str) -> None:
    root = folder(tmp_path, "x.png", x__txt="a cat\n\n my  cat\n")
    run("caption", "prefix", root, "my", "--lines", lines, "--apply")
    assert (root / "x.txt").read_text(encoding="utf-8") == text


def test_names_change_in_a_copy(tmp_path: Path) -> None:
    root = folder(
        tmp_path / "in", "a cat_(1).png", "a cat_2_x.png", "sub/x.png", "dog.png", "y.png",
        y__yaml="main_prompt: a dog\nmultiply: 2",
    )  # fmt: skip
    (root / "sub" / "x.txt").write_text("cat food", encoding="utf-8")
    before, out = files(root), tmp_path / "out"
    run("caption", "replace", root, "cat", "kitten/kitty_x", "--out", out)
    assert not out.exists()
    run("caption", "replace", root, "cat", "kitten/kitty_x", "--out", out, "--apply")
    assert files(root) == before
    assert captions(out) == {
        "a kitten kitty x_(1).png": ("a kitten/kitty_x",), "a kitten kitty x_2_x.png": ("a kitten/kitty_x",),
        "dog.png": ("dog",), "sub/x.png": ("kitten/kitty_x food",), "y.png": ("a dog",),
    }  # fmt: skip
    assert files(out)["y.yaml"] == before["y.yaml"]


@pytest.mark.parametrize("twin", ["a dog_1.png", "A DOG_1.jpg"])
def test_two_images_never_get_one_name(tmp_path: Path, twin: str) -> None:
    root = folder(tmp_path / "in", "a cat_1.png", twin)
    said = run("caption", "replace", root, "cat", "dog", "-o", tmp_path / "out", "--apply", check=2).stderr
    assert "a cat_1.png" in said and twin in said and "same name" in said
    assert not (tmp_path / "out").exists()


# Counts


def test_tags_and_words_are_counted_by_image(tmp_path: Path) -> None:
    root = folder(tmp_path, "a cat, red_1.png", "red, cat_2.png", "x.png", "_.png", x__txt="red, red, it's a cat")
    counts = json.loads(run("caption", "tags", root, "--json").stdout)
    assert counts == {"images": 4, "counts": {"red": 3, "a cat": 1, "cat": 1, "it's a cat": 1}}
    assert list(counts["counts"]) == ["red", "a cat", "cat", "it's a cat"]
    words = json.loads(run("caption", "tags", root, "--json", "--words").stdout)["counts"]
    assert words == {"cat": 3, "red": 3, "a": 2, "it's": 1}
    assert run("caption", "tags", root).stdout.splitlines()[0] == "3  red"


def test_a_sidecar_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", "a.png", "b.png")
    (root / "a.txt").write_bytes(b"caf\xe9")
    for command in (["tags"], ["prefix", "x", "-o", tmp_path / "out"], ["to-sidecars"]):
        found = run("caption", command[0], root, *command[1:])
        assert "a.png: a.txt: not UTF-8 at byte 3" in found.stderr
    assert (root / "a.txt").read_bytes() == b"caf\xe9"
