"""Which rows are taken up."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrapers.captions import caption_of
from scrapers.domains import domain_of, host_of
from scrapers.errors import ScrapeError
from scrapers.filters import compile_filters, needed_fields, needs_of, refuse_size
from scrapers.licences import is_named, licence_at
from scrapers.settings import FilterSettings, ScrapeSettings
from scrapers.types import Reason, Row
from scrapers.words import fold, holds_phrase


def judge(filters: dict[str, Any], caption: str = "a barn", url: str = "https://example.org/a.jpg", **row: Any) -> str:
    """Return the reason's value and its detail; "" for a row that is taken up."""
    verdict = compile_filters(FilterSettings(**filters))(Row(0, "list:0", url, caption, **row), caption_of(caption))
    return f"{verdict.reason.value} {verdict.detail}".strip() if verdict else ""


def test_without_filters_all_that_has_a_caption_passes() -> None:
    assert judge({}) == "" and judge({}, url="") == ""
    assert judge({}, caption=" <br> ") == "no_caption"


@pytest.mark.parametrize(
    ("caption", "phrase", "is_there"),
    [
        ("a Cat, sitting", "cat", True),
        ("A CAT", "Cat", True),
        ("category", "cat", False),
        ("cats", "cat", False),
        ("bobcat", "cat", False),
        ("cat2", "cat", False),
        ("category of a cat", "cat", True),  # the second place counts too
        ("black-cat", "cat", True),
        ("the cat's tail", "cat", True),
        ("the cat’s tail", "cat's", True),
        ("big_cat", "cat", True),
        ("a big  cat", "big cat", True),
        ("big-cat", "big cat", False),
        ("Crème BRÛLÉE", "brûlée", True),
        ("creme brulee", "brûlée", False),
        ("cafe\u0301 noir", "café", True),
        ("Straße", "STRASSE", True),
        ("КОШКА спит", "кошка", True),
        ("кошками", "кошка", False),
        ("黒い猫です", "猫", True),
        ("可爱的小狗", "小狗", True),
        ("แมวดำ", "แมว", True),
        ("黒いcatです", "cat", True),
        ("हिन्दी", "हिन्द", False),
        ("ＣＡＴ", "cat", True),
        ("c++ primer", "c++", True),
        ("abc++", "c++", False),
        ("a.b", "a.b", True),
        ("axb", "a.b", False),
        ("smile :(", "(", True),
        ("no brackets", "(", False),
        ("back\\slash .*", ".*", True),
    ],
)
def test_whole_words_in_any_case_and_no_patterns(caption: str, phrase: str, is_there: bool) -> None:
    assert judge({"with_any": [phrase]}, caption) == ("" if is_there else "words")
    assert judge({"with_all": [phrase]}, caption) == ("" if is_there else f"words lacks {phrase}")
    assert judge({"without": [phrase]}, caption) == (f"unwanted_words {phrase}" if is_there else "")


def test_words_together() -> None:
    filters = {"with_any": ["dog", "cat"], "with_all": ["red", "hat"], "without": ["logo"]}
    assert judge(filters, "cat in a red hat") == ""
    assert judge(filters, "cat in a hat") == "words lacks red"
    assert judge(filters, "cow in a red hat") == "words"
    assert judge(filters, "dog in a red hat, logo") == "unwanted_words logo"


