"""Faces: which detector looks for them, what `prep` makes of several and of none, and boxes from elsewhere."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from tool_app import run

from everydream.errors import ConfigError
from everydream.tools.prep.faces import find_detector
from everydream.tools.prep.frames import Box
from pictures.decode import decode

SHARED = ROOT.parent / "shared/data/captionsets"

Found = list[tuple[float, float, float, float, float]]
"""Faces as (left, top, right, bottom, confidence) in the searched picture."""


def install_mtcnn(monkeypatch: pytest.MonkeyPatch, faces_of: dict[tuple[int, int], Found]) -> None:
    """Put a stand-in for facenet-pytorch in its place that finds faces by the size of the picture."""

    class MTCNN:
        def __init__(self, keep_all: bool, device: str) -> None:
            assert keep_all and device in ("cpu", "cuda")

        def detect(self, image: Image.Image) -> tuple[Any, Any]:
            found = np.array(faces_of.get(image.size, []), np.float32)
            return (found[:, :4], found[:, 4]) if len(found) else (None, [None])

    module = ModuleType("facenet_pytorch")
    module.MTCNN = MTCNN  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "facenet_pytorch", module)


@pytest.fixture
def only_cascades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)


def photos(folder: Path, **sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for name, size in sizes.items():
        Image.new("RGB", size, "grey").save(folder / f"{name}.png")
    return folder


def entries(out: Path) -> dict[str, Any]:
    found = json.loads((out / ".prep" / "prep.json").read_text(encoding="utf-8"))
    return {entry["path"]: entry for entry in found["photos"]}


# Detectors


def test_mtcnn_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    sure, overhanging, unsure = (100, 50, 150, 120, 0.99), (-10, 0, 30, 40, 0.95), (500, 100, 600, 200, 0.5)
    install_mtcnn(monkeypatch, {(1000, 500): [overhanging, sure, unsure]})
    assert find_detector()(Image.new("RGB", (2000, 1000))) == [Box(200, 100, 100, 140), Box(0, 0, 60, 80)]
    assert find_detector()(Image.new("RGB", (300, 300))) == []


@pytest.mark.usefixtures("only_cascades")
def test_the_cascades_load_and_see_no_face_in_nothing() -> None:
    detect = find_detector()
    for size in ((640, 480), (3000, 40), (1, 1)):
        assert detect(Image.new("RGB", size, "grey")) == []


@pytest.mark.usefixtures("only_cascades")
@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared photos")
def test_the_cascades_find_real_faces() -> None:
    detect = find_detector()
    for file, left, top, side in (("skimage/astronaut.png", 178, 69, 92), ("kodak/kodim04.jpg", 102, 212, 352)):
        image = Image.fromarray(decode(SHARED / file))
        (face,) = detect(image)
        assert np.allclose(face, (left, top, side, side), atol=side / 8)
        larger = image.resize((image.width * 3, image.height * 3))
        (scaled,) = detect(larger)
        assert np.allclose(scaled, np.array(face) * 3, atol=side / 2)
        (mirrored,) = detect(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        assert abs(image.width - mirrored.x - mirrored.width - left) < side / 8


@pytest.mark.usefixtures("only_cascades")
@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared photos")
def test_the_cascades_find_a_profile_from_either_side() -> None:
    image = Image.fromarray(decode(SHARED / "kodak" / "kodim17.jpg"))
    (face,) = find_detector()(image)
    (mirrored,) = find_detector()(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert abs(image.width - mirrored.x - mirrored.width - face.x) < face.width / 8


@pytest.mark.usefixtures("only_cascades")
@pytest.mark.parametrize("missing", ["module", "class", "files"])
def test_without_a_detector_it_is_said_how_to_get_one(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "module":
        monkeypatch.setitem(sys.modules, "cv2", None)
    elif missing == "class":
        monkeypatch.delattr(cv2, "CascadeClassifier")
    else:
        monkeypatch.setattr(cv2, "data", SimpleNamespace(haarcascades=str(tmp_path)))
    source = photos(tmp_path / "in", a=(64, 64))
    said = run("prep", source, "-o", tmp_path / "out", "--person", check=2).stderr
    assert 'pip install -c constraints.txt "opencv-python-headless<5"' in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError):
        find_detector()


# What is made of them

ONE, TWO = (400, 400), (410, 400)
FACES: dict[tuple[int, int], Found] = {
    ONE: [(100, 100, 200, 200, 1.0)],
    TWO: [(20, 20, 80, 80, 1.0), (200, 100, 300, 200, 1.0)],
}


def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> tuple[dict[str, Any], str]:
    """Prepare photos of one face, two and none; return the report and what was said."""
    install_mtcnn(monkeypatch, FACES)
    source = photos(tmp_path / "in", one=ONE, two=TWO, none=(420, 400))
    said = run("prep", source, "-o", tmp_path / "out", "--size", 100, "--person", "--ladder", "1.5,3", *options).stdout
    return entries(tmp_path / "out"), said


def crops(entry: dict[str, Any]) -> dict[str, list[int]]:
    return {crop["file"]: crop["box"] for crop in entry["crops"]}


def test_the_largest_face_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = people(tmp_path, monkeypatch)
    assert crops(found["one.png"]) == {
        "one/one_1.5x.png": [75, 83, 150, 150], "one/one_3.0x.png": [0, 33, 300, 300]
    }  # fmt: skip
    assert crops(found["two.png"]) == {
        "two/two_1.5x.png": [175, 83, 150, 150], "two/two_3.0x.png": [100, 33, 300, 300]
    }  # fmt: skip
    assert crops(found["none.png"]) == {"none.png": [10, 0, 400, 400]} or found["none.png"]["crops"][0]["box"][2] == 400
    assert "two.png: 2 faces were found: the largest is cropped" in said
    assert "none.png: no face was found: the photo is framed as one without a person" in said
    assert "3 photos: 3 prepared; 5 images made" in said


def test_all_faces_have_a_ladder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = people(tmp_path, monkeypatch, "--faces", "all", "--upscale")
    assert crops(found["two.png"]) == {
        "two/two_face1_1.5x.png": [175, 83, 150, 150], "two/two_face1_3.0x.png": [100, 33, 300, 300],
        "two/two_face2_1.5x.png": [5, 10, 90, 90], "two/two_face2_3.0x.png": [0, 0, 180, 180],
    }  # fmt: skip
    assert "two.png: 2 faces were found: each is cropped" in said
    assert len(found["one.png"]["crops"]) == 2 and len(found["none.png"]["crops"]) == 1


def test_only_photos_of_one_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, said = people(tmp_path, monkeypatch, "--faces", "skip")
    assert {path: entry["outcome"] for path, entry in found.items()} == {
        "one.png": "prepared", "two.png": "several faces", "none.png": "no face"
    }  # fmt: skip
    assert "no face (1):\n  none.png: no face was found" in said
    assert "several faces (1):\n  two.png: 2 faces were found" in said
    images = [file.name for file in (tmp_path / "out").rglob("*.png")]
    assert sorted(images) == ["one_1.5x.png", "one_3.0x.png"]


def test_photos_without_a_face_are_padded_where_that_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = people(tmp_path, monkeypatch, "--pad", "edge")
    assert crops(found["none.png"]) == {"none.png": [0, 0, 420, 400]}
    assert len(found["one.png"]["crops"]) == 2


# Boxes from elsewhere


def test_boxes_from_elsewhere_take_the_detectors_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("facenet_pytorch", "cv2"):
        monkeypatch.setitem(sys.modules, library, None)
    source = photos(tmp_path / "in", a=(400, 400), b=(400, 400))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(source / "turned.jpg", exif=exif)  # 200 x 400 the right way up
    boxes = {"a.png": [[100, 100, 100, 100]], "turned.jpg": [[50, 299.6, 100, 101.2]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    run("prep", source, "-o", tmp_path / "out", "--size", 100, "--boxes", tmp_path / "boxes.json", "--ladder", "1.5")
    found = entries(tmp_path / "out")
    assert crops(found["a.png"]) == {"a_1.5x.png": [75, 83, 150, 150]}
    assert crops(found["turned.jpg"]) == {"turned_1.5x.png": [25, 250, 150, 150]}
    assert found["b.png"]["notes"] == ["no face was found: the photo is framed as one without a person"]


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ('{"c.png": []}', "c.png: no such image"),
        ('{"sub\\\\a.png": []}', "sub\\a.png: no such image"),
        ('{"a.png": [[0, 0, 65, 70]]}', "the box [0, 0, 65, 70] does not lie inside the photo, which is 64 x 64"),
        ('{"a.png": [[-5, 0, 20, 20]]}', "does not lie inside"),
        ('{"a.png": [[0, 0, "x", 20]]}', "holds something that is not a number"),
        ('{"a.png": [[0, 0, NaN, 20]]}', "holds something that is not a number"),
        ('{"a.png": [[0, 0, true, 20]]}', "holds something that is not a number"),
        ('{"a.png": [[20, 20, 0, 5]]}', "has no area"),
        ('{"a.png": [[1, 2, 3]]}', "is not [x, y, width, height]"),
        ('{"a.png": [1, 2, 3, 4]}', "the box 1 is not [x, y, width, height]"),
        ('{"a.png": {"box": 1}}', "expected a list of boxes"),
        ("[1]", "found a list"),
        ("{", "not a JSON file"),
    ],
)
def test_boxes_that_do_not_fit_are_named(tmp_path: Path, boxes: str, said: str) -> None:
    source = photos(tmp_path / "in", a=(64, 64))
    (tmp_path / "boxes.json").write_text(boxes, encoding="utf-8")
    shown = run("prep", source, "-o", tmp_path / "out", "--boxes", tmp_path / "boxes.json", check=2).stderr
    assert said in shown and "boxes.json" in shown
    assert not (tmp_path / "out").exists()


def test_all_wrong_boxes_are_named_at_once(tmp_path: Path) -> None:
    source = photos(tmp_path / "in", a=(64, 64))
    (tmp_path / "boxes.json").write_text('{"b.png": [], "a.png": [[0, 0, 99, 9], [0, 0, "x", 9]]}', encoding="utf-8")
    shown = run("prep", source, "-o", tmp_path / "out", "--boxes", tmp_path / "boxes.json", check=2).stderr
    assert all(said in shown for said in ("b.png: no such image", "[0, 0, 99, 9]", "[0, 0, 'x', 9]"))
