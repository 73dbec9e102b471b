"""The page of `everydream inspect --html`: one file, harmless whatever captions say, and alive in a browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_images
from PIL import Image

from everydream.config import resolve
from everydream.data.texts import visible
from everydream.errors import ConfigError
from everydream.plan import plan_run
from everydream.report import page as page_module
from everydream.report.inspection import inspect_run

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> & \"quotes\" '"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of two sources with everything in it that a page shows, and its report."""
    folder = tmp_path_factory.mktemp("page")
    mine, real = make_images(folder / "mine", 6, seed=1), make_images(folder / "real", 4, sizes=((96, 96),), seed=2)
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 256, (12, 36, 3), dtype=np.uint8))
    photo = noise.resize((360, 120), Image.Resampling.BICUBIC)
    photo.save(mine / "wide.png")
    photo.save(mine / "wide again.jpg", quality=60)
    shutil.copy(real / "a picture of thing 0_(1).png", real / "copy.png")
    (mine / "wide.txt").write_text(HOSTILE, encoding="utf-8")
    (mine / "wide again.txt").write_text("turned \u202egnp.exe and \u200bunseen " + "word " * 90, encoding="utf-8")
    (real / "copy.txt").write_text("copy", encoding="utf-8")
    (real / "<b title='worse'>bad & \"quoted\".png").write_bytes(b"no image")
    (mine / "small <i>&amp;.png").write_bytes((mine / "a picture of thing 1_(1).png").read_bytes())
    (mine / "half \udcff.png").write_bytes((mine / "a picture of thing 2_(1).png").read_bytes())
    raw = {
        "project": "trial", "model": {"path": "none"}, "runs_dir": str(folder / "runs"),
        "data": {"resolution": 64, "bucket_step": 16, "sources": [
            {"path": str(mine), "repeats": 2}, {"path": str(real), "share": 0.25, "role": "ground_truth"}]},
        "train": {"batch_size": 3},
    }  # fmt: skip
    file = folder / "report.html"
    return file, inspect_run(plan_run(resolve(raw, Path("trial"), []), check=False), folder / "cache", file)


def test_nothing_is_loaded_from_anywhere(made: tuple[Path, dict[str, Any]]) -> None:
    text = made[0].read_text(encoding="utf-8")
    without_data = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.S)
    assert not re.findall(r"(?:src|href)=[\"']?(?!#)[a-z/]", without_data)
    assert "url(" not in text and "@import" not in text and "import(" not in text and "fetch(" not in text
    assert len(text) < 400_000
    assert "default-src 'none'" in text and "'unsafe-inline'" not in text


def test_hostile_text_is_text(made: tuple[Path, dict[str, Any]]) -> None:
    text = made[0].read_text(encoding="utf-8")
    assert text.count("<script") == 2 and 'onerror="' not in text and "<b title" not in text
    assert "&lt;b title=&#39;worse&#39;&gt;bad &amp; &#34;quoted&#34;.png" in text
    assert not re.search("[\u200b\u202e]", text) and r"half \udcff.png" in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert HOSTILE in [row[2] for row in data["images"]]
    assert visible("a\u202eb\udcff\n") == "a[U+202E]b[U+DCFF]\n"


def test_the_report_has_the_facts_of_the_set(made: tuple[Path, dict[str, Any]]) -> None:
    report = made[1]
    found = {finding["kind"]: finding for finding in report["findings"]}
    assert {"rejected", "duplicates: same", "duplicates: near", "captions: cut", "invisible characters"} <= set(found)
    kinds = sorted((item["kind"], len(item["members"])) for item in report["duplicates"])
    assert kinds == [("near", 2), ("same", 2), ("same", 2)]
    assert report["plan"]["draws"] == report["epoch"]["draws"] == sum(row["draws"] for row in report["buckets"])
    assert report["plan"]["steps"] == report["plan"]["full_batches"] + report["plan"]["smaller_batches"]
    left_over = sum(row["left_over"] for row in report["buckets"])
    assert left_over == report["plan"]["draws"] - 3 * report["plan"]["full_batches"]
    json.dumps(report)


def test_a_page_of_many_images_says_how_many_pictures_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(tmp_path / "set", 12)
    raw = {"model": {"path": "none"}, "data": {"sources": [{"path": str(tmp_path / "set")}], "resolution": 64}}
    planned = plan_run(resolve(raw, Path("trial"), []), check=False)
    monkeypatch.setattr(page_module.embedded_pictures, "__defaults__", (4000,))
    inspect_run(planned, tmp_path / "cache", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    pictures = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])["pictures"]  # type: ignore[index]
    assert 1 <= len(pictures) < 12 and f"Pictures of {len(pictures)} of 12 images are in this file" in text
    with pytest.raises(ConfigError, match=r"--html: .*cannot be written .*Name another file"):
        inspect_run(planned, tmp_path / "cache", tmp_path / "no folder" / "page.html")


