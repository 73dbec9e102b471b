import pytest

from everydream.data.folders import CHECKS, FolderSettings, Resolved, check_value, resolve
from everydream.data.settings import CaptionSettings, SourceSettings
from everydream.data.texts import BadText


def settings(tmp_path, files, folder=""):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return {key: setting.value for key, setting in FolderSettings(tmp_path).values(folder).items()}


@pytest.mark.parametrize(("file", "content", "found"), [
    ("multiply.txt", " 2.5\n", {"multiply": 2.5}),
    ("multiply.txt", "\ufeff0", {"multiply": 0.0}),
    ("MULTIPLY.TXT", "3", {"multiply": 3.0}),
    ("cond_dropout.txt", "0.1", {"cond_dropout": 0.1}),
    ("flip_p.txt", "1", {"flip_p": 1.0}),
    ("loss_scale.txt", "0.5", {"loss_scale": 0.5}),
    ("batch_id.txt", " faces \n", {"batch_id": "faces"}),
    ("shuffle_tags.txt", "", {"shuffle_tags": True}),
    ("shuffle_tags.txt", "anything", {"shuffle_tags": True}),
    ("local.yaml", "multiply: '2'", {"multiply": 2.0}),  # text: EveryDream2 died of it
    ("local.yml", "keep_tags: 2\nshuffle_tags: yes", {"keep_tags": 2, "shuffle_tags": True}),
    ("local.yaml", "shuffle_tags: 'no'\nkeep_tags: '3'", {"shuffle_tags": False, "keep_tags": 3}),
    ("global.yaml", "batch_id: 7", {"batch_id": "7"}),
    ("global.yaml", "", {}),
    ("other.txt", "2", {}),
])  # fmt: skip
def test_setting_files(file, content, found, tmp_path):
    assert settings(tmp_path, {file: content}) == found


@pytest.mark.parametrize(("folder", "found"), [
    ("", {"flip_p": 0.1, "loss_scale": 2.0, "multiply": 2.0}),
    ("a", {"flip_p": 0.2, "loss_scale": 2.0, "cond_dropout": 0.5}),  # multiply.txt is of its folder only
    ("a/b", {"flip_p": 0.2, "loss_scale": 2.0, "multiply": 5.0, "keep_tags": 1}),
    ("a/b/c", {"flip_p": 0.2, "loss_scale": 2.0, "keep_tags": 1}),
    ("elsewhere/not/there", {"flip_p": 0.1, "loss_scale": 2.0}),
])  # fmt: skip
def test_nearest_wins_key_by_key(folder, found, tmp_path):
    files = {
        "global.yaml": "flip_p: 0.1\nloss_scale: 2",
        "multiply.txt": "2",
        "a/global.yaml": "flip_p: 0.2",
        "a/cond_dropout.txt": "0.5",
        "a/b/global.yaml": "multiply: 4\nkeep_tags: 1",
        "a/b/local.yaml": "multiply: 5",
        "a/b/c/local.yaml": "keep_tags: 1",
        "a/b/c/global.yaml": "multiply: 9",
        "a/b/c/multiply.txt": "3",
    }
    if folder == "a/b/c":
        found = {**found, "multiply": 3.0}
    assert settings(tmp_path, files, folder) == found


