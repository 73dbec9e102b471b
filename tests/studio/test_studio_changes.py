"""Captions are written to the sidecars that count and nowhere else; every change can be taken back to the byte."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from studio.serving import Served, served, small_project, thing, tree

from everydream.config import load_config
from everydream.plan import plan_run
from everydream.studio.journal import Conflict, Entry, FileChange, Journal


@pytest.fixture
def at(tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path / "project"
    with served(small_project(folder), tmp_path / "journal.json") as found:
        yield found, folder


def edited(studio: Served, name: str, text: str, check: int = 200) -> Any:
    shown = studio.ask(f"/caption?id={quote(name)}")
    return studio.tell("/edit", check, id=name, text=text, stamp=shown["stamp"])


@pytest.mark.parametrize(
    ("number", "file", "was", "note"),
    [
        (0, "a picture of thing 0_(1).txt", "a picture of thing 0", "not in a text file yet"),
        (1, "a picture of thing 1_(1).txt", "red ball, on grass", ""),
        (2, "a picture of thing 2_(1).caption", "a red ball and a redder one", ""),
        (4, "a picture of thing 4_(1).txt", "a red ball of json", "now in a picture of thing 4_(1).json"),
    ],
)
def test_an_edit_writes_the_sidecar_that_counts_and_nothing_else(
    at: tuple[Served, Path], number: int, file: str, was: str, note: str
) -> None:
    studio, folder = at
    before = tree(folder)
    shown = studio.ask(f"/caption?id={quote(thing(number))}")
    assert (shown["text"], shown["file"]) == (was, file) and shown["note"].startswith(note)
    answer = edited(studio, thing(number), "  ein Bär,\n am   Fluß ")
    (image,) = answer["images"]
    assert (image["id"], image["caption"]) == (thing(number), "ein Bär, am Fluß")
    assert (folder / "mine" / file).read_text(encoding="utf-8") == "ein Bär,\nam Fluß\n"
    after = tree(folder)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {f"mine/{file}"}
    assert answer["undo"] == f"the caption of {thing(number)}" and answer["redo"] is None
    studio.tell("/undo")
    assert tree(folder) == before
    assert studio.tell("/redo")["images"][0]["caption"] == "ein Bär, am Fluß" and tree(folder) == after


def test_what_is_not_edited_here_says_why(at: tuple[Served, Path]) -> None:
    studio, folder = at
    twin = folder / "mine" / "a picture of thing 1_(1).jpg"
    shutil.copy(folder / "mine" / "a picture of thing 0_(1).png", twin)
    studio.tell("/look")
    before = tree(folder)
    reasons = {
        thing(3): "rewriting a YAML would lose its comments",
        thing(1): "would count for another file too",
        "real/a picture of thing 0_(1).png": "has the caption in its label",
    }
    for name, reason in reasons.items():
        assert reason in studio.ask(f"/caption?id={quote(name)}")["reason"]
        assert reason in studio.tell("/edit", 400, id=name, text="new", stamp="")["error"]
    assert "an empty" in edited(studio, thing(0), " \n ", 400)["error"]
    assert "at most 20,000" in edited(studio, thing(0), "a" * 20_001, 400)["error"]
    assert "zero bytes" in edited(studio, thing(0), "a\0b", 400)["error"]
    assert "cannot be written" in edited(studio, thing(0), "\ud800", 400)["error"]
    assert tree(folder) == before


def test_what_another_program_wrote_is_not_overwritten(at: tuple[Served, Path]) -> None:
    studio, folder = at
    file = folder / "mine" / "a picture of thing 1_(1).txt"
    stamp = studio.ask(f"/caption?id={quote(thing(1))}")["stamp"]
    file.write_text("by hand")
    answer = studio.tell("/edit", 409, id=thing(1), text="mine", stamp=stamp)
    assert "changed by another program" in answer["error"] and "'by hand'" in answer["error"]
    edited(studio, thing(1), "mine")
    file.write_text("by hand again")
    assert f"{file} was changed by another program since" in studio.tell("/undo", 409)["error"]
    assert file.read_text() == "by hand again"


def test_a_change_that_cannot_be_undone_can_be_forgotten(at: tuple[Served, Path]) -> None:
    studio, folder = at
    file = folder / "mine" / "a picture of thing 1_(1).txt"
    edited(studio, thing(0), "mine")
    edited(studio, thing(1), "mine too")
    file.write_text("by hand")
    studio.tell("/undo", 409)
    answer = studio.tell("/undo", drop=True)
    assert answer["said"].startswith("Forgotten") and answer["undo"] == f"the caption of {thing(0)}"
    assert file.read_text() == "by hand"
    assert studio.tell("/undo", drop=True)["said"].startswith("Taken back"), "what can be undone is undone"
    assert studio.tell("/undo", drop=True)["said"].startswith("There is nothing")


def test_a_file_beside_a_caption_is_left_alone(at: tuple[Served, Path]) -> None:
    studio, folder = at
    victim = folder / "victim.txt"
    victim.write_text("precious")
    beside = folder / "mine" / "a picture of thing 1_(1).txt.partial"
    beside.symlink_to(victim)
    before = tree(folder)
    edited(studio, thing(1), "new")
    after = tree(folder)
    assert beside.is_symlink() and victim.read_text() == "precious"
    assert {name for name in before | after if before.get(name) != after.get(name)} == {f"mine/{beside.stem}"}


def test_one_folder_of_two_sources_is_changed_once_or_not(tmp_path: Path) -> None:
    config = small_project(tmp_path)
    raw = json.loads(config.read_text())
    mine = raw["data"]["sources"][0]
    raw["data"]["sources"].append({**mine, "name": "again", "lines": "choose"})
    config.write_text(json.dumps(raw))
    file = tmp_path / "mine" / "a picture of thing 1_(1).txt"
    file.write_text("red ball\n")
    twin = thing(1).replace("mine/", "again/")
    wanted: dict[str, Any] = {"kind": "replace", "find": "red", "with": "blue", "ids": [thing(1), twin]}
    with served(config) as studio:
        answer = studio.tell("/apply", **wanted, digest=studio.tell("/preview", **wanted)["digest"])
        assert {image["id"]: image["caption"] for image in answer["images"]} == dict.fromkeys(
            wanted["ids"], "blue ball"
        )
        assert {image["id"] for image in studio.tell("/undo")["images"]} == set(wanted["ids"])
        assert file.read_text() == "red ball\n"
        answer = edited(studio, thing(1), "red ball\nred box")
        assert {image["id"] for image in answer["images"]} == set(wanted["ids"])
        shown = studio.tell("/preview", **wanted)
        assert shown["edits"] == [] and [name for name, _ in shown["refused"]] == wanted["ids"]
        assert "in different ways" in shown["refused"][0][1]


def test_a_second_studio_does_not_write_over_the_first(tmp_path: Path) -> None:
    file = tmp_path / "journal.json"
    one, two = Journal(file), Journal(file)
    for number in range(3):
        one.do(Entry(f"number {number}", [], [FileChange(tmp_path / f"{number}.txt", None, b"new")]))
    with pytest.raises(Conflict, match="Another studio of this project"):
        two.do(Entry("other", [], [FileChange(tmp_path / "other.txt", None, b"new")]))
    assert not (tmp_path / "other.txt").exists()
    one.undo()
    assert len(file.read_text().splitlines()) == 4, "a line for each change, after one that says all"
    file.write_text(file.read_text() + '{"do": ["cut sh')
    again = Journal(file)
    assert (again.next_undo, again.next_redo) == ("number 1", "number 2")


def test_a_preview_shows_what_apply_does_and_undo_takes_it_back_as_one(at: tuple[Served, Path]) -> None:
    studio, folder = at
    before = tree(folder)
    wanted = {"kind": "replace", "find": "red", "with": "blue", "ids": None}
    shown = studio.tell("/preview", **wanted)
    assert tree(folder) == before
    assert {name: (a, b) for name, (a,), (b,) in shown["edits"]} == {
        thing(1): ("red ball, on grass", "blue ball, on grass"),
        thing(2): ("a red ball and a redder one", "a blue ball and a redder one"),
        thing(4): ("a red ball of json", "a blue ball of json"),
    }
    assert [name for name, _ in shown["refused"]] == [thing(3)] and shown["same"] == 6
    answer = studio.tell("/apply", **wanted, digest=shown["digest"])
    assert {image["id"]: image["caption"] for image in answer["images"]} == {n: b for n, _, (b,) in shown["edits"]}
    assert answer["undo"] == "replace 'red' by 'blue' in 3 captions"
    assert "not those of the preview" in studio.tell("/apply", 409, **wanted, digest=shown["digest"])["error"]
    assert len(studio.tell("/undo")["images"]) == 3 and tree(folder) == before
    assert studio.tell("/undo")["said"].startswith("There is nothing")


def test_a_change_between_preview_and_apply_is_refused(at: tuple[Served, Path]) -> None:
    studio, folder = at
    wanted = {"kind": "add", "tag": "outside", "ids": [thing(1), thing(2)]}
    digest = studio.tell("/preview", **wanted)["digest"]
    (folder / "mine" / "a picture of thing 2_(1).caption").write_text("another")
    before = tree(folder)
    studio.tell("/apply", 409, **wanted, digest=digest)
    assert tree(folder) == before


@pytest.mark.parametrize(
    ("wanted", "result"),
    [
        ({"kind": "pattern", "find": r"(\w+) ball", "with": r"ball of \1"}, "ball of red, on grass"),
        ({"kind": "pattern", "find": "RED|grass", "with": "x", "ignore_case": True}, "x ball, on x"),
        ({"kind": "add", "tag": " outside, "}, "red ball, on grass, outside"),
        ({"kind": "add first", "tag": "outside"}, "outside, red ball, on grass"),
        ({"kind": "remove", "tag": "on grass"}, "red ball"),
        ({"kind": "remove", "tag": "On Grass", "ignore_case": True}, "red ball"),
        ({"kind": "add", "tag": "red ball"}, None),
        ({"kind": "remove", "tag": "grass"}, None),
    ],
)
def test_ways_to_change_captions(at: tuple[Served, Path], wanted: dict[str, Any], result: str | None) -> None:
    edits = at[0].tell("/preview", **wanted, ids=[thing(1)])["edits"]
    assert edits == ([[thing(1), ["red ball, on grass"], [result]]] if result else [])


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"kind": "pattern", "find": "(red", "with": ""}, "cannot be used: missing ) at position 4"),
        ({"kind": "pattern", "find": "red", "with": r"\9"}, "cannot be used: invalid group reference"),
        ({"kind": "replace", "find": " ", "with": "x"}, "nothing to find"),
        ({"kind": "add", "tag": ","}, "no tag to add"),
        ({"kind": "delete everything"}, "There is no change 'delete everything'; there are replace, pattern"),
        ({"kind": "replace", "find": 5}, "`find` is not a text"),
    ],
)
def test_a_change_that_cannot_be_is_told(at: tuple[Served, Path], wanted: dict[str, Any], error: str) -> None:
    assert error in at[0].tell("/preview", 400, **wanted, ids=None)["error"]


def test_a_pattern_that_never_ends_is_given_up(at: tuple[Served, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    studio, folder = at
    monkeypatch.setattr("everydream.studio.edits._PATIENCE_S", 0.3)
    (folder / "mine" / "a picture of thing 1_(1).txt").write_text("a" * 60 + "!")
    error = studio.tell("/preview", 400, kind="pattern", find="(a|aa)+$", **{"with": "b"}, ids=None)["error"]
    assert "takes longer than" in error


def test_variants_are_changed_one_by_one(tmp_path: Path) -> None:
    config = small_project(tmp_path)
    raw = json.loads(config.read_text())
    raw["data"]["sources"][0]["lines"] = "choose"
    config.write_text(json.dumps(raw))
    file = tmp_path / "mine" / "a picture of thing 1_(1).txt"
    file.write_text("one red\n\ntwo blue\n")
    with served(config) as studio:
        shown = studio.ask(f"/caption?id={quote(thing(1))}")
        assert (shown["text"], shown["lines"]) == ("one red\ntwo blue", "choose")
        wanted = {"kind": "replace", "find": "red", "with": "green", "ids": [thing(1)]}
        found = studio.tell("/preview", **wanted)
        assert found["edits"] == [[thing(1), ["one red", "two blue"], ["one green", "two blue"]]]
        studio.tell("/apply", **wanted, digest=found["digest"])
    assert file.read_text() == "one green\ntwo blue\n"


def test_what_is_switched_off_does_not_train(at: tuple[Served, Path]) -> None:
    studio, folder = at
    config, before = folder / "project.yaml", tree(folder)
    page = studio.raw("GET", "/")[1].decode()
    assert "switched off</dt>" not in page
    answer = studio.tell("/switch", ids=[thing(0), thing(5)], off=True)
    assert [(image["id"], image["off"]) for image in answer["images"]] == [(thing(0), True), (thing(5), True)]
    assert set(tree(folder)) - set(before) == {"project.excluded.txt"}
    planned = plan_run(load_config(config))
    assert list(planned.index.switched_off) == [thing(0), thing(5)] and not planned.index.unknown_off
    # Four of mine, one of them twice; and the four real ones.
    assert int(planned.mix.counts(0).sum()) == 9
    page = studio.raw("GET", "/")[1].decode()
    assert "<dt>switched off</dt><dd>2</dd>" in page and '"off":[8,9]' in page
    studio.tell("/switch", ids=[thing(5)], off=False)
    assert list(plan_run(load_config(config)).index.switched_off) == [thing(0)]
    studio.tell("/undo")
    assert len(plan_run(load_config(config)).index.switched_off) == 2
    studio.tell("/undo")
    # The list stays, empty: a run begun meanwhile names it.
    after = tree(folder)
    assert after.pop("project.excluded.txt") and after == before
    assert not plan_run(load_config(config)).index.switched_off
    assert studio.tell("/redo")["images"][0]["off"]


def test_all_images_may_be_off(at: tuple[Served, Path]) -> None:
    studio, _ = at
    answer = studio.tell("/switch", ids=list(studio.studio.library.found), off=True)
    assert all(image["off"] for image in answer["images"])
    assert studio.raw("GET", "/")[0] == 200


def test_changes_survive_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    config, before = small_project(folder), tree(folder)
    with served(config, tmp_path / "journal.json") as studio:
        edited(studio, thing(0), "new")
    with served(config, tmp_path / "journal.json") as studio:
        assert studio.tell("/undo")["images"][0]["caption"] == "a picture of thing 0"
    assert tree(folder) == before
    (tmp_path / "journal.json").write_text("broken")
    assert Journal(tmp_path / "journal.json").next_undo is None


def test_a_change_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.json")
    good, other = tmp_path / "good.txt", tmp_path / "other.txt"
    other.write_bytes(b"not what is expected")
    with pytest.raises(Conflict, match=r"other\.txt was changed by another program"):
        journal.do(Entry("both", [], [FileChange(good, None, b"new"), FileChange(other, b"old", b"new")]))
    assert not good.exists() and journal.next_undo is None
    # A kill came after the first of two files: the rest is as it was before, and the whole is taken back.
    journal.do(Entry("both", [], [FileChange(good, None, b"new"), FileChange(other, other.read_bytes(), b"new")]))
    other.write_bytes(b"not what is expected")
    Journal(tmp_path / "journal.json").undo()
    assert not good.exists() and other.read_bytes() == b"not what is expected"