# In a real browser


@pytest.fixture
def opened(browser: Any, made: tuple[Path, dict[str, Any]]) -> Iterator[Any]:
    """The page in a new window; an error or a complaint of the browser fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
    page.goto(made[0].as_uri())
    yield page
    context.close()
    assert said == []


def paths(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("#grid small:not(.warned)").all_text_contents()]


def test_sorting(opened: Any, made: tuple[Path, dict[str, Any]]) -> None:
    images = made[1]["images"]
    assert len(paths(opened)) == len(images) == 14
    tokens = dict(zip((image["path"] for image in images), made[1]["tokens"]["each"], strict=True))
    opened.select_option("#sort", "tokens")
    shown = [tokens.get(path, 0) for path in paths(opened) if "[U+" not in path]
    assert shown == sorted(shown) and paths(opened)[-1] == "wide again.jpg"
    opened.check("#down")
    assert paths(opened)[0] == "wide again.jpg"
    opened.select_option("#sort", "cropped")
    assert set(paths(opened)[:2]) == {"wide.png", "wide again.jpg"}
    opened.click("#clear")
    # The form is emptied first, and then the pictures are put in order.
    last = "[...document.querySelectorAll('#grid small:not(.warned)')].at(-1).textContent.trim()"
    opened.wait_for_function(f"document.getElementById('sort').value === '' && {last} === 'copy.png'")
    assert paths(opened)[-1] == "copy.png"


def test_filtering(opened: Any) -> None:
    opened.select_option("#source", label="real")
    assert len(paths(opened)) == 5 and opened.inner_text("#count") == "5 of 14 images"
    opened.click("#clear")
    opened.fill("#text", 'onerror="DOCUMENT')
    assert paths(opened) == ["wide.png"]
    opened.fill("#text", "")
    opened.select_option("#warning", label="caption cut")
    assert paths(opened) == ["wide again.jpg"]
    opened.select_option("#warning", "none")
    assert "wide again.jpg" not in paths(opened)
    opened.select_option("#warning", "")
    opened.select_option("#bucket", "0")
    assert 0 < len(paths(opened)) < 14
    opened.click('button[data-kind="duplicates: near"]')
    assert sorted(paths(opened)) == ["wide again.jpg", "wide.png"]
    assert opened.inner_text("#count") == "2 of 14 images of this finding"


def test_opening_an_image_by_keyboard(opened: Any) -> None:
    opened.fill("#text", "wide")
    opened.focus("#grid li:last-child button")
    opened.keyboard.press("Enter")
    dialog = opened.locator("#large")
    assert dialog.is_visible() and opened.inner_text("#large-path") == "mine/wide.png"
    assert opened.inner_text("#large-caption") == HOSTILE
    assert opened.locator("#large-picture img").evaluate("image => image.naturalWidth") == 256
    assert opened.locator("#large-picture svg path").count() == 1
    facts = opened.inner_text("#large-facts")
    assert "360x120" in facts and "of 77" in facts
    opened.click("#large-alike button")
    assert opened.inner_text("#large-path") == "mine/wide again.jpg"
    assert "turned [U+202E]gnp.exe and [U+200B]unseen" in opened.inner_text("#large-caption")
    assert "this tail is lost" in opened.inner_text("#large-warnings")
    opened.keyboard.press("ArrowRight")
    assert opened.inner_text("#large-path") == "mine/wide.png"
    opened.keyboard.press("Escape")
    assert not dialog.is_visible() and opened.title() == "trial: what a run would do"
    assert opened.locator("#duplicates article").count() == 3


def test_light_and_dark(opened: Any) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        colours[scheme] = opened.evaluate(
            "['color', 'backgroundColor'].map(n => Math.max(...getComputedStyle(document.body)[n].match(/\\d+/g)))"
        )
    assert colours["light"][0] < 60 and colours["light"][1] > 240
    assert colours["dark"][0] > 200 and colours["dark"][1] < 60


def test_on_a_phone_nothing_scrolls_sideways(opened: Any) -> None:
    opened.set_viewport_size({"width": 360, "height": 740})
    assert opened.evaluate("document.documentElement.scrollWidth") == 360
    opened.click("#grid button >> nth=0")
    box = opened.locator("#large").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 360
