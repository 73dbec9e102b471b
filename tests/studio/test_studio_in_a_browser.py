"""The studio in a real browser: by keyboard alone, with a mouse, on a phone, and while a run goes on."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from studio.serving import Served, served, small_project, thing, tree

HOSTILE = "<img src=x onerror=\"document.title='taken'\"> & 'quotes'"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("browser") / "project"
    with served(small_project(folder)) as found:
        yield found, folder


@pytest.fixture
def page(browser: Any, studio: tuple[Served, Path]) -> Iterator[Any]:
    """The studio's page in a new window; an error or a complaint of the browser fails the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    window = context.new_page()
    said: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    own = f"http://127.0.0.1:{studio[0].port}/"
    window.on("request", lambda request: request.url.startswith((own, "data:")) or said.append(request.url))
    window.goto(studio[0].address)
    window.wait_for_url(own)
    window.wait_for_selector("#grid li")
    yield window
    context.close()
    # The browser notes each answer that says why not, which the page shows.
    assert [text for text in said if "(Bad Request)" not in text and "(Conflict)" not in text] == []


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.querySelector('small')?.textContent ?? document.activeElement.id")


def test_a_caption_is_edited_and_undone_by_keyboard_alone(page: Any, studio: tuple[Served, Path]) -> None:
    before = tree(studio[1])
    for _ in range(3):
        page.keyboard.press("j")
    page.keyboard.press("k")
    assert focused(page) == "a picture of thing 1_(1).png"
    page.keyboard.press("Enter")
    page.wait_for_selector("#text-of:focus")
    assert page.input_value("#text-of") == "red ball, on grass"
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")  # moves in the text, not to the next image
    page.keyboard.type(f", {HOSTILE}")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#large", state="hidden")
    file = studio[1] / "mine" / "a picture of thing 1_(1).txt"
    assert file.read_text(encoding="utf-8") == f"red ball, on grass, {HOSTILE}\n"
    assert focused(page) == "a picture of thing 1_(1).png"
    assert HOSTILE in page.inner_text("#grid li:nth-child(2)") and page.title() == "trial: studio"
    assert "from before 1 change" in page.inner_text("#stale")
    page.keyboard.press("Enter")
    page.wait_for_selector("#text-of:focus")
    page.keyboard.type("never mind")
    page.keyboard.press("Escape")
    page.keyboard.press("u")
    page.wait_for_selector("#said >> text=/^Taken back/")
    assert tree(studio[1]) == before and "red ball, on grass" in page.inner_text("#grid li:nth-child(2)")
    page.keyboard.press("/")
    assert focused(page) == "text"
    page.keyboard.type("?xj")  # letters there, not keys
    assert page.inner_text("#count") == "0 of 10 images" and not page.is_visible("#keys")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert "switch the image off or on" in page.inner_text("#keys")


def test_an_image_is_switched_off_and_on(page: Any, studio: tuple[Served, Path]) -> None:
    before = tree(studio[1])
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.wait_for_selector("#grid li:first-child button.off")
    assert thing(0) in (studio[1] / "project.excluded.txt").read_text(encoding="utf-8")
    page.click("#look")
    page.wait_for_selector("#overview dd >> text='9'")
    assert "switched off" in page.inner_text("#grid li:first-child"), "in its place among the others"
    page.select_option("#state", "off")
    assert page.inner_text("#count") == "1 of 10 images"
    page.click("#grid button")
    assert "none: switched off" in page.inner_text("#large-facts")
    page.click("#switch")
    page.wait_for_selector("#switch >> text='Switch off'")
    page.click("#close")
    page.click("#undo")
    page.wait_for_selector("#said >> text=/^Taken back/")
    page.click("#undo")
    page.wait_for_selector("#undo:disabled")
    after = tree(studio[1])
    assert after.pop("project.excluded.txt") and after == before, "an empty list stays: a checkpoint may name it"
    assert thing(0) not in (studio[1] / "project.excluded.txt").read_text(encoding="utf-8")


