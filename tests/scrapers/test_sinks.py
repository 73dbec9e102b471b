"""What is written is what the trainer reads: every image once, under exactly its caption, on every file system."""

import hashlib
import io
import json
import tarfile
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scrapes import Ran, scrape, the_set, write_list
from servers import Site, jpeg, ok, status

from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from scrapers import report
from scrapers.captions import caption_of
from scrapers.ledger import Ledger
from scrapers.settings import SinkSettings
from scrapers.sinks import folder as folder_sink
from scrapers.sinks import open_sink
from scrapers.types import Entry, Picture

CAPTIONS = [
    "a cat", "a cat", "A Cat", "a  cat", "ǅ", "ǆ", "straße", "STRASSE", "é", "e\u0301", "a cat.", ".hidden", "...",
    "con",
    "CON", "aux.txt", "lpt1", "com¹", "nul .x", "a/b\\c", 'what? "x" <y> |z| *: 5%', "under_score", "_", "_(1)",
    "a_(1)",
    "x" * 2000, "長い説明" * 500, "👩‍🚀" * 300, "a" * 239 + "é", "word " * 400, "line\nbreak\r\nand\ttab",
    "&quot;Tom &amp; Jerry&#39;s&quot;",
    "&amp;lt;x&amp;gt;", "<b>bold</b> &lt;3", "emoji 😀 ❤️", "rtl \u202egpj.exe\u202c \u200fשלום", "\ufeffbom",
    "nul\x00byte \x07bell", "--flag", "~home",
    "$(rm -rf)", "a;b|c", "multiply", "multiply.txt", "caption, with, tags", "{a|b} wildcard", "# not a comment",
    "a::0.5", "(weight:1.3)",
    "%20percent", "trailing dots...  ", "🏳️‍🌈", "ﬁ ligature", "İstanbul", "ı", "\u00a0nbsp\u00a0", "\u2028sep",
    "a cat_(2)", "image", "'quotes'", "[x]",
    "{}", "<!-- c --> d", "ÿ", "http://example.org/a_b.jpg?x=1", "index.parquet", "manifest.jsonl",
]  # fmt: skip


