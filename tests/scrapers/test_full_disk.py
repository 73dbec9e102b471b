"""No room left, at any moment: a message, exit code 2, nothing half-written; with room the same command goes on."""

import errno
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from PIL import Image
from scrapes import Ran, arguments, partial_files, scrape, the_set, write_list
from servers import Site, jpeg, ok, png

from scrapers.errors import WriteError
from scrapers.ledger import Ledger
from scrapers.types import Outcome, Picture, Row


def full(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_the_nth(n: int, real: Callable[..., Any], concerns: Callable[..., bool] = lambda *_, **__: True) -> Any:
    """Call the real function, but fail from the n-th call on that is about a file of ours."""
    count = 0

    def function(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        if concerns(*arguments, **options):
            count += 1
            if count >= n:
                return full()
        return real(*arguments, **options)

    return function


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        for n in range(30):
            site[f"/{n}"] = ok(png(n, (160, 120)) if n % 2 else jpeg(n, (160, 120)))
        yield site


def rows(site: Site, tmp_path: Path) -> Path:
    return write_list(tmp_path / "list.jsonl", {site.url(f"/{n}"): f"a thing? {n // 3}" for n in range(30)})


def check_what_is_there(out: Path) -> None:
    """All files are whole, and no image is without the caption that its name cannot hold."""
    assert partial_files(out) == []
    for path in out.glob("*.jpg"):
        with Image.open(path) as image:
            image.load()
        assert path.with_suffix(".txt").read_text().startswith("a thing?")
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) == 21


def is_part(path: Path, *_: object, **__: object) -> bool:
    return str(path).endswith(".part")


PLACES = {
    "fetched files": ("folder", lambda: (Path, "open", at_the_nth(9, Path.open, is_part))),
    "links": ("folder", lambda: (os, "link", at_the_nth(5, os.link))),
    "sidecars": ("folder", lambda: (Path, "write_bytes", at_the_nth(7, Path.write_bytes))),
    "renamed": ("folder", lambda: (Path, "replace", at_the_nth(40, Path.replace))),
    "shards": ("webdataset", lambda: (tarfile.TarFile, "addfile", at_the_nth(30, tarfile.TarFile.addfile))),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_room_for(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    sink, patch = PLACES[place]
    options = ["--sink", sink, "sink.shard_size=7"]
    listed = rows(site, tmp_path)
    whole = scrape(listed, tmp_path / "whole", *options)
    with monkeypatch.context() as patched:
        patched.setattr(*patch())
        if place == "links":
            patched.setattr(shutil, "copyfile", full)
        ran = scrape(listed, tmp_path / "set", *options, code=2)
    assert "No space left on device" in ran.said and "make room and run the same command again" in ran.said
    assert "Traceback" not in ran.said
    check_what_is_there(tmp_path / "set")
    again = scrape(listed, tmp_path / "set", *options)
    assert again.counts == {"stored": 30} == whole.counts and the_set(again.out) == the_set(whole.out)


@pytest.mark.parametrize("room", [0, 1])
def test_no_room_for_the_ledger(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    real = Ledger.__init__

    def init(self: Ledger, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        self._db.execute(f"PRAGMA max_page_count = {pages + room}")

    listed = rows(site, tmp_path)
    whole = scrape(listed, tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "__init__", init)
        ran = scrape(listed, tmp_path / "set", code=2)
    assert "database or disk is full" in ran.said and "Traceback" not in ran.said
    check_what_is_there(tmp_path / "set")
    assert the_set(scrape(listed, tmp_path / "set").out) == the_set(whole.out)


def test_nothing_is_noted_on_top_of_what_was_lost(tmp_path: Path) -> None:
    """SQLite takes back all that was not committed; a note that came after it would tell of a file nobody knows."""
    ledger = Ledger(tmp_path)
    first = ledger.take_up(Row(0, "", "http://example.org/first"), "a thing")
    assert first == 1
    ledger.commit()
    ledger.finish(Outcome(1, Picture(tmp_path / "x.jpg", ".jpg", 5, 4, 9, "5a", None), 1))
    (pages,) = ledger._db.execute("PRAGMA page_count").fetchone()
    ledger._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(WriteError, match="full"):
        for n in range(1, 1000):
            ledger.take_up(Row(n, "", f"http://example.org/{n}"), "a thing " * 50)
    for note in (lambda: ledger.store(1, "a thing_(1).jpg"), ledger.commit):
        with pytest.raises(WriteError, match="full"):
            note()
    ledger.abandon()
    again = Ledger(tmp_path)
    assert [(r.number, r.status, r.sha256) for r in again.records()] == [(1, "pending", None)]
    again.close()


def test_a_disk_that_is_full(site: Site, tmp_path: Path) -> None:
    """A real one of half a megabyte, in a name space of its own; then it grows."""
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    (tmp_path / "disk").mkdir()
    disk, out = shlex.quote(str(tmp_path / "disk")), tmp_path / "disk" / "set"
    if subprocess.run([*mount, f"mount -t tmpfs -o size=500k none {disk}"], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    listed = rows(site, tmp_path)
    whole = scrape(listed, tmp_path / "whole")
    command = shlex.join([sys.executable, "-m", "scrapers", *arguments(listed, out)])
    script = f"""
        mount -t tmpfs -o size=500k none {disk}
        {command}; echo first $?
        cp -a {shlex.quote(str(out))} {shlex.quote(str(tmp_path / "first"))}
        head -c 1m /dev/zero > {disk}/rest
        {command}; echo still $?
        {sys.executable} -m scrapers report {shlex.quote(str(out))}; echo report $?
        rm {disk}/rest
        mount -o remount,size=50m {disk}
        {command}; echo second $?
        cp -a {shlex.quote(str(out))} {shlex.quote(str(tmp_path / "second"))}
    """
    done = subprocess.run([*mount, script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    for line in ("first 2\n", "still 2\n", "report 0\n", "second 0\n"):
        assert line in done.stdout, done.stdout + done.stderr
    assert "ScrapeError: The scrape was stopped:" in done.stderr and "Traceback" not in done.stderr
    check_what_is_there(tmp_path / "first")
    assert Ran(tmp_path / "second", 0, "").counts == {"stored": 30}
    assert the_set(tmp_path / "second") == the_set(whole.out)


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    ran = scrape(rows(site, tmp_path), tmp_path / where, code=2)
    assert "ScrapeError" in ran.said and str(tmp_path / where) in ran.said and "Traceback" not in ran.said
    assert site.hits == []