def test_many_captions_are_shown_before_they_change(page: Any, studio: tuple[Served, Path]) -> None:
    before = tree(studio[1])
    page.select_option("#source", label="mine")
    page.keyboard.press("Escape")
    page.click("#change")
    assert "Of the 6 images" in page.inner_text("#scope") and page.is_disabled("#apply")
    page.select_option("#kind", "pattern")
    page.fill("#find", "(red")
    page.keyboard.press("Enter")
    page.wait_for_selector("#many-said.trouble")
    assert "missing )" in page.inner_text("#many-said")
    page.fill("#find", "red ball")
    page.fill("#with", "<b>blue</b> ball")
    page.click("#preview")
    page.wait_for_selector("#edits li")
    assert page.locator("#edits li").count() == 3 and tree(studio[1]) == before
    assert page.locator("#edits ins").first.inner_text().endswith("<b>blue</b> ball, on grass")
    assert "cannot be changed here" in page.inner_text("#many-said") and "YAML" in page.inner_text("#refused")
    page.click("#apply")
    page.wait_for_selector("#many", state="hidden")
    assert "<b>blue</b> ball, on grass" in page.inner_text("#grid")
    page.click("#undo")
    page.wait_for_selector("#said >> text=/^Taken back/")
    assert tree(studio[1]) == before


def test_a_conflict_is_shown(page: Any, studio: tuple[Served, Path]) -> None:
    file = studio[1] / "mine" / "a picture of thing 1_(1).txt"
    was = file.read_bytes()
    page.click("#grid li:nth-child(2) button")
    page.wait_for_selector("#text-of:focus")
    file.write_text("by another")
    page.fill("#text-of", "mine")
    page.click("#save")
    page.wait_for_selector("#trouble:not([hidden])")
    assert "'by another'. Nothing was written." in page.inner_text("#trouble")
    assert file.read_text() == "by another" and page.input_value("#text-of") == "mine"
    file.write_bytes(was)


def test_on_a_phone_everything_is_reached_by_touch(browser: Any, studio: tuple[Served, Path]) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, has_touch=True)
    page = context.new_page()
    page.goto(studio[0].address)
    page.wait_for_selector("#grid li")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.tap("#grid li:nth-child(2) button")
    page.wait_for_selector("#text-of:focus")
    for part in ("#large", "#save", "#switch"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    page.tap("#close")
    page.tap("#change")
    box = page.locator("#many").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    page.goto(f"http://127.0.0.1:{studio[0].port}/run")
    page.wait_for_selector("#progress")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    context.close()


def step(number: int) -> str:
    return json.dumps({"step": number, "epoch": 0, "loss": 1 / number, "lr/unet": 0.1}) + "\n"


def test_the_page_of_a_run_follows_it(browser: Any, tmp_path: Path) -> None:
    config = small_project(tmp_path)
    run = tmp_path / "runs" / "trial-20260101-000000"
    with served(config) as studio:
        context = browser.new_context(viewport={"width": 1000, "height": 500})
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(studio.address)
        page.goto(f"http://127.0.0.1:{studio.port}/run")
        page.wait_for_selector("#progress >> text='No run yet'")
        run.mkdir(parents=True)
        (run / "run.json").write_text('{"project": "trial"}')
        (run / "plan.json").write_text('{"total_steps": 100, "sources": []}')
        began = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - 60))
        (run / "events.jsonl").write_text(json.dumps({"time": began, "event": "started", "step": 0}) + "\n")
        (run / "metrics.jsonl").write_text("".join(map(step, range(1, 21))))
        page.wait_for_selector("#charts svg", timeout=15_000)
        told = page.inner_text("#progress")
        assert "going on" in told and "20 of 100" in told and "about 3 s a step" in told and "about 4 min" in told
        page.evaluate("window.scrollTo(0, 300); document.getElementById('points').dataset.kept = 'yes'")
        with (run / "metrics.jsonl").open("a") as file:
            file.write("".join(map(step, range(21, 41))) + '{"step": 41, "ep')
        page.wait_for_selector("#progress >> text='40 of 100'", timeout=15_000)
        assert page.evaluate("scrollY") == 300
        assert page.get_attribute("#points", "data-kept") == "yes", "what did not change is left alone"
        page.wait_for_selector("#verdict >> text='Step 40 of 100, not ended.'", timeout=15_000)
        with (run / "events.jsonl").open("a") as file:
            file.write(json.dumps({"time": began, "event": "finished", "step": 40}) + "\n")
        page.wait_for_selector("#progress h2 >> text='finished'", timeout=15_000)
        context.close()
    assert errors == []
