"""Each fact of the inspection, on sets small enough to count."""

import numpy as np
import pytest
from transformers import CLIPTokenizer

from everydream.data.likeness import Cluster
from everydream.data.looking import SIDE, Look
from everydream.data.settings import SourceSettings
from everydream.models.common.token_reader import TokenReader
from everydream.models.common.tokenizer_files import PACKAGED
from everydream.report.balance import suggested
from everydream.report.buckets import crop_window
from everydream.report.colours import backgrounds, dominant_colours, recurring_backgrounds
from everydream.report.duplicates import duplicates, measured_first
from everydream.report.findings import LEVELS, findings
from everydream.report.images import KINDS, kind_of
from everydream.report.lint import misspelled, repeated_captions, tag_variants, token_problem
from everydream.report.steps import accumulations, batch_sizes
from everydream.report.tokens import lengths, names_of_subjects
from everydream.report.words import frequencies, recurring_phrases, words_of


@pytest.fixture(scope="session")
def reader():
    return TokenReader()


def test_tokens_are_those_of_the_real_tokenizer(reader):
    """transformers' CLIPTokenizer, on what captions hold."""
    texts = [
        "a photo of a dog", "", " two   spaces\tand tab", "Ünïcödé 日本語, タグ", "it's 2024-01-01 (((weighted:1.2)))",
        "<|endoftext|> inside", "😀 emoji 👩‍👩‍👧", "don't they'll SKS ohwx", "龘靐齉尾巴", "a<b>&c_d\u200be", "x" * 200,
    ]  # fmt: skip
    theirs = CLIPTokenizer.from_pretrained(PACKAGED, local_files_only=True)
    assert reader.counts(texts) == [len(theirs(text, truncation=False, verbose=False).input_ids) for text in texts]
    for text in texts:
        assert reader.pieces(text) == theirs.tokenize(text)
    assert reader.counts(["a \udcff b"]) == reader.counts(["a ? b"])


def test_words_and_tags_are_counted_once_a_caption():
    captions = ["a red dog, red, big", "the Red cat, BIG", "one dog"]
    found = frequencies(captions)
    assert found["words"] == [["big", 2], ["dog", 2], ["red", 2], ["cat", 1]] and found["num_words"] == 4
    assert found["tags"] == [["big", 2], ["a red dog", 1], ["red", 1], ["the red cat", 1]]
    assert words_of("It's a well-known 日本語_x!") == ("it's", "a", "well-known", "日本語", "x")


def test_what_recurs_in_most_captions_is_the_longest_phrase():
    captions = [f"portrait of effy on a white wall, {thing}" for thing in ("hat", "cup", "book", "dog")] + ["a cat"]
    assert recurring_phrases(captions) == [["portrait of effy on a white wall", 4]]
    assert recurring_phrases(["red barn at night", "red barn by day"] * 2) == []  # fewer than five
    some = ["red barn", "red barn", "red barn, a field", "a field", "a field, red barn", "x"]
    assert recurring_phrases(some) == [["red barn", 4], ["a field", 3]]


def test_repeated_captions_and_variants_of_tags():
    assert repeated_captions(["a"] * 3 + ["b"] * 2 + ["c"] * 4) == [["c", 4], ["a", 3]]
    captions = ["Blue eyes, hat", "blue eyes, hats", "blue-eyes, hat", "smile"]
    assert tag_variants(captions) == [
        [["Blue eyes", 1], ["blue eyes", 1], ["blue-eyes", 1]], [["hat", 2], ["hats", 1]]]  # fmt: skip
    assert tag_variants(["one, two", "three"]) == []


def test_rare_words_beside_frequent_ones_may_be_misspelled(reader):
    captions = ["a white background"] * 10 + ["a white backround", "a white backgruond", "a playground", "underground"]
    assert misspelled(captions, reader.pieces) == [
        ["backgruond", 1, "background", 10], ["backround", 1, "background", 10]]  # fmt: skip
    # Words of the vocabulary are words, however near.
    assert misspelled(["a house of stone"] * 10 + ["a horses head", "a mouses tail"], reader.pieces) == []


