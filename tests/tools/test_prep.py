"""`everydream prep`: which images it makes of which photos, what goes along, and what it refuses to touch."""

import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tool_app import run

from everydream.data.captions import index_siblings, read_caption
from everydream.data.folders import FolderSettings
from everydream.errors import ConfigError
from everydream.tools import progress
from everydream.tools.prep.frames import Box, around_face, centre_square, distinct, ladder
from everydream.tools.prep.outbox import Outbox
from everydream.tools.prep.settings import check_settings


def photo(path: Path, width: int = 64, height: int = 64, **options: Any) -> Path:
    """Write a photo whose red says the column and whose green says the row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width) % 256, np.arange(height)[:, None] % 256
    Image.fromarray(pixels).save(path, **options)
    return path


def prepared(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the images of a folder and their sizes; the contact sheet is hidden from training."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".png", ".jpg") and ".prep" not in file.parts:
            with Image.open(file) as image:
                found[file.relative_to(folder).as_posix()] = image.size
    return found


def report(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / ".prep" / "prep.json").read_text(encoding="utf-8"))
    return {entry["path"]: entry for entry in found["photos"]}


def caption_of(image: Path) -> tuple[str, ...]:
    siblings = index_siblings(file.name for file in image.parent.iterdir())
    return read_caption(image.parent, "", image.name, siblings, "join").variants


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# Frames


def test_a_square_around_a_face_takes_in_more_body_than_sky_as_it_grows() -> None:
    face = Box(450, 300, 90, 100)
    squares = [around_face(face, factor, (1000, 1000)) for factor in (1.1, 1.6, 2.0, 2.64)]
    assert squares == [
        Box(440, 297, 110, 110), Box(415, 280, 160, 160), Box(395, 267, 200, 200), Box(363, 245, 264, 264)
    ]  # fmt: skip
    below = [(square.y + square.height - 400) / (300 - square.y) for square in squares]
    assert all(share > 1.9 for share in below)


@pytest.mark.parametrize(
    ("face", "expected"),
    [
        (Box(0, 0, 100, 100), Box(0, 0, 200, 200)),
        (Box(540, 380, 100, 100), Box(440, 280, 200, 200)),
        (Box(100, 100, 300, 300), Box(10, 0, 480, 480)),
    ],
)
def test_a_square_never_leaves_the_photo(face: Box, expected: Box) -> None:
    assert around_face(face, 2.0, (640, 480)) == expected


def test_rungs_that_come_to_the_same_crop_are_left_out_and_said() -> None:
    frames, notes = ladder(Box(100, 100, 300, 300), [2.64, 1.1, 2.0], (640, 480))
    assert [frame.label for frame in frames] == ["1.1x", "2.0x"]
    assert notes == ["2.64x is the same crop as 2.0x: the photo ends there"]


def test_overlapping_boxes_are_one_face() -> None:
    boxes = [Box(0, 0, 100, 100), Box(10, 10, 90, 90), Box(20, 20, 20, 20), Box(90, 0, 100, 100)]
    assert distinct(boxes) == [boxes[0], boxes[3]]


def test_the_middle() -> None:
    assert centre_square((101, 50)) == Box(25, 0, 50, 50)


# Pixels


def test_center_takes_the_middle_square(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a red car_(1).png", 200, 64)
    run("prep", tmp_path / "in", "--out", tmp_path / "out", "--size", 64, "--crop", "center")
    assert prepared(tmp_path / "out") == {"a red car_(1).png": (64, 64)}
    with Image.open(tmp_path / "out" / "a red car_(1).png") as image:
        pixels = np.asarray(image)
    assert pixels[0, :, 0].tolist() == list(range(68, 132)) and pixels[:, 0, 1].tolist() == list(range(64))


@pytest.mark.parametrize("left", [0, 136])
def test_subject_finds_it_at_either_end(tmp_path: Path, left: int) -> None:
    pixels = np.full((64, 200, 3), 90, np.uint8)
    pixels[8:56, left : left + 64] = np.random.default_rng(0).integers(0, 256, (48, 64, 3))
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "x.png")
    run("prep", tmp_path / "in", "--out", tmp_path / "out", "--size", 64)
    (crop,) = report(tmp_path / "out")["x.png"]["crops"]
    assert abs(crop["box"][0] - left) <= 16 and crop["box"][1:] == [0, 64, 64]


def test_none_scales_down_only_and_says_what_stays_small(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "large.png", 200, 100)
    photo(tmp_path / "in" / "small.png", 60, 40)
    said = run("prep", tmp_path / "in", "-o", tmp_path / "out", "--size", 50, "--crop", "none").stdout
    assert prepared(tmp_path / "out") == {"large.png": (100, 50), "small.png": (60, 40)}
    assert "small.png: smaller than 50: kept at 60 x 40" in said
    run("prep", tmp_path / "in", "-o", tmp_path / "out", "--size", 50, "--crop", "none", "--upscale")
    assert prepared(tmp_path / "out") == {"large.png": (100, 50), "small.png": (75, 50)}


def test_what_is_too_small_is_left_out_and_listed_unless_it_is_enlarged(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "small.png", 60, 40)
    said = run("prep", tmp_path / "in", "-o", tmp_path / "out", "--size", 64).stdout
    assert prepared(tmp_path / "out") == {}
    assert "too small (1):\n  small.png: the photo has 40 px of 64; --upscale enlarges" in said
    run("prep", tmp_path / "in", "-o", tmp_path / "out", "--size", 64, "--upscale")
    assert prepared(tmp_path / "out") == {"small.png": (64, 64)}


@pytest.mark.parametrize(("pad", "above"), [("#102030", [16, 32, 48]), ("edge", [100, 0, 0])])
def test_padding_keeps_the_whole_photo(tmp_path: Path, pad: str, above: list[int]) -> None:
    photo(tmp_path / "in" / "wide.png", 128, 64)
    run("prep", tmp_path / "in", "-o", tmp_path / "out", "--size", 128, "--pad", pad)
    with Image.open(tmp_path / "out" / "wide.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (128, 128, 3) and pixels[31, 100].tolist() == above
    assert np.array_equal(pixels[32:96, :, 0], np.tile(np.arange(128), (64, 1)))


def test_photos_are_upright_and_lose_where_they_were_taken(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    exif.get_ifd(0x8825)[1] = "N"
    photo(tmp_path / "in" / "phone.jpg", 100, 50, exif=exif, quality=95)
    for kind in ("png", "jpg"):
        run("prep", tmp_path / "in", "-o", tmp_path / kind, "--size", 50, "--crop", "none", "--format", kind)
        assert prepared(tmp_path / kind) == {f"phone.{kind}": (50, 100)}
        with Image.open(tmp_path / kind / f"phone.{kind}") as image:
            assert not image.getexif() and "exif" not in image.info
            assert image.getpixel((25, 99))[0] > 90 and image.getpixel((25, 0))[0] < 10


# What goes along


def test_captions_survive(tmp_path: Path) -> None:
    source = tmp_path / "in"
    long = "a very long caption " * 12
    names = ["a cat_(1).png", "a cat_(1).jpg", "deep/er/dots a.b_3.webp", "_001.png", "x.png", "y.jpg", f"{long}.png"]
    for name in names:
        photo(source / name)
    (source / "x.caption").write_text("from caption", encoding="utf-8")
    (source / "x.yaml").write_text("multiply: 3", encoding="utf-8")
    (source / "y.jpg.TXT").write_text("ein Käse", encoding="utf-16")
    (source / "_001.json").write_text('{"caption": "from json", "more": 1}', encoding="utf-8")
    run("prep", source, "-o", tmp_path / "out", "--size", 32)
    captions = {name: caption_of(tmp_path / "out" / name) for name in prepared(tmp_path / "out")}
    cut = next(name for name in captions if name.startswith("a very"))
    assert captions.pop(cut) == (long.strip(),) and len(cut.encode()) < 220
    assert captions == {
        "a cat_(1).png": ("a cat",), "a cat_(1)_2.png": ("a cat",), "deep/er/dots a.b_3.png": ("dots a.b",),
        "_001.png": ("from json",), "x.png": ("from caption",), "y.png": ("ein Käse",),
    }  # fmt: skip
    assert (tmp_path / "out" / "x.yaml").read_text(encoding="utf-8") == "multiply: 3"


def test_folder_settings_are_carried_over(tmp_path: Path) -> None:
    source = tmp_path / "in"
    photo(source / "a.png")
    photo(source / "sub" / "b.png")
    photo(source / "sub" / "deeper" / "c.png")
    (source / "global.yaml").write_text("flip_p: 0.5\ncond_dropout: 0.1", encoding="utf-8")
    (source / "sub" / "multiply.txt").write_text("2.5", encoding="utf-8")
    run("prep", source, "-o", tmp_path / "out", "--size", 32)
    for folder in ("", "sub", "sub/deeper"):
        before, after = (
            {key: setting.value for key, setting in FolderSettings(root).values(folder).items()}
            for root in (source, tmp_path / "out")
        )
        assert after == before and len(after) == (3 if folder == "sub" else 2)


def test_the_ladder_of_a_photo_is_a_group_of_its_own(tmp_path: Path) -> None:
    source, boxes = tmp_path / "in", tmp_path / "boxes.json"
    photo(source / "sub" / "ted bennet_(1).png", 300, 300)
    photo(source / "sub" / "ted bennet_(1).jpg", 300, 300)
    photo(source / "sub" / "ted bennet_(1)" / "other_(1).png", 300, 300)
    photo(source / "one rung.png", 100, 100)
    (source / "sub" / "ted bennet_(1).txt").write_text("ted, smiling", encoding="utf-8")
    (source / "sub" / "multiply.txt").write_text("2", encoding="utf-8")
    faces = {"sub/ted bennet_(1).png": [[100, 100, 50, 50]], "one rung.png": [[30, 30, 50, 50]],
             "sub/ted bennet_(1).jpg": [[100, 100, 100.4, 100]]}  # fmt: skip
    boxes.write_text(json.dumps(faces), encoding="utf-8")
    run("prep", source, "-o", tmp_path / "out", "--size", 60, "--boxes", boxes, "--ladder", "1.1,1.6,2.0")
    first, second = "sub/ted bennet_(1)_2", "sub/ted bennet_(1)_3"  # the name itself is a folder of photos
    assert prepared(tmp_path / "out") == dict.fromkeys([
        "one rung/one rung_1.6x.png", "one rung/one rung_2.0x.png", f"{first}/ted bennet_(1)_2_1.1x.png",
        f"{first}/ted bennet_(1)_2_1.6x.png", f"{first}/ted bennet_(1)_2_2.0x.png",
        f"{second}/ted bennet_(1)_3_1.6x.png", f"{second}/ted bennet_(1)_3_2.0x.png",
        "sub/ted bennet_(1)/other_(1).png",
    ], (60, 60))  # fmt: skip
    out = tmp_path / "out"
    settings = {
        name: yaml.safe_load((out / name / "local.yaml").read_text(encoding="utf-8")) for name in (first, second)
    }
    assert settings == {name: {"multiply": 2.0, "group": name} for name in (first, second)}
    assert not (out / "sub/ted bennet_(1)/local.yaml").exists()
    assert caption_of(out / first / "ted bennet_(1)_2_1.6x.png") == ("ted, smiling",)
    assert caption_of(out / "one rung" / "one rung_2.0x.png") == ("one rung",)
    notes = report(out)["one rung.png"]["notes"]
    assert notes == ["left out as smaller than 60 px: 1.1x has 55 px; --upscale enlarges them"]


def test_a_single_crop_goes_straight_to_its_folder(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a_1.png", 100, 100)
    (tmp_path / "boxes.json").write_text('{"a_1.png": [[10, 10, 60, 60]]}', encoding="utf-8")
    run("prep", tmp_path / "in", "-o", tmp_path / "out", "--size", 90, "--boxes", tmp_path / "boxes.json",
        "--ladder", "1.1,2.0,2.64")  # fmt: skip
    assert prepared(tmp_path / "out") == {"a_1_2.0x.png": (90, 90)}
    assert report(tmp_path / "out")["a_1.png"]["crops"] == [
        {"file": "a_1_2.0x.png", "label": "2.0x", "box": [0, 0, 100, 100]}
    ]
    assert not (tmp_path / "out" / "local.yaml").exists()


# What is refused, rejected, and never touched


def test_bad_files_are_rejected_with_reasons_and_the_rest_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "in"
    whole = photo(source / "good.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    (source / "text.jpg").write_text("no picture", encoding="utf-8")
    photo(source / "latin.png")
    (source / "latin.txt").write_bytes(b"caf\xe9")
    photo(source / "bad" / "setting.png")
    (source / "bad" / "multiply.txt").write_text("two", encoding="utf-8")
    (source / "notes.txt").write_text("not looked at", encoding="utf-8")
    before = snapshot(source)
    said = run("prep", source, "-o", tmp_path / "out", "--size", 32).stdout
    assert prepared(tmp_path / "out") == {"good.png": (32, 32)}
    reasons = {path: entry["reason"] for path, entry in report(tmp_path / "out").items() if entry["reason"]}
    assert reasons == {
        "bad/setting.png": "bad/multiply.txt: multiply is 'two', expected a number of at least 0",
        "cut.png": "truncated: the PNG ends before its pixels do",
        "latin.png": "latin.txt: not UTF-8 at byte 3; save it as UTF-8",
        "text.jpg": "not an image: a text file",
    }
    assert "5 photos: 4 rejected, 1 prepared; 1 images made" in said
    assert all(f"{path}: {reason}" in said for path, reason in reasons.items())
    assert snapshot(source) == before


def test_a_second_prep_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "sub/b.png"):
        photo(source / name)
    run("prep", source, "-o", out, "--size", 32)
    first = snapshot(out)
    run("prep", source, "-o", out, "--size", 32)
    assert snapshot(out) == first
    (source / "sub" / "b.png").unlink()
    (out / ".DS_Store").touch()
    run("prep", source, "-o", out, "--size", 16)
    assert prepared(out) == {"a.png": (16, 16)} and not (out / "sub").exists()
    (out / "mine.txt").write_text("keep", encoding="utf-8")
    before = snapshot(out)
    assert "mine.txt" in run("prep", source, "-o", out, check=2).stderr
    assert snapshot(out) == before


def test_a_prep_that_was_killed_is_ours_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Outbox(out).write("sub/begun.png", b"x")
    (out / "sub" / "begun.png").rename(out / "sub" / "begun.png.partial")
    with (out / ".prep" / "files.jsonl").open("a", encoding="utf-8") as file:
        file.write('"sub/never beg')
    Outbox(out)
    assert sorted(snapshot(out)) == [".prep/files.jsonl", ".prep/prep.json"]


def test_a_folder_of_the_users_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "out" / "precious.png")
    before = snapshot(tmp_path / "out")
    assert "precious.png" in run("prep", tmp_path / "in", "-o", tmp_path / "out", check=2).stderr
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(("source", "out"), [("in", "in"), ("in", "in/out"), ("in/sub", "in"), ("in", "link/out")])
def test_neither_folder_lies_in_the_other(tmp_path: Path, source: str, out: str) -> None:
    photo(tmp_path / "in" / "sub" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = snapshot(tmp_path)
    assert "lie in one another" in run("prep", tmp_path / source, "-o", tmp_path / out, check=2).stderr
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 4}, "--size 4"),
        ({"pad": "red"}, "--pad 'red'"),
        ({"pad": "edge", "crop": "none"}, "give --pad edge or --crop none"),
        ({"ladder": ["x"]}, "--ladder 'x'"),
        ({"ladder": [0.5]}, "--ladder 0.5"),
        ({"ladder": [2.0, 2.0]}, "a factor twice"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_settings(**options)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "file").touch()
    assert "is a file; give a folder" in run("prep", tmp_path / "in", "-o", tmp_path / "file", check=2).stderr
    said = run("prep", tmp_path / "in", "-o", tmp_path / "file" / "out", check=2).stderr
    assert "DiskError" in said and "cannot be written: Not a directory" in said


def test_images_that_cannot_be_named_are_rejected(tmp_path: Path) -> None:
    source = tmp_path / "in"
    photo(source / "a.png")
    (source / os.fsdecode(b"caf\xe9.png")).write_bytes((source / "a.png").read_bytes())
    with tarfile.open(source / "shard.tar", "w") as shard:
        shard.add(source / "a.png", "000.png")
    run("prep", source, "-o", tmp_path / "out", "--size", 32)
    reasons = {path: entry["reason"] for path, entry in report(tmp_path / "out").items()}
    assert reasons == {
        "a.png": "",
        "caf\\udce9.png": "its name is not valid UTF-8; rename it",
        "shard.tar/000.png": "lies in a tar shard; unpack the shard first",
    }


def test_progress_is_said_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    with progress.counting("Preparing photos", 40) as show:
        show(10, "9 prepared, 1 rejected")
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"Preparing photos 10/40  \d+\.\d images/s  9 prepared, 1 rejected  left \d\d:\d\d:\d\d\n", said
    )


def test_a_folder_without_images_is_said(tmp_path: Path) -> None:
    assert "no such folder" in run("prep", tmp_path / "nowhere", "-o", tmp_path / "out", check=2).stderr
    (tmp_path / "in").mkdir()
    assert "holds no image" in run("prep", tmp_path / "in", "-o", tmp_path / "out", check=2).stderr
    assert not (tmp_path / "out").exists()


def test_the_contact_sheet_shows_each_photo_with_its_crop(tmp_path: Path) -> None:
    for number in range(40):
        photo(tmp_path / "in" / f"{number}.png", 80, 40)
    run("prep", tmp_path / "in", "-o", tmp_path / "out", "--size", 32, "--crop", "center")
    found = json.loads((tmp_path / "out" / ".prep" / "prep.json").read_text(encoding="utf-8"))
    assert found["contact_sheet"] == [".prep/contact_sheet.jpg", ".prep/contact_sheet_2.jpg"]
    sizes = []
    for page in found["contact_sheet"]:
        with Image.open(io.BytesIO((tmp_path / "out" / page).read_bytes())) as sheet:
            sizes.append(sheet.size)
            corner = np.asarray(sheet)[96 : 96 + 90, 6 : 6 + 180].astype(int)
    assert sizes == [(1494, 8 * 204 + 6), (1494, 2 * 204 + 6)]  # 80 cells, 8 in a row
    frame = np.abs(corner - [230, 25, 75]).sum(axis=-1) < 90  # around the middle square of a photo of 180 x 90
    assert frame[:, 44:48].any() and frame[:, 132:136].any() and not frame[:, :40].any() and not frame[:, 140:].any()