@pytest.mark.parametrize(("file", "content", "message"), [
    ("multiply.txt", "two", "sub/multiply.txt: multiply is 'two', expected a number of at least 0"),
    ("multiply.txt", "-1", "sub/multiply.txt: multiply is '-1', expected a number of at least 0"),
    ("multiply.txt", " ", "sub/multiply.txt: multiply is empty, expected a number of at least 0"),
    ("multiply.txt", "nan", "sub/multiply.txt: multiply is 'nan', expected a number of at least 0"),
    ("multiply.txt", "inf", "sub/multiply.txt: multiply is 'inf', expected a number of at least 0"),
    ("flip_p.txt", "1.5", "sub/flip_p.txt: flip_p is '1.5', expected a number from 0 to 1"),
    ("cond_dropout.txt", "4%", "sub/cond_dropout.txt: cond_dropout is '4%', expected a number from 0 to 1"),
    ("batch_id.txt", "\n", "sub/batch_id.txt: batch_id is empty, expected a text"),
    ("shuffle_tags.txt", "False", 'sub/shuffle_tags.txt: says "False", but its presence switches shuffling on; '
     "delete it, or write shuffle_tags: false in local.yaml"),
    ("local.yaml", "\nmultiply: true", "sub/local.yaml, line 2: multiply is True, expected a number of at least 0"),
    ("local.yaml", "keep_tags: 1.5", "sub/local.yaml, line 1: keep_tags is 1.5, expected a whole number of at least 0"),
    ("local.yaml", "shuffle_tags: 2", "sub/local.yaml, line 1: shuffle_tags is 2, expected true or false"),
    ("local.yaml", "batch_id: [a]", "sub/local.yaml, line 1: batch_id is ['a'], expected a text"),
    ("local.yaml", "multiply:", "sub/local.yaml, line 1: multiply is empty, expected a number of at least 0"),
    ("local.yaml", "group: ''", "sub/local.yaml, line 1: group is empty, expected a text"),
    ("global.yaml", "mutliply: 2", "sub/global.yaml, line 1: unknown key `mutliply`; did you mean `multiply`?"),
    ("global.yaml", "main_prompt: a", "sub/global.yaml, line 1: `main_prompt` belongs in an image's own .yaml"),
    ("global.yaml", "[1, 2]", "sub/global.yaml, line 1: expected `key: value` lines, found a list"),
    ("global.yaml", "a: [", "sub/global.yaml, line 1: not valid YAML"),
])  # fmt: skip
def test_bad_values_name_the_file(file, content, message, tmp_path):
    with pytest.raises(BadText) as caught:
        settings(tmp_path, {f"sub/{file}": content}, "sub")
    assert str(caught.value).startswith(message)


def test_a_bad_file_counts_where_it_would_have_counted(tmp_path):
    files = {"a/global.yaml": "flip_p: 2", "b/local.yaml": "flip_p: 3", "b/c/x.txt": "", "multiply.txt": "2"}
    assert settings(tmp_path, files) == {"multiply": 2.0}
    reader = FolderSettings(tmp_path)
    for folder in ("a", "a/below", "b"):
        with pytest.raises(BadText, match="flip_p is"):
            reader.values(folder)
    assert reader.values("b/c") == {}


def test_all_bad_files_of_a_folder_are_named_at_once(tmp_path):
    with pytest.raises(BadText) as caught:
        settings(tmp_path, {"global.yaml": "flip_p: 2", "a/multiply.txt": "x", "a/flip_p.txt": "y"}, "a")
    assert [part.partition(":")[0] for part in str(caught.value).split("; ")] == [
        "global.yaml, line 1", "a/flip_p.txt", "a/multiply.txt"]  # fmt: skip


def test_two_files_of_one_folder_must_agree(tmp_path):
    with pytest.raises(BadText, match=r"^multiply\.txt: multiply is 3\.0, but 2\.0 in local\.yaml; keep one$"):
        settings(tmp_path, {"local.yaml": "multiply: 2", "multiply.txt": "3"})
    (tmp_path / "multiply.txt").write_text("2.0")
    assert settings(tmp_path, {}) == {"multiply": 2.0}


SOURCE = SourceSettings(path="x", dropout=0.2, flip_p=0.3, loss_scale=0.4, shuffle_tags=True, keep_tags=5)


def test_files_win_over_the_source_and_the_source_over_defaults():
    defaults = resolve({}, SourceSettings(path="x"), CaptionSettings(dropout=0.1, keep_tags=2), 0.25)
    assert defaults == Resolved(1.0, 0.1, 0.25, 1.0, False, 2, "", "")
    of_source = resolve({}, SOURCE, CaptionSettings(dropout=0.1), 0.25)
    assert of_source == Resolved(1.0, 0.2, 0.3, 0.4, True, 5, "", "")
    given = {"multiply": 2, "cond_dropout": 0, "flip_p": 0, "loss_scale": 0, "shuffle_tags": False, "keep_tags": 0,
             "batch_id": "b", "group": 7}  # fmt: skip
    values = {key: check_value(key, raw, "f") for key, raw in given.items()}
    assert set(given) == set(CHECKS)
    assert resolve(values, SOURCE, CaptionSettings(), 0.25) == Resolved(2.0, 0.0, 0.0, 0.0, False, 0, "b", "7")