def test_names_of_subjects(reader):
    ranks = reader.rank_of
    assert "ordinary word" in (token_problem("dog", reader.pieces("dog"), ranks) or "")
    assert "5 common pieces" in (token_problem("xx", ["a</w>"] * 5, ranks) or "")
    assert token_problem("sks", reader.pieces("sks"), ranks) is None
    joe = SourceSettings(path="x", captions="joepenna", token="dog", class_word="animal")
    (row,) = names_of_subjects(joe, ["dog animal"] * 4, reader)
    assert row["pieces"] == ["dog</w>"] and row["captions"] == 4 and "ordinary word" in row["problem"]
    rows = names_of_subjects(SourceSettings(path="x"), ["a dog", "the dog runs", "a cat"], reader)
    assert rows == [{"word": "dog", "captions": 2, "pieces": ["dog</w>"]}]
    (row,) = names_of_subjects(SourceSettings(path="x"), ["a theredcarpetman", "his theredcarpetman"], reader)
    assert row["problem"].startswith('"theredcarpetman" is read as 5 common pieces (the red car pet man)')
    assert names_of_subjects(SourceSettings(path="x"), ["theredcarpetman"] * 2, reader, {"theredcarpetman"}) == []


def test_lengths_of_captions():
    found = lengths([3, 4, 9, 78, 77], 1)
    assert found["most"] == 77 and found["cut"] == 1 and found["longest"] == 78 and found["mean"] == 34.2
    assert [bar for bar in found["bars"] if bar[1]] == [[0, 2], [5, 1], [75, 2]]
    assert lengths([78], 2)["cut"] == 0 and lengths([], 1)["bars"] == []


def flat(colour: tuple[int, int, int], middle: tuple[int, int, int] | None = None) -> Look:
    small = np.full((SIDE, SIDE, 3), colour, np.uint8)
    if middle is not None:
        small[6:18, 6:18] = middle
    return Look(64, 64, small.tobytes()[:16], 0, 0, small.tobytes())


def test_backgrounds_and_colours():
    noisy = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    looks = [flat((255, 255, 255), (200, 0, 0)), flat((250, 252, 255)), flat((0, 0, 0)), None,
             Look(1, 1, b"", 0, 0, noisy.tobytes())]  # fmt: skip
    names = backgrounds(looks)
    assert names == ["white", "white", "black", None, None]
    assert recurring_backgrounds(names) == [["white", 2]]
    colours = dominant_colours(looks[:3])
    assert [colour["name"] for colour in colours] == ["white", "black", "red"]
    assert colours[2]["rgb"] == "#c80000" and colours[2]["share"] == pytest.approx(1 / 12, abs=1e-3)
    assert dominant_colours([None]) == []


def place(name: str, part: str = "training", source: str = "mine") -> dict[str, object]:
    return {"source": source, "path": name, "part": part, "record": 0}


def test_duplicates_across_what_is_trained_and_measured_come_first():
    places = [place("a"), place("b"), place("c", "ground truth", "real"), place("d", "held out", "real"), place("e")]
    found = duplicates(places, [Cluster("near", [0, 1, 4]), Cluster("same", [2, 3]), Cluster("mirrored", [1, 3])])
    assert [item["leak"] for item in found] == [True, False, False]
    assert found[0]["parts"] == ["ground truth", "held out"] and found[0]["sources"] == ["real"]
    assert [item["kind"] for item in found] == ["same", "near", "mirrored"]
    assert measured_first(places) == [3, 0, 1, 2, 4]


def test_suggested_repeats_even_out_the_draws():
    facts = [{"source": "s", "folder": name, "images": n, "draws": n} for name, n in (("a", 40), ("b", 10), ("c", 20))]
    assert [fact["multiply"] for fact in suggested(facts)] == [0.5, 2.0, 1.0]
    even = [{"source": "s", "folder": name, "images": n, "draws": n} for name, n in (("a", 12), ("b", 10))]
    assert suggested(even) == even


