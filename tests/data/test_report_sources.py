"""What `everydream inspect` says of the sources: roles, rules, pairs, groups."""

import pytest
from PIL import Image

from everydream.config import RunConfig
from everydream.plan import plan_run
from everydream.report.inspection import describe_inspection, inspect_report
from everydream.report.sources import describe_sources, source_facts


@pytest.fixture
def planned(tmp_path):
    """Return a function that plans a run of sources, given as (folder, images, settings)."""

    def plan(*sources):
        entries = []
        for folder, images, settings in sources:
            for name in images:
                (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (64, 64)).save(tmp_path / folder / name)
            entries.append({**({"path": str(tmp_path / folder)} if folder else {}), **settings})
        raw = {"model": {"path": "none"}, "data": {"sources": entries, "resolution": 64, "bucket_step": 16}}
        return plan_run(RunConfig.model_validate(raw))

    return plan


def numbered(count):
    return [f"{number}.png" for number in range(count)]


JOEPENNA = {"captions": "joepenna", "token": "effy", "class_word": "person"}
CLASS = {"role": "class", "captions": "joepenna", "class_word": "person"}


def test_rules_roles_and_pairs(planned):
    found = planned(
        ("effy", numbered(4), {**JOEPENNA, "repeats": 5.0}),
        ("dog", ["40_dog/1.png", "x.png"], {"captions": "kohya", "loss_scale": 0.5}),
        ("people", numbered(6), {**CLASS, "pairs_with": ["effy"], "loss_scale": 1.0}),
        ("faces", numbered(2), {**CLASS, "pairs_with": ["effy"]}),
        ("", [], {"role": "class", "name": "dogs", "generate": 8, "label": "a dog", "pairs_with": ["dog"]}),
        ("all", numbered(3), {"role": "class", "label": "a thing", "choose": 10}),
        ("real", numbered(2), {"role": "ground_truth"}),
    )
    assert describe_sources(found) == [
        "effy: 4 images, joepenna captions (S = effy, C = person), repeats 5: 20 draws an epoch = 21.7 %",
        "dog: 1 images, 1 rejected, kohya captions, repeats 1, loss_scale 0.5: 40 draws an epoch = 43.5 %",
        "people (class images of effy): 6 images, joepenna captions (C = person), as many draws together with faces as "
        "effy: 15 draws an epoch = 16.3 %",
        "faces (class images of effy): 2 images, joepenna captions (C = person), as many draws together with people as "
        "effy: 5 draws an epoch = 5.4 %",
        "dogs (class images of dog): 0 images, label captions, as many draws as dog, 8 more are made when training "
        "starts: 0 draws an epoch = 0.0 %",
        "all (class images of effy and dog): 3 images, label captions, choose 10: 10 draws an epoch = 10.9 %",
        "real (ground truth): 2 images, repeats 1: 2 draws an epoch = 2.2 %",
    ]
    facts = source_facts(found)
    assert facts[2] == {
        "name": "people", "role": "class", "captions": "joepenna", "images": 6, "rejected": 0, "draws": 15,
        "pairs_with": ["effy"],
    }  # fmt: skip
    assert [fact.get("pairs_with") for fact in facts] == [
        None, None, ["effy"], ["effy"], ["dog"], ["effy", "dog"], None]  # fmt: skip


def test_groups_are_counted_and_named(planned, tmp_path):
    for folder, group in (("a", "clip 1"), ("b", "clip 2")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        (tmp_path / "set" / folder / "local.yaml").write_text(f"group: {group}")
    names = ["a/1.png", "a/2.png", "a/3.png", "b/4.png", "b/5.png", "6.png"]
    found = planned(("set", names, {}))
    assert describe_sources(found) == [
        "set: 6 images, 5 of them in 2 groups of 2 to 3 that take turns, repeats 1: 3 draws an epoch = 100.0 %"
    ]
    report = inspect_report(found, len)
    assert report["sources"][0]["groups"] == {"clip 1": 3, "clip 2": 2}
    assert [(image["path"], image.get("group"), image["draws"]) for image in report["images"]] == [
        ("6.png", None, 1), ("a/1.png", "clip 1", 1), ("a/2.png", "clip 1", 0), ("a/3.png", "clip 1", 0),
        ("b/4.png", "clip 2", 1), ("b/5.png", "clip 2", 0)]  # fmt: skip
    assert report["epoch"]["draws"] == 3
    assert "5 of them in 2 groups" in describe_inspection(found, report)
    one = planned(("one", ["1.png"], {}))
    assert "groups" not in inspect_report(one, len)["sources"][0]


def test_of_wildcards_the_longest_choice_must_fit(planned, tmp_path):
    choices = "|".join(letter * 30 for letter in "abc")
    (tmp_path / "set" / "1_x").mkdir(parents=True)
    (tmp_path / "set" / "1_x" / "1.txt").write_text("{" + choices + "}")
    (tmp_path / "set" / "1_x" / "2.txt").write_text("{" + choices + "} ||| " + "d" * 60)
    found = planned(("set", ["1_x/1.png", "1_x/2.png"], {"captions": "kohya"}))
    warnings = [image["warnings"] for image in inspect_report(found, len)["images"]]
    assert warnings == [[], [f"caption has 92 tokens of 77; this tail is lost: {'d' * 15!r}"]]
