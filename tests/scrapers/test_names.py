"""Captions as file names: valid everywhere, and read back as the caption."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everydream.data.captions import caption_from_name
from everydream.data.texts import normalise
from scrapers.names import MAX_BYTES, name_of

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


def assert_valid_everywhere(name: str) -> None:
    """Windows forbids most, ext4 and the like count bytes, macOS knows `:` and `/`."""
    assert len(name.encode("utf-8")) <= MAX_BYTES
    assert not re.search(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f]', name)
    assert name == name.strip() and not name.startswith(".") and not name.endswith((".", " "))
    assert name.partition(".")[0].strip().lower() not in RESERVED


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=400), st.integers(1, 1_000_000), st.sampled_from([".png", ".jpg", ".jpeg", ".webp"]))
@example("CON", 1, ".png")
@example("aux.txt", 1, ".png")
@example("nul .x", 1, ".png")
@example("con.", 1, ".png")
@example("a\u0085b\u2028c", 1, ".png")
@example("\u0301" * 300, 1, ".png")
@example("\udcff broken", 1, ".png")
@example("com\u00b9", 1, ".png")
@example("x" * 225 + " .. y", 1, ".png")
@example("con" + " " * 5 + ".a", 1, ".png")
def test_any_caption(caption: str, number: int, ending: str) -> None:
    made = name_of(caption)
    name = made.numbered(number, ending)
    assert_valid_everywhere(name)
    assert made.stem and "_" not in made.stem
    read = caption_from_name(name)
    assert read == normalise(made.stem)
    if made.is_whole:
        assert read == normalise(caption)
    else:
        assert read != normalise(caption)


@pytest.mark.parametrize(
    ("caption", "stem", "is_whole"),
    [
        ("a cat on a mat", "a cat on a mat", True),
        ("  a   cat\n on\ta mat ", "a cat on a mat", True),
        ("a cat, 4.5 years old (tabby)", "a cat, 4.5 years old (tabby)", True),
        ("ein Mädchen mit Hut, 日本語, 🎉", "ein Mädchen mit Hut, 日本語, 🎉", True),
        ("snake_case", "snake case", False),
        ("what? a/b \\ c: <d> |*|", "what a b c d", False),
        ("he said \"no\"", "he said no", False),
        ("trailing dots...", "trailing dots", False),
        ("...leading", "leading", False),
        ("bell\x07 here", "bell here", False),
        ("", "image", False),
        ("???", "image", False),
        ("con", "image con", False),
        ("AUX", "image AUX", False),
        ("Nul.png", "image Nul.png", False),
        ("com1", "image com1", False),
        ("lpt9.x.y", "image lpt9.x.y", False),
        ("console", "console", True),
        ("con man", "con man", True),
    ],
)  # fmt: skip
def test_captions_and_their_names(caption: str, stem: str, is_whole: bool) -> None:
    made = name_of(caption)
    assert (made.stem, made.is_whole) == (stem, is_whole)
    assert made.numbered(3, ".jpg") == f"{stem}_(3).jpg"


@pytest.mark.parametrize("text", ["x" * 2000, "é" * 2000, "日" * 2000, "🎉" * 2000, "word " * 400])
def test_a_caption_of_2000_characters_is_cut_between_characters(text: str) -> None:
    """Defect 24: elsewhere non-ASCII captions become `.jpg`."""
    made = name_of(text)
    assert not made.is_whole and text.startswith(made.stem)
    assert 200 < len(made.stem.encode()) <= MAX_BYTES - len("_(1000000).jpeg")
    assert_valid_everywhere(made.numbered(1_000_000, ".jpeg"))


def test_the_longest_caption_that_is_whole() -> None:
    room = MAX_BYTES - len("_(1000000).jpeg")
    assert name_of("x" * room).is_whole and not name_of("x" * (room + 1)).is_whole
