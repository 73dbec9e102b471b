"""What nobody sends by accident: files, names and lists that are made to do harm, or that look like it."""

import asyncio
import io
import os
import subprocess
import sys
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image, ImageCms, JpegImagePlugin

from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.shards import list_shard, read_bytes
from pictures.colour import is_srgb
from scrapers import report
from scrapers.decoding import Decoders
from scrapers.domains import group_of
from scrapers.errors import ScrapeError, printable
from scrapers.images import MAX_SCANS, make_picture
from scrapers.jpeg import without_metadata
from scrapers.ledger import Ledger
from scrapers.settings import FilterSettings, ImageSettings, SinkSettings
from scrapers.settings import SourceSettings as ListSettings
from scrapers.sinks import open_sink
from scrapers.sources import open_source
from scrapers.types import Entry, Item, Outcome, Picture, Reason, Row, Verdict


def picture_bytes(colour: int = 90, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 80, 200)).save(file, "JPEG", **options)
    return file.getvalue()


# JPEG


def test_metadata_between_the_scans_and_in_odd_segments_goes(tmp_path: Path) -> None:
    plain = picture_bytes(progressive=True)
    secret = b"where I live"
    comment = b"\xff\xfe" + (2 + len(secret)).to_bytes(2, "big") + secret
    exif = b"\xff\xe1" + (8 + len(secret)).to_bytes(2, "big") + b"Exif\0\0" + secret
    not_adobe = b"\xff\xee" + (2 + len(secret)).to_bytes(2, "big") + secret
    second_scan = plain.index(b"\xff\xda", plain.index(b"\xff\xda") + 2)
    # The tables that belong to a scan stand before it.
    tables = plain.rindex(b"\xff\xc4", 0, second_scan)
    with_thumbnail = b"\xff\xe0\x00\x13JFIF\0\1\1\0\0\1\0\1\1\1" + b"abc"
    content = plain[:2] + with_thumbnail + not_adobe + plain[2:tables] + comment + exif + plain[tables:]
    assert Image.open(io.BytesIO(content)).size == (40, 30)
    cleaned = without_metadata(content)
    assert secret not in cleaned and b"abc" not in cleaned
    with Image.open(io.BytesIO(cleaned)) as after, Image.open(io.BytesIO(plain)) as before:
        assert isinstance(after, JpegImagePlugin.JpegImageFile) and after.tobytes() == before.tobytes()
    raw = tmp_path / "1.raw"
    raw.write_bytes(content)
    made = make_picture(raw, tmp_path / "1", Item(1, ""), ImageSettings(), FilterSettings())
    assert isinstance(made, Picture) and secret not in made.file.read_bytes()


def test_a_profile_in_an_odd_place_costs_no_image(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = picture_bytes(icc_profile=profile)
    at = content.index(b"\xff\xe2")
    end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    moved = content[:at] + content[end : (scan := content.index(b"\xff\xda"))] + content[at:end] + content[scan:]
    raw = tmp_path / "1.raw"
    raw.write_bytes(moved)
    for settings in (ImageSettings(), ImageSettings(keep_original=True), ImageSettings(resize=16)):
        assert isinstance(make_picture(raw, tmp_path / "1", Item(1, ""), settings, FilterSettings()), Picture)


@pytest.mark.parametrize("keep_original", [True, False])
def test_a_jpeg_of_thousands_of_scans_is_not_decoded(tmp_path: Path, keep_original: bool) -> None:
    plain = picture_bytes(progressive=True)
    scan_at = plain.rindex(b"\xff\xda")
    raw = tmp_path / "1.raw"
    settings = ImageSettings(keep_original=keep_original)
    raw.write_bytes(plain[:-2] + plain[scan_at:-2] * MAX_SCANS + plain[-2:])
    refused = make_picture(raw, tmp_path / "1", Item(1, ""), settings, FilterSettings())
    assert isinstance(refused, Verdict) and refused.reason is Reason.DECODE_ERROR and "scans" in refused.detail
    raw.write_bytes(plain)
    assert isinstance(make_picture(raw, tmp_path / "1", Item(1, ""), settings, FilterSettings()), Picture)


def test_a_profile_is_srgb_by_its_name_not_by_a_mention() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    name = "sRGB built-in".encode("utf-16-be")
    assert name in profile and is_srgb(profile)
    assert not is_srgb(profile.replace(name, "P3, sRGB tone".encode("utf-16-be")))
    assert is_srgb(b"broken")


# Decoders


def _fail() -> None:
    raise RuntimeError("no decoder here")


def test_decoders_that_cannot_start_are_told_and_blame_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoders, "_new", lambda self: ProcessPoolExecutor(1, self._context, _fail))

    async def main() -> None:
        decoders = Decoders(1, ImageSettings(), FilterSettings())
        try:
            await decoders.check()
        finally:
            decoders.close()

    with pytest.raises(ScrapeError, match="as soon as they are started"):
        asyncio.run(main())


# Tar


def test_no_member_leads_out_of_its_shard(tmp_path: Path) -> None:
    outside = tmp_path / "private.jpg"
    outside.write_bytes(picture_bytes(10))
    outside.with_suffix(".txt").write_text("a secret")
    root = tmp_path / "set"
    root.mkdir()
    with tarfile.open(root / "evil.tar", "w") as tar:
        for name in (str(outside), "../private.jpg", "./a/../../private.jpg", "fine.jpg"):
            for suffix, content in ((".jpg", picture_bytes(200)), (".txt", name.encode())):
                info = tarfile.TarInfo(name.removesuffix(".jpg") + suffix)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    for name in list_shard(root / "evil.tar"):
        path = root / "evil.tar" / name
        assert path.is_relative_to(root / "evil.tar") and ".." not in path.parts
        assert read_bytes(path) != outside.read_bytes()
    index = scan(DataSettings(sources=[SourceSettings(path=str(root))]), CaptionSettings())
    assert "a secret" not in index.captions and len(index) + len(index.rejected) == 4


