"""Sources on servers: the same images as on this machine, and every way in which a server disappoints."""

import errno
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tars import png, write_shard
from test_shards import captions_of, reasons
from web import Server, served

from everydream.caches.contents import hash_files
from everydream.data import fetched, folders, remote, shards
from everydream.data.base import cache_folder
from everydream.data.remote import _is_open
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.shards import picture_at
from everydream.errors import ConfigError, DataError
from everydream.types import Index
from pictures.decode import BadImage, decode


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    for number in range(2):
        members = {f"{n:05}.{end}": png(n + 10 * number) if end == "png" else f"thing {number} {n}"
                   for n in range(4) for end in ("png", "txt")}  # fmt: skip
        write_shard(tmp_path / "web" / f"{number:03}.tar", members)  # type: ignore[arg-type]
    with served(tmp_path / "web") as found:
        yield found


def scanned(path: str, **source: object) -> Index:
    return scan(DataSettings(sources=[SourceSettings(path=path, **source)]), CaptionSettings())  # type: ignore[arg-type]


def pixels(index: Index, record: int) -> np.ndarray:
    return decode(picture_at(Path(index.roots[0]) / index.paths[record], index.span(record)))


def same_but_for_places(one: Index, other: Index) -> bool:
    names = [field.name for field in fields(Index) if field.name not in ("roots", "names")]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_shards_on_a_server_are_those_on_this_machine(server: Server) -> None:
    """Each is received once for the scan; the next one only asks whether it changed."""
    there, here = scanned(f"{server.url}/{{000..001}}.tar"), scanned(str(server.folder))
    assert same_but_for_places(there, here) and len(there) == 8
    assert captions_of(there)["001.tar/00002.png"] == ["thing 1 2"]
    assert server.asked["GET 000.tar"] == server.asked["GET 001.tar"] == 1
    again = scanned(f"{server.url}/{{000..001}}.tar")
    assert same_but_for_places(again, here) and server.asked["GET 000.tar"] == 1
    assert [np.array_equal(pixels(there, n), pixels(here, n)) for n in range(8)] == [True] * 8


def test_one_shard_here_may_be_a_source(server: Server) -> None:
    assert list(scanned(str(server.folder / "001.tar")).paths) == [f"001.tar/0000{n}.png" for n in range(4)]
    assert len(scanned(str(server.folder / "{000..001}.tar"))) == 8
    with pytest.raises(DataError, match=r"2 of 4 shards are not there, 002\.tar the first"):
        scanned(str(server.folder / "{000..003}.tar"))


def test_without_a_cache_single_ranges_are_read(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.LIMIT, "0")
    index = scanned(f"{server.url}/000.tar")
    before = server.asked["GET 000.tar"]
    assert pixels(index, 2).shape == (12, 16, 3) and server.asked["GET 000.tar"] == before + 1
    assert not list((cache_folder() / "fetched").glob("*/*"))


def test_a_manifest_on_a_server(server: Server) -> None:
    (server.folder / "one.png").write_bytes(png(5))
    (server.folder / "all.jsonl").write_text(
        '{"file_name": "one.png", "text": "one"}\n{"file_name": "two.png", "text": "two"}\n'
    )
    index = scanned(f"{server.url}/all.jsonl", captions="manifest")
    assert captions_of(index) == {"one.png": ["one"]} and pixels(index, 0).shape == (12, 16, 3)
    assert reasons(index) == {"two.png": f"cannot be read: {server.url}/two.png: there is no such file on the server"}


# What goes wrong


def test_a_shard_that_is_refused_does_not_end_the_scan(server: Server) -> None:
    server.statuses["001.tar"] = [403]
    index = scanned(f"{server.url}/{{000..002}}.tar")
    assert len(index) == 4
    assert reasons(index) == {
        "001.tar": f"the shard cannot be read: {server.url}/001.tar: the server answered 403 Forbidden",
        "002.tar": f"the shard cannot be read: {server.url}/002.tar: there is no such file on the server",
    }
    assert server.asked["HEAD 001.tar"] + server.asked["GET 001.tar"] <= 4, "a refusal is not asked again and again"
    server.statuses.clear()
    assert len(scanned(f"{server.url}/{{000..001}}.tar")) == 8, "and is not remembered"


def test_what_may_pass_is_asked_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.LIMIT, "0")
    index = scanned(f"{server.url}/000.tar")
    server.statuses["000.tar"] = [503, 500, 200]
    assert pixels(index, 0).shape == (12, 16, 3)
    server.statuses["000.tar"] = [503]
    with pytest.raises(BadImage, match=rf"{server.url}/000.tar: no answer after 4 tries \(503"):
        pixels(index, 0)


