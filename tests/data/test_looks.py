"""What is seen of image files is kept, seen anew when a file changes, and never trusted when it is broken."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import make_images
from PIL import Image

from everydream.data import looks as room
from everydream.data.looking import PAGE_SIDE, look_at
from everydream.data.looks import FILE, Looks


def paths_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))


def no_looking(*_: object) -> None:
    raise AssertionError("an image was read although it was seen before")


def test_a_second_look_reads_no_image_and_an_edited_file_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_in(make_images(tmp_path / "set", 4))
    with Looks(tmp_path / "cache") as looks:
        first = looks.see(paths)
        page = looks.page(paths[0])
    assert page is not None and page.startswith(b"\xff\xd8")
    monkeypatch.setattr(room, "look_at_all", no_looking)
    with Looks(tmp_path / "cache") as looks:
        assert looks.see(paths) == first and looks.page(paths[0]) == page
        Image.new("RGB", (50, 50), "red").save(paths[1])
        with pytest.raises(AssertionError, match="seen before"):
            looks.see(paths)
        monkeypatch.undo()
        again = looks.see(paths)
        assert again[1] != first[1] and again[1] is not None and again[1].width == 50
        assert [again[0], *again[2:]] == [first[0], *first[2:]]


def test_many_images_are_looked_at_in_processes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = paths_in(make_images(tmp_path / "set", 40))
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(room, "_FEW", 1)
    monkeypatch.setattr(room.os, "cpu_count", lambda: 2)
    with Looks(tmp_path / "cache") as looks:
        seen = looks.see(paths, progress=lambda *done: calls.append(done))
    assert seen == [(found or (None,))[0] for found in map(look_at, paths)]
    assert calls == [(24, 40), (40, 40)]


def test_a_broken_cache_is_thrown_away_and_said(tmp_path: Path) -> None:
    paths = paths_in(make_images(tmp_path / "set", 2))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FILE).write_bytes(b"no database" * 1000)
    said: list[str] = []
    for _ in range(2):
        with Looks(tmp_path / "cache", said.append) as looks:
            assert None not in looks.see(paths)
    (line,) = said
    assert "was damaged" in line and FILE in line and "looked at again" in line


def test_a_cache_that_breaks_in_use_is_replaced(tmp_path: Path) -> None:
    paths = paths_in(make_images(tmp_path / "set", 3))
    said: list[str] = []
    with Looks(tmp_path / "cache", said.append) as looks:
        first = looks.see(paths)
        content = bytearray((tmp_path / "cache" / FILE).read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
    (tmp_path / "cache" / FILE).write_bytes(content)
    with Looks(tmp_path / "cache", said.append) as looks:
        assert looks.see(paths) == first
    assert len(said) == 1 and "was damaged" in said[0]


def test_without_a_writable_folder_it_goes_on_and_says_so(tmp_path: Path) -> None:
    paths = paths_in(make_images(tmp_path / "set", 2))
    (tmp_path / "a file").write_text("in the way", encoding="utf-8")
    said: list[str] = []
    with Looks(tmp_path / "a file", said.append) as looks:
        assert None not in looks.see(paths) and looks.page(paths[0]) is not None
    assert len(said) == 1 and "is not kept for the next time" in said[0]


def test_two_at_once_share_a_cache(tmp_path: Path) -> None:
    paths = paths_in(make_images(tmp_path / "set", 40))

    def see(some: list[Path]) -> int:
        with Looks(tmp_path / "cache") as looks:
            return sum(look is not None for look in looks.see(some))

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(see, [paths[:30], paths[10:]])) == [30, 30]


def test_what_cannot_be_decoded_is_none_and_orientation_and_background_count(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with Looks(tmp_path / "cache") as looks:
        bad, clear, turned, missing = looks.see(
            [*(tmp_path / name for name in ("bad.jpg", "clear.png", "turned.jpg", "gone.jpg"))]
        )
        assert bad is None and missing is None
        assert turned is not None and (turned.width, turned.height) == (600, 1200)
        assert clear is not None and set(clear.small) == {255}
        (dark,) = looks.see([tmp_path / "clear.png"], background="#000000")
        assert dark is not None and set(dark.small) == {0}
        page = looks.page(tmp_path / "turned.jpg")
    assert page is not None
    (tmp_path / "page.jpg").write_bytes(page)
    with Image.open(tmp_path / "page.jpg") as shown:
        assert shown.size == (PAGE_SIDE // 2, PAGE_SIDE)


def test_the_cache_is_where_the_system_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = paths_in(make_images(tmp_path / "set", 1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with Looks() as looks:
        looks.see(paths)
    assert [path.name for path in (tmp_path / "xdg" / "everydream").iterdir()] == [FILE]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == [paths[0].name]