# Sinks


def entry(number: int, folder: Path, caption: str) -> Entry:
    file = folder / f"{number}.staged"
    file.write_bytes(picture_bytes(number))
    return Entry(number, f"http://a/{number}", caption, {}, Picture(file, ".jpg", 40, 30, 1, str(number), None))


def staged(ledger: Ledger, entries: list[Entry]) -> list[Entry]:
    for one in entries:
        ledger.take_up(Row(one.number, "list", one.url), one.caption)
        ledger.finish(Outcome(one.number, one.picture, 1))
    ledger.commit()
    return entries


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_and_files_of_the_user_stay_as_they_are(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ledger = Ledger(out)
    (out / "a barn_(1).jpg").symlink_to("/nonexistent")
    (out / "a barn_(2).jpg").write_bytes(b"mine")
    (out / "a barn_(3).txt").write_text("mine")
    sink = open_sink(out, ledger, SinkSettings())
    assert sink.write(staged(ledger, [entry(1, tmp_path, "a barn")])) == ["a barn_(4).jpg"]
    assert (out / "a barn_(1).jpg").readlink() == Path("/nonexistent")
    assert (out / "a barn_(2).jpg").read_bytes() == b"mine" and (out / "a barn_(3).txt").read_text() == "mine"
    ledger.close()


def test_a_shard_that_was_written_and_not_counted_is_written_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ledger = Ledger(out)
    entries = staged(ledger, [entry(number, tmp_path, "a barn") for number in (1, 2, 3)])
    open_sink(out, ledger, SinkSettings(kind="webdataset")).write(entries[:2])
    ledger.abandon()  # killed before it could tell
    ledger = Ledger(out)
    paths = open_sink(out, ledger, SinkSettings(kind="webdataset")).write(entries)
    assert {path.partition("/")[0] for path in paths} == {"00000.tar"}
    assert sorted(path.name for path in out.glob("*.tar")) == ["00000.tar"]
    ledger.abandon()
    (out / "00000.tar").rename(out / "00001.tar")
    (out / "00000.tar").write_bytes(b"mine")
    other = Ledger(tmp_path / "other")
    (tmp_path / "other" / "00000.tar").write_bytes(b"mine")
    sink = open_sink(tmp_path / "other", other, SinkSettings(kind="webdataset"))
    assert sink.write(staged(other, [entry(1, tmp_path, "a barn")])) == ["00001.tar/000000000.jpg"]
    assert (tmp_path / "other" / "00000.tar").read_bytes() == b"mine"
    other.close()


# Lists


def test_credits_cannot_be_forged_and_texts_cannot_drive_the_terminal(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    author = "bob\nfake.jpg: Mona Lisa, by nobody, CC0\x1b[2J"
    ledger.take_up(Row(0, "list:1", "http://a/1", author=author, licence="CC BY 2.0"), "a barn")
    ledger.finish(Outcome(1, Picture(tmp_path / "x", ".jpg", 1, 1, 1, "0", None), 1))
    ledger.store(1, "a barn_(1).jpg")
    report.write_files(ledger, tmp_path)
    ledger.close()
    lines = (tmp_path / "credits.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and lines[1].startswith("a barn_(1).jpg: ") and "\x1b" not in lines[1]
    assert printable("a\x1b]0;x\x07\u202eb\n") == "a\ufffd]0;x\ufffd\ufffdb\n"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_a_list_whose_name_is_not_utf8(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/list\xff.txt")
    Path(path).write_text("http://a.example/1.jpg\ta barn\n", encoding="utf-8")
    source = open_source(ListSettings(kind="urls", files=[path]))
    ((row,),) = source.rows()
    ledger = Ledger(tmp_path / "out")
    assert ledger.take_up(row, "a barn") == 1
    ledger.close()


def test_every_url_belongs_to_a_group() -> None:
    for url in ("http://[bad/x.jpg", "", "\udcff", "http://a.example/x", "data:,", "http://é.example/"):
        assert 0 <= group_of(url, 7) < 7
    assert group_of("http://A.example:81/x", 1000) == group_of("https://a.example/y", 1000)


def test_a_folder_named_like_a_picture_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    (tmp_path / "y.png").write_bytes(picture_bytes())
    source = open_source(ListSettings(kind="ffhq", files=[str(tmp_path)]))
    assert [row.file for batch in source.rows() for row in batch] == [tmp_path / "y.png"]


def test_a_decoder_that_hangs_ends_itself() -> None:
    code = (
        "import time, scrapers.decoding as decoding, scrapers.images as images\n"
        "from scrapers.settings import FilterSettings, ImageSettings\n"
        "decoding.MAX_S = 0.2\n"
        "decoding._end_with_the_main_process = lambda: None\n"
        "decoding._prepare(ImageSettings(), FilterSettings())\n"
        "images.make_picture = lambda *task: time.sleep(30)\n"
        "decoding._make([(None, None, None)])\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=25)
    assert done.returncode == 1 and done.stdout == "" and done.stderr == ""