def test_a_server_that_does_not_answer_in_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.LIMIT, "0")
    index = scanned(f"{server.url}/000.tar")

    def silent(*_: object, **__: object) -> bytes:
        raise TimeoutError("Timeout on reading data from socket")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_system", lambda url: (SimpleNamespace(cat_file=silent), url))
        with pytest.raises(BadImage, match=r"no answer after 4 tries \(Timeout on reading"):
            pixels(index, 0)
    assert pixels(index, 0).shape == (12, 16, 3)


@pytest.mark.parametrize("where", ["server", "here"])
def test_a_shard_that_was_written_anew_is_found_out(
    where: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its index does not match any more; an image of it is missing from its batch, with the reason."""
    monkeypatch.setenv(fetched.LIMIT, "0")
    index = scanned(f"{server.url}/000.tar" if where == "server" else str(server.folder / "000.tar"))
    write_shard(server.folder / "000.tar", {"another.png": png(0), "00001.png": png(1), "00002.png": png(2, (64, 64))})
    for record in range(4):
        with pytest.raises(BadImage, match=r"0000\d.png does not lie where the index says; the shard was written anew|"
                                           "shorter than it was"):  # fmt: skip
            pixels(index, record)


def test_a_server_without_byte_ranges(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ranges = False
    assert len(scanned(f"{server.url}/000.tar")) == 4, "small enough to be received whole"
    write_shard(server.folder / "001.tar", {"0.png": png(0), "0.bin": bytes(1 << 20)})
    monkeypatch.setenv(fetched.LIMIT, "0")
    assert "the server ignores byte ranges" in reasons(scanned(f"{server.url}/001.tar"))["001.tar"]


@pytest.mark.parametrize(
    ("address", "is_open"),
    [
        ("93.184.216.34", True), ("2606:4700::1111", True), ("64:ff9b::5db8:d822", True), ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("2002:a00:1::", False), ("fe80::1%eth0", False),
        ("169.254.169.254", False), ("168.63.129.16", False), ("::1", False),
    ],
)  # fmt: skip
def test_private_addresses_in_all_their_forms(monkeypatch: pytest.MonkeyPatch, address: str, is_open: bool) -> None:
    monkeypatch.delenv("EVERYDREAM_ALLOW_PRIVATE", raising=False)
    assert _is_open(address) == is_open


def test_redirects_to_private_addresses_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host that the source names is the user's own wish; where it sends us is not."""
    elsewhere = server.url.replace("127.0.0.1", "127.0.0.2")
    server.redirects["000.tar"] = f"{elsewhere}/001.tar"
    index = scanned(f"{server.url}/{{000..001}}.tar")
    assert "it leads to 127.0.0.2, a private address; EVERYDREAM_ALLOW_PRIVATE can open it" in reasons(index)["000.tar"]
    monkeypatch.setenv(remote.ALLOW_PRIVATE, "10.0.0.0/8, 127.0.0.2")
    opened = reasons(scanned(f"{server.url}/{{000..001}}.tar"))["000.tar"]
    assert "private address" not in opened and "no answer" in opened


def test_folders_of_web_servers_are_refused(server: Server) -> None:
    with pytest.raises(DataError, match=r"list no folders; give shards, such as .*/\{000\.\.009\}\.tar, or a"):
        scanned(server.url)


def test_a_scheme_whose_package_is_not_there() -> None:
    assert "Protocol not known: nosuch" in reasons(scanned("nosuch://bucket/000.tar"))["000.tar"]
    with pytest.raises(ConfigError, match=r"gs://bucket/000.tar: reading this needs another package: .*gcsfs"):
        scanned("gs://bucket/000.tar")


# The cache


def test_the_cache_is_bounded_and_the_longest_unused_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.LIMIT, "0.00001")  # 10,000 bytes
    for number in range(30):
        place = fetched.place_of(number)
        assert fetched.keep(place, [bytes(1000)])
        os.utime(place, (1000 + number, 1000 + number))
    fetched.tidy()
    kept = [number for number in range(30) if fetched.find(fetched.place_of(number), 1000)]
    assert 9 <= len(kept) <= 10 and kept == list(range(kept[0], 30))
    assert not fetched.is_kept(3000), "a file that would take a quarter of it"


def test_a_limit_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.LIMIT, "plenty")
    with pytest.raises(ConfigError, match="EVERYDREAM_CACHE_GB is 'plenty', expected a number of gigabytes"):
        fetched.limit_bytes()


