"""Images that a list switches off: not drawn, counted, told, and nothing else of them changes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import run_cli

from everydream.config import load_config
from everydream.data.excluding import can_be_listed, read_excluded, switched
from everydream.errors import ConfigError, DataError
from everydream.plan import plan_run
from everydream.report.inspection import describe_inspection, inspect_run
from everydream.training.state import Facts, changes

OFF = "mine/a picture of thing 1_(1).png"


def test_images_of_the_list_beside_the_config_are_left_out(project: Callable[..., Path], tmp_path: Path) -> None:
    config = project()
    every = plan_run(load_config(config))
    own = tmp_path / "project.excluded.txt"
    own.write_text(f"# tried without\n\n{OFF}\r\nmine/gone.png\n", encoding="utf-8-sig")
    planned = plan_run(load_config(config))
    keys = {planned.index.key(record) for record in range(len(planned.index))}
    assert {every.index.key(record) for record in range(len(every.index))} - keys == {OFF}
    assert list(planned.index.switched_off) == [OFF] and list(planned.index.unknown_off) == ["mine/gone.png"]
    # Six of mine twice, and real images for a quarter of all; then five.
    assert (every.mix.counts(0).sum(), planned.mix.counts(0).sum()) == (16, 13)
    report = inspect_run(planned, tmp_path / "cache", tmp_path / "page.html")
    assert report["switched_off"] == {"images": [OFF], "unknown": ["mine/gone.png"]}
    assert any(f["kind"] == "switched off" and "name no image: 1 (mine/gone.png)" in f["text"]
               for f in report["findings"])  # fmt: skip
    told = describe_inspection(planned, report)
    assert "10 images usable, 0 rejected, 1 switched off" in told
    assert f"1 images switched off, by {own}" in told and "1 lines of" in told
    assert "<dt>switched off</dt><dd>1</dd>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_list_of_another_name_counts_in_its_place(project: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "project.excluded.txt").write_text("mine/a picture of thing 0_(1).png\n")
    (tmp_path / "list.txt").write_text(f"{OFF}\nreal/a picture of thing 0_(1).png\n")
    planned = plan_run(load_config(project(data={"exclude": "list.txt"})))
    assert list(planned.index.switched_off) == [OFF, "real/a picture of thing 0_(1).png"]
    with pytest.raises(ConfigError, match=r"data.exclude: there is nothing at .*no such list"):
        load_config(project(data={"exclude": "no such list"}))


def test_a_list_that_cannot_be_read_is_refused(project: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "project.excluded.txt").write_bytes("mine/ä.png".encode("latin-1"))
    with pytest.raises(DataError, match=r"data.exclude: .*not UTF-8 at byte 5.* would be trained on; repair the file"):
        plan_run(load_config(project()))


def test_an_image_switched_off_is_gone_for_a_resume(project: Callable[..., Path], tmp_path: Path) -> None:
    facts = []
    for text in ("", OFF):
        (tmp_path / "project.excluded.txt").write_text(text)
        config = load_config(project())
        facts.append(Facts.of(config.plain(), plan_run(config).index))
        (tmp_path / "project.excluded.txt").unlink()
    assert changes(*facts) == [f"image gone: {OFF}"]


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    names = ["b/ä # x.png", "a/2\u2028.png", "a/1.png"]
    file = tmp_path / "list"
    file.write_text(switched(None, names, off=True), encoding="utf-8")
    assert read_excluded(str(file)) == sorted(names) and read_excluded(None) == []
    text = "# mine\na/1.png\n\nb/2.png\n"
    assert switched(text, ["b/2.png", "c.png"], off=True) == "# mine\na/1.png\n\nb/2.png\nc.png\n"
    assert switched(text, ["a/1.png"], off=False) == "# mine\n\nb/2.png\n"
    assert all(map(can_be_listed, names)) and not any(map(can_be_listed, ("#a/1.png", "a/1\n.png", " a/1.png")))


def test_the_command_says_it(project: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "off.txt").write_text(f"{OFF}\n")
    file = tmp_path / "report.json"
    done = run_cli("inspect", "--config", project(data={"exclude": "off.txt"}), "--json", file)
    assert "1 switched off" in done.stdout
    assert json.loads(file.read_text(encoding="utf-8"))["switched_off"]["images"] == [OFF]
