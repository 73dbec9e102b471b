"""The `joepenna` rule: every case of the documentation as real files, and what a source must say."""

import posixpath

import pytest
from data.tables import table_after
from PIL import Image
from pydantic import ValidationError

from everydream.data.joepenna import joepenna_caption
from everydream.data.scan import scan, source_warnings
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.texts import BadText

SOURCE = {"captions": "joepenna", "token": "effy", "class_word": "person"}
CASES = table_after("With `token: effy` and `class_word: person`:")
TOKEN_ONLY = table_after("With `token_only: true`")
CLASS_IMAGES = table_after("For **class images** (`role: class`) only")


def look(root, names, **settings):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    source = SourceSettings(path=str(root), **settings)
    return scan(DataSettings(sources=[source]), CaptionSettings())


def captions_of(index):
    assert len(index.captions) == len(index)
    return dict(zip(index.paths, index.captions, strict=True))


def test_every_case_of_the_documentation(tmp_path):
    assert len(CASES) == 19
    index = look(tmp_path, [file.strip("`") for file, _, _ in CASES], **SOURCE)
    assert captions_of(index) == {file.strip("`"): caption for file, caption, _ in CASES} and not index.rejected
    for file, _, said in CASES:
        warnings = index.warnings.get(index.paths.index(file.strip("`")), [])
        wanted = said.removeprefix("warns: ").split(", ") if said else []
        assert len(warnings) == len(wanted), file
        assert all(warning.startswith(start) for warning, start in zip(warnings, wanted, strict=True)), file


def test_warnings_say_what_becomes_of_a_name(tmp_path):
    index = look(tmp_path, ["x@size S shirt.png", "a photo of joe.png"], **SOURCE)
    assert index.warnings == {
        0: ['its name says "a photo of joe", which is ignored: with joepenna captions a template stands after an @'],
        1: ['a lone S of "size S shirt" is replaced by "effy"'],
    }


def test_every_case_of_token_only(tmp_path):
    index = look(tmp_path, [file.strip("`") for file, _ in TOKEN_ONLY], captions="joepenna", token="effy",
                 token_only=True)  # fmt: skip
    kept = {file.strip("`"): caption for file, caption in TOKEN_ONLY if not caption.startswith("rejected")}
    assert captions_of(index) == kept and len(kept) == len(TOKEN_ONLY) - 1
    (rejected,) = index.rejected
    assert rejected.path == "x@S being a good C.jpg"
    assert rejected.reason == ('C of "S being a good C" stands for a word that is not given; set class_word for the '
                               "source, or name the second folder level after it")  # fmt: skip


def test_a_class_word_counts_where_a_template_asks_for_it_with_token_only(tmp_path):
    index = look(tmp_path, ["x@S the C.png", "y.png"], **SOURCE, token_only=True)
    assert captions_of(index) == {"x@S the C.png": "effy the person", "y.png": "effy"}


def test_class_images_are_captioned_by_their_class_alone(tmp_path):
    """JoePenna's code takes the first folder for the class, and leaks it to the images that come later."""
    settings = {"captions": "joepenna", "class_word": "person", "role": "class"}
    index = look(tmp_path, [file.strip("`") for file, _ in CLASS_IMAGES], **settings)
    assert captions_of(index) == {file.strip("`"): caption for file, caption in CLASS_IMAGES}
    by_path = {index.paths[record]: warnings for record, warnings in index.warnings.items()}
    assert by_path == {
        "001@a photo of a C.png": ['a lone C of "a photo of a C" is replaced by "person"'],
        "001@S and a C.png": ['a lone C of "S and a C" is replaced by "person"',
                              "holds a lone S or C, as JoePenna's templates do"],
    }  # fmt: skip
    assert captions_of(look(tmp_path, [], **settings, token="effy")) == captions_of(index)