def test_a_full_disk_is_done_without(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert len(scanned(f"{server.url}/000.tar")) == 4


def repainted(server: Server) -> None:
    """Put other pixels into a shard that stays as it is in names and sizes."""
    path = server.folder / "000.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(PLAIN, PLAIN[::-1]))
    assert path.read_bytes() != content


PLAIN = bytes(range(200))
"""In the place of a picture, so that its bytes can be found in the tar."""


def test_what_changes_under_us_is_found_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same place, of the same size: only the server's word tells."""
    write_shard(server.folder / "000.tar", {"00000.png": png(0), "00000.txt": "a thing", "note.bin": PLAIN})
    index = scanned(f"{server.url}/000.tar")
    pixels(index, 0)
    repainted(server)
    pixels(index, 0)  # asked every minute
    monkeypatch.setattr(shards, "_ASK_AGAIN_S", 0.0)
    with pytest.raises(BadImage, match="it is not the file that was scanned"):
        pixels(index, 0)
    assert len(scanned(f"{server.url}/000.tar")) == 1, "a scan takes it as it is now"


def test_nothing_is_remembered_of_a_server_that_does_not_say_what_changed(server: Server) -> None:
    server.marks = False
    write_shard(server.folder / "000.tar", {"00000.png": png(0), "00000.txt": "a thing", "note.bin": PLAIN})
    path = Path(f"{server.url}/000.tar/note.bin")
    assert len(scanned(f"{server.url}/000.tar")) == 1 and shards.read_bytes(path) == PLAIN
    repainted(server)
    shards.forget()
    assert shards.read_bytes(path) == PLAIN[::-1]
    asked = server.asked["GET 000.tar"]
    assert len(scanned(f"{server.url}/000.tar")) == 1 and server.asked["GET 000.tar"] > asked
    assert not list(cache_folder().glob("fetched/*/*"))


@pytest.mark.parametrize("harm", ["cut short", "gone"])
def test_a_kept_file_that_was_harmed_is_fetched_again(server: Server, harm: str) -> None:
    index = scanned(f"{server.url}/000.tar")
    before = pixels(index, 0)
    (kept,) = cache_folder().glob("fetched/*/*")
    kept.write_bytes(kept.read_bytes()[:100]) if harm == "cut short" else kept.unlink()
    assert np.array_equal(pixels(index, 0), before)


def test_bytes_of_remote_files_are_hashed_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetched.LIMIT, "0")
    index = scanned(f"{server.url}/000.tar")
    files, spans = [index.file(record) for record in range(4)], [index.span(record) for record in range(4)]
    first = hash_files(tmp_path / "hashes", files, spans)
    asked = server.asked["GET 000.tar"]
    assert (hash_files(tmp_path / "hashes", files, spans) == first).all() and server.asked["GET 000.tar"] == asked
    write_shard(server.folder / "000.tar", {f"{n:05}.png": png(9 - n) for n in range(4)})
    shards.forget()
    assert (hash_files(tmp_path / "hashes", files, spans) != first).all()


def test_setting_files_that_a_server_does_not_list_are_no_settings_but_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`multiply.txt` may lie there: the images are not trained on as if it did not."""
    above = folders.read_level(Path("memory:/set"), "", folders._Level({}, {}, (), ()))
    assert above.problems == ()

    def refused(url: str) -> list[str]:
        raise OSError(errno.EIO, "the server answered 403", url)

    monkeypatch.setattr(folders, "names_in", refused)
    level = folders.read_level(Path("memory:/set"), "dogs", above)
    assert level.problems == ("dogs: its setting files cannot be read (memory://set/dogs: the server answered 403)",)


def test_what_is_kept_is_of_the_file_that_it_is_called_by(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaced, read, and put back: the bytes in between are nobody's afterwards."""
    monkeypatch.setattr(fetched, "is_kept", lambda size: 0 < size < 1000)  # ranges, and no whole shard
    write_shard(server.folder / "000.tar", {"00000.png": png(0), "00000.txt": "a thing", "note.bin": PLAIN})
    path = Path(f"{server.url}/000.tar/note.bin")
    span = shards.span_of(path)
    monkeypatch.setattr(shards, "_JUST_NOW_S", 0.0)
    repainted(server)
    with pytest.raises(OSError, match="it is not the file that was scanned"):
        shards.read_bytes(path, span)
    write_shard(server.folder / "000.tar", {"00000.png": png(0), "00000.txt": "a thing", "note.bin": PLAIN})
    shards.forget()
    assert shards.read_bytes(path, span) == PLAIN


def test_one_server_that_is_behind_is_no_change(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    index, told = scanned(f"{server.url}/000.tar"), [0]
    monkeypatch.setattr(shards, "_ASK_AGAIN_S", 0.0)
    said = remote.stamp_of

    def flapping(url: str) -> remote.Stamp:
        told[0] += 1
        return said(url)._replace(mark="old") if told[0] % 2 else said(url)

    monkeypatch.setattr(remote, "stamp_of", flapping)
    assert pixels(index, 0).shape == pixels(index, 1).shape


def test_what_is_known_of_servers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million single images have a million addresses."""
    asked = [0]

    def stamp(url: str) -> remote.Stamp:
        asked[0] += 1
        return remote.Stamp(10, "mark")

    monkeypatch.setattr(remote, "stamp_of", stamp)
    for number in range(6000):
        assert shards._unchanged(f"https://example.org/{number}.jpg").size == 10
    assert asked[0] == 6000, "what was just asked about is not asked about again"
    assert shards._seen.cache_info().currsize == 4096
    shards.forget()
