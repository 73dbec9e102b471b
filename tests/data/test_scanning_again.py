"""What a scan keeps for the next one: only what changed is opened, and nothing that changed is missed."""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everydream.data import portions, surveying
from everydream.data.base import cache_folder
from everydream.data.checking import check
from everydream.data.kept import FILE
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.types import Index


@pytest.fixture(autouse=True)
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A cache of its own, that takes files just written for settled; the images that are opened."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(portions, "_FRESH_NS", -(10**12))
    names: list[str] = []

    def checked(candidate, *rest):
        names.append(candidate.path)
        return check(candidate, *rest)

    monkeypatch.setattr(portions, "check", checked)
    yield names


def picture(path: Path, colour: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), (colour, 20, 30)).save(path)


def folder(tmp_path: Path, count: int = 40) -> Path:
    for number in range(count):
        picture(tmp_path / "set" / ("ab"[number % 2]) / f"{number:03}.png", number)
        (tmp_path / "set" / ("ab"[number % 2]) / f"{number:03}.txt").write_text(f"thing {number}")
    return tmp_path / "set"


def scanned(path: Path, captions: CaptionSettings | None = None, **data: object) -> Index:
    settings = DataSettings(sources=[{"path": str(path)}], **data)  # type: ignore[arg-type]
    return scan(settings, captions or CaptionSettings())


def same(one: Index, other: Index) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Index))


def test_nothing_is_opened_again_and_the_index_is_the_same(tmp_path: Path, opened: list[str]) -> None:
    first = scanned(folder(tmp_path))
    assert len(opened) == len(first) == 40
    again = scanned(tmp_path / "set")
    assert len(opened) == 40 and same(first, again)


def overwrite(path: Path) -> None:
    """Write other pixels of the same number of bytes, and give the file its old date back."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "another picture": lambda root: picture(root / "a" / "002.png", 200),
    "as many bytes and the old date": lambda root: overwrite(root / "a" / "002.png"),
    "a caption": lambda root: (root / "a" / "002.txt").write_text("another thing"),
    "a caption less": lambda root: (root / "a" / "002.txt").unlink(),
    "a setting of its folder": lambda root: (root / "a" / "multiply.txt").write_text("3"),
    "a setting above": lambda root: (root / "global.yaml").write_text("flip_p: 0.5"),
    "a bad setting": lambda root: (root / "a" / "flip_p.txt").write_text("often"),
    "a mask": lambda root: Image.new("L", (20, 10), 255).save(root / "a" / "002.mask.png"),
    "an image more": lambda root: picture(root / "a" / "0025.png"),
    "an image less": lambda root: (root / "a" / "002.png").unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_found(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a scan with a cache finds after a change is what one without finds."""
    root = folder(tmp_path)
    before = scanned(root)
    CHANGES[change](root)
    after = scanned(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    assert same(after, scanned(root)) and not same(before, after)


@pytest.mark.parametrize(
    ("captions", "data"),
    [(CaptionSettings(dropout=0.5), {}), (CaptionSettings(keep_tags=2), {}), (None, {"flip_p": 0.25}),
     (None, {"max_megapixels": 0.0001}), (None, {"check": "headers"})],
)  # fmt: skip
def test_other_settings_are_another_scan(captions, data, tmp_path: Path, opened: list[str]) -> None:
    scanned(folder(tmp_path))
    scanned(tmp_path / "set", captions, **data)
    assert len(opened) == 80


def test_only_what_lies_near_a_change_is_opened(tmp_path: Path, opened: list[str]) -> None:
    root = folder(tmp_path, 400)
    scanned(root)
    del opened[:]
    picture(root / "a" / "002.png", 99)
    scanned(root)
    assert "a/002.png" in opened and len(opened) < 200 and not any(name.startswith("b/") for name in opened)


def test_files_just_written_are_looked_at_again(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be written again within the same tick of the clock."""
    monkeypatch.setattr(portions, "_FRESH_NS", 2 * 10**9)
    scanned(folder(tmp_path))
    scanned(tmp_path / "set")
    assert len(opened) == 80


def test_a_scan_that_is_killed_goes_on(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, 400)
    monkeypatch.setattr(surveying, "_WRITE_S", 0.0)

    def kill(done: int, total: int) -> None:
        if done > 200:
            raise KeyboardInterrupt

    data = DataSettings(sources=[{"path": str(root)}], check="headers")  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt):
        scan(data, CaptionSettings(), kill)
    opened_before = len(opened)
    scan(data, CaptionSettings())
    assert len(set(opened[opened_before:])) < 200 and set(opened) == {f"{'ab'[n % 2]}/{n:03}.png" for n in range(400)}


def test_what_may_pass_is_not_kept(tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that does not answer says nothing about a file."""
    root = folder(tmp_path, 4)
    whole = portions.check

    def failing(candidate, *rest):
        from everydream.types import Rejection

        return Rejection(0, candidate.path, "cannot be read: Input/output error")

    monkeypatch.setattr(portions, "check", failing)
    assert len(scanned(root)) == 0
    monkeypatch.setattr(portions, "check", whole)
    assert len(scanned(root)) == 4


def test_a_damaged_cache_is_thrown_away(tmp_path: Path, opened: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    scanned(folder(tmp_path))
    (cache_folder() / FILE).write_bytes(b"no database at all" * 100)
    assert len(scanned(tmp_path / "set")) == 40 and len(opened) == 80
    assert "was damaged" in capsys.readouterr().err
    scanned(tmp_path / "set")
    assert len(opened) == 80


def test_a_cache_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert len(scanned(folder(tmp_path))) == 40
    assert "what this scan finds is not kept for the next time" in capsys.readouterr().err


def test_processes_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, 60)
    (root / "a" / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    one = scanned(root, check="headers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(surveying, "_FEW_IMAGES", 0)
    monkeypatch.setattr(surveying, "num_processes", lambda: 2)
    assert same(one, scanned(root, check="headers")) and len(one.rejected) == 1


def test_a_manifest_is_known_again_and_its_changes_are_found(tmp_path: Path, opened: list[str]) -> None:
    for number in range(6):
        picture(tmp_path / f"{number}.png", number)
    rows = [f'{{"file": "{n % 7}.png", "text": "thing {n}"}}' for n in range(8)]
    (tmp_path / "all.jsonl").write_text("\n".join(rows))

    def manifest() -> Index:
        source = {"path": str(tmp_path / "all.jsonl"), "captions": "manifest"}
        return scan(DataSettings(sources=[source]), CaptionSettings())  # type: ignore[list-item]

    first = manifest()
    assert first.captions[0:2] == ["thing 0", "thing 7"] and [r.path for r in first.rejected] == ["6.png"]
    assert same(first, manifest()) and len(opened) == 6
    (tmp_path / "all.jsonl").write_text("\n".join(rows).replace("thing 3", "another"))
    assert "another" in list(manifest().captions)
    picture(tmp_path / "6.png", 77)
    assert len(manifest()) == 7