def test_sidecars_are_not_read_and_folder_settings_count(tmp_path):
    (tmp_path / "bingo").mkdir()
    (tmp_path / "x.txt").write_text("a sidecar")
    (tmp_path / "x.yaml").write_text("multiply: 9")
    (tmp_path / "bingo" / "multiply.txt").write_text("3")
    index = look(tmp_path, ["x.png", "bingo/y.png"], **SOURCE)
    assert captions_of(index) == {"bingo/y.png": "bingo person", "x.png": "effy person"}
    assert index.repeats_N.tolist() == [3, 1] and not index.warnings


def test_names_in_a_shard_are_keys(tmp_path):
    import tarfile

    image = tmp_path / "photo@a cat.png"
    Image.new("RGB", (8, 8)).save(image)
    (tmp_path / "set" / "bingo").mkdir(parents=True)
    with tarfile.open(tmp_path / "set" / "bingo" / "0.tar", "w") as tar:
        tar.add(image, "deeper/photo@a cat.png")
    assert captions_of(look(tmp_path / "set", [], **SOURCE)) == {"bingo/0.tar/deeper/photo@a cat.png": "bingo person"}


def test_words_of_settings_and_folders_are_taken_whole():
    source = SourceSettings(path="x", captions="joepenna", token=" my  dog ", class_word="small_dog")
    assert joepenna_caption([], "x@S_the C", source).variants == ("my dog the small_dog",)
    assert joepenna_caption(["a_b", "c d"], "x", source).variants == ("a_b c d",)
    assert joepenna_caption(["a", "b", "two  spaces__here"], "x@then\tS", source).variants == (
        "two spaces here then a",)  # fmt: skip


def test_what_nothing_names_is_told_by_its_letter():
    source = SourceSettings(path="x", captions="joepenna", token="effy", token_only=True)
    for levels, stem in ([], "x@a C"), (["effy"], "x@C"), (["effy", "", "a C"], "x"):
        with pytest.raises(BadText, match=r'^C of ".*" stands for a word .* set class_word .* the second folder level'):
            joepenna_caption(levels, stem, source)


@pytest.mark.parametrize(("settings", "message"), [
    ({"class_word": "person"}, "captions: joepenna needs the subject's name in `token`, which S stands for"),
    ({"class_word": "person", "token": " "}, "captions: joepenna needs the subject's name in `token`"),
    ({"token": "effy"}, "captions: joepenna needs the subject's class in `class_word`, which C stands for; or set "
     "token_only: true"),
    ({}, "in `token`, which S stands for; captions: joepenna needs the subject's class in `class_word`"),
    ({"role": "class"}, "captions: joepenna needs the subject's class in `class_word`, which C stands for"),
    ({"role": "class", "token_only": True}, "needs the subject's class in `class_word`"),
    ({"captions": "everydream", "token": "effy"}, "`token` is only used with captions: joepenna, not with captions: "
     "everydream"),
    ({"captions": None, "label": "x", "class_word": "a"}, "`class_word` is only used with captions: joepenna, not with "
     "captions: label"),
    ({"captions": "kohya", "token_only": True}, "`token_only` is only used with captions: joepenna"),
    ({**SOURCE, "label": "x"}, "`label` is only used with captions: label, not with captions: joepenna"),
])  # fmt: skip
def test_what_a_source_must_say(settings, message):
    with pytest.raises(ValidationError) as caught:
        SourceSettings(path="x", **{"captions": "joepenna", **settings})
    (error,) = caught.value.errors()
    assert message in error["msg"]


def test_what_is_enough():
    for settings in SOURCE, {"token": "effy", "token_only": True}, {"role": "class", "class_word": "person"}:
        assert SourceSettings(path="x", **{"captions": "joepenna", **settings}).caption_rule == "joepenna"


def test_one_caption_for_all_is_what_the_rule_is_for(tmp_path):
    index = look(tmp_path, [f"{n}.png" for n in range(9)], **SOURCE)
    assert source_warnings(index, [SourceSettings(path="x", **SOURCE)]) == {}


def test_the_documented_files_are_named_as_files_can_be():
    for file, *_ in [*CASES, *TOKEN_ONLY, *CLASS_IMAGES]:
        assert posixpath.splitext(file.strip("`"))[1] in (".jpg", ".png")
