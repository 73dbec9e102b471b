"""Captions from the web: what goes and what stays."""

import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everydream.data.captions import caption_from_name, lint
from everydream.data.texts import normalise
from scrapers.captions import caption_of, clean, tidy
from scrapers.names import key_of, name_of

SAMPLES = ROOT.parent / "shared/data/captions.txt"


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("", ""),
        ("  a\tcat\r\non a\u00a0mat ", "a cat on a mat"),
        ("&quot;Keep Calm&quot; &#39;n&#x27; &amp; on", "\"Keep Calm\" 'n' & on"),
        ("&amp;quot;twice&amp;quot; &amp;amp;amp; thrice", '"twice" & thrice'),
        ("AT&T R&B &c &copy 2020 &unknown;", "AT&T R&B &c &copy 2020 &unknown;"),
        ("&lt;i&gt;Truong Son&lt;/i&gt; / &copy;", "Truong Son / ©"),
        ("a <b>bold</b> <a href='x'>link</a><br/>next<BR>line<p class=\"x\">end</p>", "a bold link next line end"),
        ("H<sub>2</sub>O", "H2O"),
        ("a <!-- hidden --> b", "a b"),
        (
            "a < b and c > d, <3, <lora:style:1>, <sks> dog, x<y>z",
            "a < b and c > d, <3, <lora:style:1>, <sks> dog, x<y>z",
        ),
        ("bell\x07 null\x00 c1\x85end", "bell null c1 end"),
        ("abc\u202etxt\u202c \u200fd\u061c \u2066e\u2069 \u200b\ufefff", "abctxt d e f"),
        ("lone \ud83d surrogate", "lone surrogate"),
        ("cafe\u0301 \u1112\u1161\u11ab", "café 한"),
        ("👩\u200d🚀 and 👨\u200d👩\u200d👧 ❤\ufe0f", "👩\u200d🚀 and 👨\u200d👩\u200d👧 ❤\ufe0f"),
        ("&#0; &#xD800; &#9999999; &#x1F600;", "\ufffd \ufffd \ufffd 😀"),
        ("<b></b>&nbsp;", ""),
    ],
)
def test_cleaning(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned
    assert caption_of(raw) == cleaned


@pytest.mark.parametrize(
    ("caption", "text", "whole"),
    [
        ("a &amp; b", "photo of {caption}, 2020", "photo of a & b, 2020"),
        ("{caption} {0} {x!r} %s \\1", "<{caption}>", "<{caption} {0} {x!r} %s \\1>"),
        ("ignored", "close up photo  of a person", "close up photo of a person"),
        ("<p> </p>", "photo of {caption}", ""),
        ("x", "{caption} and {caption}", "x and x"),
        ("x", "<sks> &amp; {caption}", "<sks> &amp; x"),
        ("x", " \n ", ""),
    ],
)
def test_the_recipes_text(caption: str, text: str, whole: str) -> None:
    assert caption_of(caption, text) == whole


MESSY = st.lists(
    st.sampled_from(
        ["&amp;", "&lt;", "&quot;", "<", ">", "<b>", "</b>", "<br>", "&#8206;", "&", ";", "\u200b", "\u2028", "{"]
    )
    | st.text(max_size=8)
).map("".join)


@settings(max_examples=300, deadline=None)
@given(MESSY, st.sampled_from(["{caption}", "photo of {caption}", "\ta {caption} {caption}"]))
@example("\x1c\x85\u3000", "{caption}")
@example("\u0344\u200e\u0301", "{caption}")
def test_the_trainer_changes_nothing_about_a_caption(caption: str, text: str) -> None:
    cleaned = caption_of(caption, text)
    assert normalise(cleaned) == cleaned == tidy(cleaned)
    cleaned.encode("utf-8")
    assert not any("invisible" in finding for finding in lint(cleaned.replace("\ufffd", ""), "stem"))
    name = name_of(cleaned)
    if name.is_whole:
        assert caption_from_name(name.numbered(1, ".jpg")) == cleaned


def test_a_long_chain_of_entities_ends() -> None:
    assert clean("&" + "amp;" * 20_000 + "quot;").startswith("&amp;")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A Cat", "a cat"),
        ("café", "cafe\u0301"),
        ("straße", "STRASSE"),
        ("ﬁsh", "fish"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("ıd", "ID"),
        ("a\u200db", "ab"),
        ("\u212b", "å"),
    ],
)
def test_stems_that_some_file_system_takes_for_one(one: str, other: str) -> None:
    assert one != other and key_of(one) == key_of(other)


@pytest.mark.parametrize(
    ("one", "other"), [("cafe", "café"), ("a b", "ab"), ("cat", "cats"), ("日本", "日木"), ("a-b", "a b")]
)
def test_stems_that_differ_everywhere(one: str, other: str) -> None:
    assert key_of(one) != key_of(other)


@pytest.mark.parametrize(
    ("caption", "stem"),
    [
        ("gpj\u202eexe", "gpjexe"),
        ("a\u200eb\u2066c\ufeff", "abc"),
        ("-rf", "rf"),
        ("~user", "user"),
        ("--", "image"),
        ("clock$", "image clock$"),
        ("CONIN$.x", "image CONIN$.x"),
        ("a\ufffeb\ufdd0c", "a b c"),
    ],
)
def test_names_that_would_do_harm(caption: str, stem: str) -> None:
    made = name_of(caption)
    assert (made.stem, made.is_whole) == (stem, False)


@pytest.mark.skipif(not SAMPLES.is_file(), reason="the collected captions are not here")
def test_collected_captions() -> None:
    for line in SAMPLES.read_text(encoding="utf-8", errors="replace").splitlines():
        cleaned = caption_of(line)
        assert normalise(cleaned) == cleaned and bool(cleaned) == bool(line.strip())