WORDS = st.lists(
    st.text(st.characters(categories=["Lu", "Ll", "Nd"], max_codepoint=0x52F), min_size=1), min_size=1, max_size=4
)


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS)
def test_a_phrase_is_found_exactly_as_a_run_of_words(words: list[str], phrase: list[str]) -> None:
    have, want = (fold(" ".join(part)).split() for part in (words, phrase))
    expected = any(have[i : i + len(want)] == want for i in range(len(have)))
    assert holds_phrase(fold(" ".join(words)), fold(" ".join(phrase))) == expected


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (512, 512, None), (511, 512, Reason.TOO_SMALL), (512, 511, Reason.TOO_SMALL), (1024, 512, None),
        (1025, 512, Reason.ASPECT), (512, 1025, Reason.ASPECT), (None, 511, Reason.TOO_SMALL), (None, 5000, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_sizes(width: int | None, height: int | None, reason: Reason | None) -> None:
    filters = FilterSettings(min_width=512, min_height=512, max_aspect=2.0)
    verdict = refuse_size(width, height, filters)
    assert (verdict and verdict.reason) == reason
    judged = judge({"min_width": 512, "min_height": 512, "max_aspect": 2.0}, width=width, height=height)
    assert judged.split(" ")[0] == (reason.value if reason else "")


@pytest.mark.parametrize(
    ("setting", "name", "limit", "good", "bad", "reason"),
    [
        ("min_aesthetic", "aesthetic", 6.0, [6.0, 9.0], [5.99, -1.0], "aesthetic"),
        ("min_similarity", "similarity", 0.3, [0.3, 1.0], [0.29], "similarity"),
        ("max_unsafe", "unsafe", 0.1, [0.1, 0.0], [0.11, 1.0], "unsafe"),
        ("max_watermark", "watermark", 0.5, [0.5, 0.0], [0.51], "watermark"),
    ],
)
def test_scores(setting: str, name: str, limit: float, good: list[float], bad: list[float], reason: str) -> None:
    for score in good:
        assert judge({setting: limit}, **{name: score}) == ""
    for score in bad:
        assert judge({setting: limit}, **{name: score}) == f"{reason} {score:.3g}"
        assert judge({}, **{name: score}) == ""
    assert judge({setting: limit}) == f"unknown_score {name}"
    assert judge({setting: limit, "unknown_scores": "keep"}) == ""


@pytest.mark.parametrize(
    ("label", "unsafe", "expected"),
    [
        ("UNLIKELY", None, ""), ("unlikely ", None, ""), ("UNSURE", None, "unsafe UNSURE"),
        ("NSFW", None, "unsafe NSFW"),
        ("NSFW", 0.01, "unsafe NSFW"), ("UNLIKELY", 0.5, "unsafe 0.5"), ("UNLIKELY", 0.01, ""),
        ("SOMETHING", None, "unknown_score unsafe"), ("SOMETHING", 0.01, ""),
    ],
)  # fmt: skip
def test_labels_and_probabilities_must_agree(label: str, unsafe: float | None, expected: str) -> None:
    assert judge({"max_unsafe": 0.1}, nsfw=label, unsafe=unsafe) == expected
    assert judge({}, nsfw=label, unsafe=unsafe) == ""


@pytest.mark.parametrize(
    ("licence", "url", "named", "is_accepted"),
    [
        ("CC BY 2.0", "", ["CC BY"], True), ("cc-by-4.0", "", ["CC BY"], True), ("CC BY-NC 2.0", "", ["CC BY"], False),
        ("CC BY NC", "", ["CC BY"], False), ("CC BY-NC-SA 4.0", "", ["CC BY-NC"], False),
        ("CC BY-NC 2.0", "", ["cc by-nc"], True),
        ("Attribution-NonCommercial License", "", ["Attribution"], False),
        ("Attribution License", "", ["Attribution"], True),
        ("Public Domain Mark 1.0", "", ["CC BY", "public domain"], True), ("Public", "", ["Public Domain"], False),
        ("?", "", ["CC BY"], False), ("", "", ["CC BY"], False),
        ("Attribution License", "https://creativecommons.org/licenses/by/2.0/", ["CC BY"], True),
        ("X", "http://creativecommons.org/licenses/by-nc/2.0/", ["CC BY"], False),
        ("", "https://creativecommons.org/publicdomain/zero/1.0/", ["CC0"], True),
        ("", "https://creativecommons.org/publicdomain/mark/1.0/", ["Public Domain"], True),
    ],
)  # fmt: skip
def test_licences(licence: str, url: str, named: list[str], is_accepted: bool) -> None:
    assert (is_named(licence, named) or is_named(licence_at(url), named)) == is_accepted
    detail = licence or "unknown"
    assert judge({"licences": named}, licence=licence, licence_url=url) == ("" if is_accepted else f"licence {detail}")


def test_languages() -> None:
    assert judge({"languages": ["en"]}, language="EN") == judge({"languages": ["en"]}, language="en-GB") == ""
    assert judge({"languages": ["en"]}, language="enm") == "language enm"
    assert judge({"languages": ["en"]}) == "language unknown"
    assert judge({}, language="xx") == ""


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://example.org/a", "example.org"),
        ("HTTPS://Example.ORG./a", "example.org"),
        ("http://example.org", "example.org"),
        ("http://user:pw@evil.com:8080/x", "evil.com"),
        ("http://example.org:80@evil.com/x", "evil.com"),
        ("http://example.org?.evil.com", "example.org"),
        ("http://bücher.de/x", "xn--bcher-kva.de"),
        ("http://[2001:db8::1]/x", "2001:db8::1"),
        ("http://[broken/x", None),
        ("no url", None),
        ("", None),
        ("ffhq/00000/00012.png", None),
    ],
)
def test_hosts(url: str, host: str | None) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("url", "is_below"),
    [
        ("https://example.org/a", True), ("https://a.b.example.org/a", True), ("https://notexample.org/a", False),
        ("https://example.org.evil.com/a", False), ("https://evil.com/example.org", False),
        ("https://example.org@evil.com/", False), ("https://evil.com@EXAMPLE.org:8443/", True),
        ("https://org/", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("domain", ["example.org", " *.Example.org", ".example.org.", "https://example.org/x"])
def test_domains(url: str, is_below: bool, domain: str) -> None:
    host = host_of(url)
    assert judge({"domains": [domain]}, url=url) == ("" if is_below else f"domain {host}")
    assert judge({"without_domains": [domain]}, url=url) == (f"domain {host}" if is_below else "")


def test_domains_and_urls_without_a_host() -> None:
    assert judge({"domains": ["example.org"]}, url="") == "domain no host"
    assert judge({"without_domains": ["example.org"]}, url="") == ""  # it ends as bad_url
    assert domain_of("bücher.de") == "xn--bcher-kva.de"
    assert judge({"without_domains": ["bücher.de"]}, url="http://img.xn--bcher-kva.de/a") != ""


def test_settings_that_make_no_sense_come_at_once() -> None:
    with pytest.raises(ScrapeError) as error:
        compile_filters(FilterSettings(with_any=[" "], domains=["a b", ""], without_domains=["x/y"]))
    text = str(error.value)
    assert text.count("\n") == 3 and 'filters.domains: "a b" is not a domain' in text and "filters.with_any" in text


def test_one_reason_and_a_fixed_order() -> None:
    filters = {
        "min_width": 512,
        "min_aesthetic": 6.0,
        "max_unsafe": 0.1,
        "without": ["logo"],
        "without_domains": ["x.org"],
    }
    bad: dict[str, Any] = {"caption": "a logo", "url": "https://x.org/", "width": 10, "aesthetic": 1.0, "unsafe": 1.0}
    cures: list[dict[str, Any]] = [
        {"width": 600},
        {"aesthetic": 7.0},
        {"unsafe": 0.0},
        {"url": "https://y.org/"},
        {"caption": "b"},
    ]
    seen = []
    for cure in [{}, *cures]:
        bad |= cure
        seen.append(judge(filters, **bad).partition(" ")[0])
    assert seen == ["too_small", "aesthetic", "unsafe", "domain", "unwanted_words", ""]


def test_needed_fields_name_the_setting() -> None:
    assert needed_fields(FilterSettings()) == {}
    filters = FilterSettings(min_aesthetic=5.0, max_aspect=2.0, min_width=64, without_domains=["x.org"])
    assert needed_fields(filters) == {
        "aesthetic": "filters.min_aesthetic", "width": "filters.min_width", "height": "filters.max_aspect",
        "url": "filters.without_domains",
    }  # fmt: skip
    assert set(needed_fields(FilterSettings(max_unsafe=0.1))) == {"unsafe", "nsfw"}


def test_needs_of_a_run() -> None:
    source = {"kind": "laion", "files": ["x"]}
    filters = {"min_aesthetic": 5.0, "languages": ["en"]}

    def needs(**changes: Any) -> Any:
        return needs_of(ScrapeSettings.model_validate({"source": source, "filters": filters, **changes}))

    assert set(needs().required) == {"aesthetic", "language", "caption"}
    assert "caption" not in needs(captions={"text": "a person"}).wanted
    kept = needs(filters={**filters, "unknown_scores": "keep"})
    assert set(kept.required) == {"language", "caption"} and "aesthetic" in kept.wanted