def read_by_the_trainer(folder: Path) -> dict[str, str]:
    """Return path -> caption as training would see it; nothing may be left out."""
    index = scan(DataSettings(sources=[SourceSettings(path=str(folder))]), CaptionSettings())
    assert list(index.rejected) == []
    starts = index.caption_offsets.tolist()
    assert starts == list(range(len(starts)))  # one caption each
    return dict(zip(index.paths, index.captions, strict=True))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The captions above as two sets."""
    folder = tmp_path_factory.mktemp("captions")
    with Site() as site:
        for n in range(len(CAPTIONS)):
            site[f"/{n}"] = ok(jpeg(n, (32, 24)))
        rows = [(site.url(f"/{n}"), caption) for n, caption in enumerate(CAPTIONS)]
        listed = write_list(folder / "list.jsonl", rows)
        yield {
            "folder": scrape(listed, folder / "folder"),
            "webdataset": scrape(listed, folder / "tar", "--sink", "webdataset", "sink.shard_size=20"),
        }


def wanted(ran: Ran) -> dict[str, str]:
    """Return path -> caption as the list and the cleaning have it."""
    number = {line["url"].rpartition("/")[2]: line["path"] for line in ran.lines}
    return {number[str(n)]: caption_of(caption) for n, caption in enumerate(CAPTIONS)}


@pytest.mark.parametrize("sink", ["folder", "webdataset"])
def test_the_trainer_reads_every_caption_as_it_is(ran: dict[str, Ran], sink: str) -> None:
    assert ran[sink].counts == {"stored": len(CAPTIONS)}
    assert read_by_the_trainer(ran[sink].out) == wanted(ran[sink])
    manifest = [json.loads(line) for line in (ran[sink].out / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert {line["path"]: line["caption"] for line in manifest} == wanted(ran[sink])
    assert [line["row"] for line in manifest] == list(range(len(CAPTIONS)))


def test_names_for_every_file_system(ran: dict[str, Ran]) -> None:
    names = [path.name for path in ran["folder"].out.iterdir() if path.suffix in (".jpg", ".txt")]
    assert max(len(name.encode()) for name in names) <= 240
    for fold in (str.casefold, str.upper, lambda name: unicodedata.normalize("NFD", name).casefold()):
        assert len({fold(name) for name in names}) == len(names)
    for name in names:
        assert not set(name) & set('<>:"/\\|?*') and not any(unicodedata.category(c) in ("Cc", "Cs") for c in name)
        stem = name.partition(".")[0].partition("_")[0].strip().casefold()
        assert stem not in ("con", "aux", "nul", "lpt1", "com¹", "prn") and name[0] not in ".-~ "
    numbers = sorted(name for name in names if name.casefold().startswith("a cat_"))
    assert numbers == ["A Cat_(3).jpg", "a cat_(1).jpg", "a cat_(2).jpg", "a cat_(4).jpg", "a cat_(5).jpg",
                       "a cat_(5).txt"]  # fmt: skip


def test_shards_are_read_by_the_reference_library(ran: dict[str, Ran]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import webdataset

        found = {}
        for shard in sorted(ran["webdataset"].out.glob("*.tar")):
            dataset = webdataset.WebDataset(str(shard), shardshuffle=False, empty_check=False)
            for sample in dataset:
                about = json.loads(sample["json"])
                assert hashlib.sha256(sample["jpg"]).hexdigest() == about["sha256"]
                assert sample["txt"].decode() == about["caption"]
                found[f"{shard.name}/{sample['__key__']}.jpg"] = about["caption"]
    assert found == wanted(ran["webdataset"])


def test_the_index_leads_to_the_bytes(ran: dict[str, Ran]) -> None:
    out = ran["webdataset"].out
    table = pq.read_table(out / "index.parquet").to_pylist()
    assert [row["key"] for row in table] == [f"{n:09d}" for n in range(len(CAPTIONS))]
    assert {row["path"]: row["caption"] for row in table} == wanted(ran["webdataset"])
    for row in table:
        with (out / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            data = file.read(row["size"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (row["width"], row["height"]) == (32, 24)
    assert Counter(row["shard"] for row in table)["00000.tar"] == 20


def test_shards_tell_nothing_of_this_machine(ran: dict[str, Ran]) -> None:
    for shard in ran["webdataset"].out.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert member.mode == 0o644


def test_both_sinks_hold_the_same_images(ran: dict[str, Ran]) -> None:
    digests = [[json.loads(line)["sha256"] for line in (one.out / "manifest.jsonl").read_text("utf-8").splitlines()]
               for one in ran.values()]  # fmt: skip
    assert digests[0] == digests[1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(max_size=300), min_size=1, max_size=12))
def test_any_captions(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    captions = [caption for text in texts if (caption := caption_of(text))]
    folder = tmp_path_factory.mktemp("any")
    image = folder / "image.jpg"
    image.write_bytes(jpeg(1, (16, 16)))
    picture = Picture(image, ".jpg", 16, 16, 1, "0", None)
    entries = [Entry(n, "", caption, {}, picture) for n, caption in enumerate(captions)]
    for kind in ("folder", "webdataset"):
        out = folder / kind
        out.mkdir()
        ledger = Ledger(out)
        paths = open_sink(out, ledger, SinkSettings(kind=kind)).write(entries)  # type: ignore[arg-type]
        ledger.close()
        assert read_by_the_trainer(out) == dict(zip(paths, captions, strict=True)) if captions else not paths


def test_large_sets_go_on_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_sink, "FILES_PER_FOLDER", 4)
    with Site() as site:
        for n in range(10):
            site[f"/{n}"] = ok(jpeg(n))
        listed = write_list(tmp_path / "a.jsonl", {site.url(f"/{n}"): f"what? {n % 2}" for n in range(10)})
        ran = scrape(listed, tmp_path / "set")
    assert Counter(Path(line["path"]).parent.as_posix() for line in ran.lines) == {".": 4, "00001": 4, "00002": 2}
    assert Counter(read_by_the_trainer(ran.out).values()) == {"what? 0": 5, "what? 1": 5}


@pytest.mark.parametrize("sink", ["folder", "webdataset"])
def test_files_of_the_users_are_never_touched(tmp_path: Path, sink: str) -> None:
    own = {"a cat_(1).jpg": b"my picture", "a cat_(2).txt": b"my words", "00000.tar": b"my tar", "notes.txt": b"x"}
    (tmp_path / "set").mkdir()
    for name, content in own.items():
        (tmp_path / "set" / name).write_bytes(content)
    with Site() as site:
        site["/1"], site["/2"] = ok(jpeg(1)), ok(jpeg(2))
        listed = write_list(tmp_path / "a.jsonl", {site.url("/1"): "a cat", site.url("/2"): "a cat"})
        ran = scrape(listed, tmp_path / "set", "--sink", sink)
    assert {name: (ran.out / name).read_bytes() for name in own} == own
    assert [line["path"] for line in ran.lines] == (
        ["a cat_(3).jpg", "a cat_(4).jpg"] if sink == "folder" else ["00001.tar/000000000.jpg",
        "00001.tar/000000001.jpg"])  # fmt: skip


# Reports


def test_credits_and_manifest(tmp_path: Path) -> None:
    with Site() as site:
        for n in range(3):
            site[f"/{n}"] = ok(jpeg(n))
        table = {
            "url": [site.url(f"/{n}") for n in range(3)], "text": ["one", "two", "three"],
            "license": ["CC BY 2.0", None, ""], "license_url": ["https://creativecommons.org/licenses/by/2.0/", "",
            None],
            "author": ["Ann Ö", None, ""], "title": ["DSC 1", None, "no name"],
        }  # fmt: skip
        pq.write_table(pa.table(table), tmp_path / "list.parquet")
        ran = scrape(tmp_path / "list.parquet", tmp_path / "set")
        assert (ran.out / "credits.txt").read_text("utf-8").splitlines()[1:] == [
            f"one_(1).jpg: DSC 1, by Ann Ö, CC BY 2.0 https://creativecommons.org/licenses/by/2.0/, {site.url('/0')}",
            "Licence and author not told by the source:",
            "         2 from 127.0.0.1",
        ]
        first = json.loads((ran.out / "manifest.jsonl").read_text("utf-8").splitlines()[0])
        assert first.pop("time")[:2] == "20" and first.pop("sha256") == hashlib.sha256(jpeg(0)).hexdigest()
        assert first == {
            "path": "one_(1).jpg", "caption": "one", "url": site.url("/0"), "bytes": len(jpeg(0)), "width": 64,
            "height": 48,
            "licence": "CC BY 2.0", "licence_url": "https://creativecommons.org/licenses/by/2.0/", "author": "Ann Ö",
            "title": "DSC 1", "source": "list.parquet:0", "row": 0,
        }  # fmt: skip


def test_the_order_of_a_report(tmp_path: Path) -> None:
    """Refused before, refused after, failed and stored, as the list has them; a URL that comes twice has one line."""
    with Site() as site:
        site["/a"], site["/b"], site["/d"] = ok(jpeg(1)), status(404), ok(jpeg(2, (20, 20)))
        rows = [(site.url("/a"), "a"), ("", "b"), (site.url("/b"), "c"), (site.url("/c"), " "), (site.url("/a"),
        "again"),
                (site.url("/d"), "small"), (site.url("/e"), "no good words")]  # fmt: skip
        listed = write_list(tmp_path / "a.jsonl", rows)
        ran = scrape(listed, tmp_path / "set", "filters.min_height=21", "filters.without=[good]")
        assert [(line["url"][-2:], line["status"], line["reason"]) for line in ran.lines] == [
            ("/a", "stored", None), ("", "failed", "bad_url"), ("/b", "failed", "http_404"), ("/c", "refused",
            "no_caption"),
            ("/d", "refused", "too_small"), ("/e", "refused", "unwanted_words")]  # fmt: skip
        assert ran.summary["refused"] == dict.fromkeys(
            ("no_caption", "unwanted_words", "too_small", "duplicate_url"), 1)  # fmt: skip
        with report.opened(ran.out) as ledgers:
            assert report.write_lines(tmp_path / "r.jsonl", report.all_lines(ledgers)) == 6
        assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 6
        before = the_set(ran.out)
        scrape(listed, tmp_path / "set", "filters.min_height=21", "filters.without=[good]")
        assert the_set(ran.out) == before and [line["url"] for line in ran.lines] == [line["url"] for line in ran.lines]