def test_batch_sizes_by_how_full_their_batches_are():
    rows = {row["batch_size"]: row for row in batch_sizes(np.array([12, 9]), 6, 2)}
    assert rows[3] == {"batch_size": 3, "batches": 7, "smaller": 0, "full": 1.0, "steps": 4}
    assert rows[6] == {"batch_size": 6, "batches": 4, "smaller": 1, "full": 0.875, "steps": 2}
    assert sorted(rows) == [3, 4, 5, 6, 12]
    assert accumulations(7, 4) == [
        {"accumulation": 1, "steps": 7, "last_step": 0}, {"accumulation": 2, "steps": 4, "last_step": 1},
        {"accumulation": 3, "steps": 3, "last_step": 1}, {"accumulation": 4, "steps": 2, "last_step": 3},
    ]  # fmt: skip


def test_the_middle_crop_in_shares_of_the_image():
    assert crop_window((200, 100), (64, 64)) == [0.25, 0, 0.5, 1]
    assert crop_window((64, 64), (64, 64)) == [0, 0, 1, 1]


def test_kinds_of_warnings_are_those_that_the_scan_gives():
    from everydream.data.captions import lint

    said = {
        "copy's name": lint("dog (1)", "dog (1)"), "number as caption": lint("001", "001"),
        "camera name": lint("IMG", "IMG_1234"), "hash in caption": lint("x 0123456789abcdef", "y"),
        "lone S or C": lint("size S shirt", "y"), "invisible characters": lint("a\u200bb", "y"),
        "tags twice": lint("Hat, hat", "y"),
    }  # fmt: skip
    for kind, warnings in said.items():
        assert kind in {kind_of(warning) for warning in warnings}, (kind, warnings)
    assert kind_of("something new") == "other" and "enlarged" in KINDS


def nothing_found() -> dict[str, object]:
    return {
        "rejected": [], "switched_off": {"unknown": []}, "duplicates": [], "source_warnings": {}, "captions": {},
        "colours": {}, "images": [],
        "tokens": {"cut": 0, "captions": 0, "most": 77}, "balance": [], "plan": {"batch_sizes": [], "batch_size": 4},
    }  # fmt: skip


def test_findings_are_worst_first_and_say_what_to_do():
    facts = nothing_found()
    assert findings(facts) == []
    images = [{"source": "s", "path": f"{n}.png", "warnings": ["enlarged 2.00 times: x"]} for n in range(4)]
    leak = {"kind": "near", "members": [place("a"), place("b", "held out")], "parts": ["held out", "training"],
            "sources": ["mine"], "leak": True}  # fmt: skip
    facts |= {
        "images": images, "duplicates": [leak], "rejected": [{"path": "x"}],
        "tokens": {"cut": 3, "captions": 4, "most": 77},
        "balance": [{"source": "s", "folder": "a", "draws": 9, "multiply": 1.0},
                    {"source": "s", "folder": "b", "draws": 2, "multiply": 4.5}],
        "colours": {"s": {"role": "training", "images": 60, "backgrounds": [["white", 38]]}},
        "plan": {"batch_size": 6, "batch_sizes": [{"batch_size": 1, "full": 1.0, "smaller": 0, "batches": 20},
                                                  {"batch_size": 8, "full": 0.9, "smaller": 1, "batches": 3},
                                                  {"batch_size": 6, "full": 0.8, "smaller": 1, "batches": 4}]},
    }  # fmt: skip
    found = findings(facts)
    assert [LEVELS.index(item["level"]) for item in found] == sorted(LEVELS.index(item["level"]) for item in found)
    by_kind = {item["kind"]: item for item in found}
    assert set(by_kind) == {"rejected", "leak", "duplicates: near", "captions: cut", "balance", "batches", "enlarged",
                            "learned: background"}  # fmt: skip
    assert by_kind["leak"]["images"] == ["mine/a", "mine/b"] and by_kind["leak"]["level"] == "problem"
    assert by_kind["learned: background"]["text"] == "s: 38 of 60 images have a white background."
    assert "train.batch_size=8 fills 90 %" in by_kind["batches"]["advice"]
    assert by_kind["enlarged"]["text"].endswith(": 4.") and by_kind["enlarged"]["level"] == "warning"
