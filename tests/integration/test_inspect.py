"""What `everydream inspect` says, in words and as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_images, run_cli
from PIL import Image

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_a_config_as_json(project: Callable[..., Path], tmp_path: Path) -> None:
    config = project(
        data={
            "sources": [{"path": str(tmp_path / "mine"), "repeats": 2}, {"path": str(tmp_path / "real"), "share": 0.25}]
        }
    )
    (tmp_path / "mine" / "sub").mkdir()
    Image.new("RGB", (400, 20)).save(tmp_path / "mine" / "sub" / "very wide_1.png")
    (tmp_path / "mine" / "not a picture.jpg").write_bytes(b"<html>")
    (tmp_path / "mine" / "long.png").write_bytes((tmp_path / "mine" / "sub" / "very wide_1.png").read_bytes())
    words = " ".join(f"word{i}" for i in range(60))
    (tmp_path / "mine" / "long.txt").write_text(f"{words} the tail that is lost", encoding="utf-8")
    out = tmp_path / "report.json"
    html, cache = tmp_path / "report.html", tmp_path / "seen"
    done = run_cli("inspect", "--config", config, "--json", out, "--html", html, "--cache", cache)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert html.read_text(encoding="utf-8").startswith("<!doctype html>") and f"Page written to {html}" in done.stdout
    assert [path.suffix for path in cache.iterdir()] == [".sqlite"]
    assert "problem: Files that cannot be used, and are left out: 1." in done.stdout

    by_path = {(image["source"], image["path"]): image for image in report["images"]}
    assert len(by_path) == len(report["images"]) == 6 + 2 + 5
    wide = by_path["mine", "sub/very wide_1.png"]
    assert wide["caption"] == "very wide" and wide["draws"] == 2 and wide["bucket"][0] > wide["bucket"][1]
    assert any("enlarged" in warning for warning in wide["warnings"]) and any(
        "crop" in warning for warning in wide["warnings"]
    )
    long = by_path["mine", "long.png"]
    assert any(
        "tokens of 77; this tail is lost" in w and w.endswith("the tail that is lost'") for w in long["warnings"]
    )
    assert set(wide) == {"path", "caption", "bucket", "draws", "source", "warnings"}
    (rejected,) = report["rejected"]
    assert rejected["path"] == "not a picture.jpg" and "not an image" in rejected["reason"]
    epoch = report["epoch"]
    assert epoch["draws"] == sum(image["draws"] for image in report["images"]) == 16 + 5
    assert epoch["repeated"] == epoch["left_for_next"] == 0
    assert epoch["steps"] == epoch["batches"] >= -(-epoch["draws"] // 4)
    for said in (
        "mine: 8 images, 1 rejected, repeats 2: 16 draws",
        "not a picture.jpg: not an image",
        "steps an epoch",
    ):
        assert said in done.stdout


def test_short_captions_can_have_many_tokens_and_no_spaces(tmp_path: Path) -> None:
    make_images(tmp_path / "set", 1)
    image = next((tmp_path / "set").iterdir())
    image.with_suffix(".txt").write_text("龘靐齉" * 12 + "尾巴", encoding="utf-8")
    out = tmp_path / "report.json"
    run_cli("inspect", tmp_path / "set", "--json", out)
    (warning,) = [w for w in json.loads(out.read_text(encoding="utf-8"))["images"][0]["warnings"] if "tokens" in w]
    lost = warning.split("lost: ")[1].strip("'")
    assert lost.endswith("尾巴") and 2 < len(lost) < 38


def test_a_phone_picture_without_the_plug_in_is_rejected_with_the_hint(tmp_path: Path) -> None:
    make_images(tmp_path / "set", 1)
    (tmp_path / "set" / "IMG_1.HEIC").write_bytes(b"\0\0\0 ftypheic\0\0\0\0")
    assert "IMG_1.HEIC: content is HEIC (install the plug-in" in run_cli("inspect", tmp_path / "set").stdout


def test_a_folder_needs_no_config_and_no_model(tmp_path: Path) -> None:
    make_images(tmp_path / "some pictures", 3)
    done = run_cli("inspect", tmp_path / "some pictures", "data.resolution=256", "train.batch_size=2")
    assert "3 images usable, 0 rejected" in done.stdout and "256x256" in done.stdout
    assert "one of them" in run_cli("inspect", check=2).stderr


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    done = run_cli("inspect", tmp_path, check=2)
    assert "No usable image" in done.stderr and "0 images usable" in done.stdout


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real photographs are not beside this checkout")
def test_a_real_users_folder(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    html = tmp_path / "report.html"
    said = run_cli("inspect", SHARED / "captionsets" / "mickey1928", "--json", out, "--html", html)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert len(report["images"]) == 74 and not report["rejected"]
    misnamed = [image for image in report["images"] if any("its name says png" in w for w in image["warnings"])]
    assert len(misnamed) == 9
    assert "Files of another format than their name says: 9." in said.stdout
    assert "42 of 74 images have a caption that others have too" in said.stdout
    found = [(item["kind"], [Path(member["path"]).stem for member in item["members"]]) for item in report["duplicates"]]
    assert found == [
        ("alike", ["Mickey and Minnie (7)", "Mickey and Minnie (8)"]),
        ("alike", ["Mickey with a hat (2)", "Mickey with a hat (3)"]),
    ]
    page = html.read_text(encoding="utf-8")
    assert len(page) < 2_000_000 and page.count("data:image/jpeg;base64,") == 74
