"""Sources: which rows they yield, in which order, and what they say of what they cannot read."""

import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from scrapers.errors import ScrapeError
from scrapers.filters import Needs, needs_of
from scrapers.settings import ScrapeSettings, SourceSettings
from scrapers.sources import Source, ffhq_json, open_source, tables
from scrapers.sources.columns import as_number, as_side, as_text
from scrapers.sources.files import explain, find_files, is_remote
from scrapers.types import Row

CAPTION = Needs({"caption": "captions.text"})
REAL = ROOT.parent / "shared/data/laion_meta"
ALL = Needs(dict.fromkeys(("caption", "width", "height", "aesthetic", "similarity", "unsafe", "nsfw", "watermark",
                           "language"), "a setting"))  # fmt: skip


def source_of(kind: str, *files: object, needs: Needs = CAPTION, **settings: Any) -> Source:
    values = {"kind": kind, "files": [str(file) for file in files], **settings}
    return open_source(SourceSettings.model_validate(values), needs)


def rows_of(source: Source, start: int = 0) -> list[Row]:
    return [row for batch in source.rows(start) for row in batch]


def read(kind: str, *files: object, needs: Needs = ALL, **settings: Any) -> list[Row]:
    return rows_of(source_of(kind, *files, needs=needs, **settings))


def problems(
    kind: str, *files: object, filters: dict[str, Any] | None = None, text: str = "{caption}", **source: Any
) -> str:
    settings = ScrapeSettings.model_validate({
        "source": {"kind": kind, "files": [str(file) for file in files], **source},
        "filters": filters or {}, "captions": {"text": text}})  # fmt: skip
    with pytest.raises(ScrapeError) as error:
        open_source(settings.source, needs_of(settings))
    return str(error.value)


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def numbered(count: int, first: int = 0) -> dict[str, Any]:
    names = range(first, first + count)
    return {"URL": [f"http://x.org/{i}" for i in names], "TEXT": [f"caption {i}" for i in names]}


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


# Parquet


def test_laions_columns_of_two_releases(tmp_path: Path) -> None:
    old = write(tmp_path / "old.parquet", {
        "URL": ["http://a.org/1", None, " http://a.org/3 "], "TEXT": ["one", "two", None],
        "WIDTH": pa.array([600.0, None, float("nan")]), "HEIGHT": pa.array([512.0, 1e300, -5.0]),
        "similarity": pa.array([0.3, float("inf"), None]), "punsafe": pa.array([0.25, 0.5, None], pa.float32()),
        "pwatermark": [0.1, 0.2, 0.3], "AESTHETIC_SCORE": ["6.5", "NULL", "high"], "NSFW": ["UNLIKELY", "NULL", None],
        "LICENSE": ["?", "CC BY", None], "LANGUAGE": ["en", "nolang", None], "hash": [1, 2, 3]})  # fmt: skip
    new = write(tmp_path / "renewed.parquet", {
        "url": ["http://b.org/1"], "caption": ["uno"], "width": pa.array([256], pa.int32()),
        "height": pa.array([128], pa.int32()), "original_width": [1024], "original_height": ["768"],
        "aesthetic": pa.array([7], pa.int64()), "punsafe": pa.array([0.5])})  # fmt: skip
    rows = read("laion", old, new)
    assert rows == [
        Row(0, "old.parquet:0", "http://a.org/1", "one", 600, 512, 6.5, 0.3, 0.25, pytest.approx(0.1), "UNLIKELY", "?",
            language="en"),
        Row(1, "old.parquet:1", "", "two", unsafe=0.5, watermark=pytest.approx(0.2), licence="CC BY",
            language="nolang"),
        Row(2, "old.parquet:2", "http://a.org/3", "", watermark=pytest.approx(0.3)),
        Row(3, "renewed.parquet:0", "http://b.org/1", "uno", 1024, 768, 7.0, unsafe=0.5),
    ]  # fmt: skip


def test_coyo_datacomp_and_laion_coco(tmp_path: Path) -> None:
    coyo = write(tmp_path / "coyo.parquet", {
        "id": [7], "url": ["http://c.org/1"], "text": ["c"], "width": [600], "height": [400],
        "clip_similarity_vitl14": [0.1], "clip_similarity_vitb32": [0.25], "nsfw_score_gantman": [0.9],
        "nsfw_score_opennsfw2": [0.125], "watermark_score": [0.5], "aesthetic_score_laion_v2": [5.5]})  # fmt: skip
    comp = write(tmp_path / "comp.parquet", {
        "uid": ["u"], "url": ["http://d.org/1"], "text": ["d"], "original_width": [980], "original_height": [405],
        "clip_l14_similarity_score": pa.array([0.5], pa.float32()), "face_bboxes": [[[0.1, 0.2]]],
        "clip_b32_similarity_score": pa.array([0.25], pa.float32()), "sha256": ["ab" * 32]})  # fmt: skip
    coco = write(tmp_path / "coco.parquet", {
        "URL": ["http://e.org/1"], "TEXT": ["shop now"], "top_caption": ["a red shoe"], "all_captions": [["x", "y"]],
        "all_similarities": [[0.1]]})  # fmt: skip
    rows = read("laion", coyo, comp, coco)
    assert (rows[0].similarity, rows[0].unsafe, rows[0].watermark, rows[0].aesthetic) == (0.25, 0.125, 0.5, 5.5)
    assert (rows[1].width, rows[1].height, rows[1].similarity, rows[1].sha256) == (980, 405, 0.25, "")
    assert rows[2].caption == "a red shoe"


def test_a_digest_counts_only_where_the_recipe_names_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"url": ["u", "v"], "text": ["t", "t"], "sha256": ["AB" * 32, "short"]})
    assert [row.sha256 for row in read("laion", file)] == ["", ""]
    assert [row.sha256 for row in read("laion", file, columns={"sha256": "sha256"})] == ["ab" * 32, ""]


def test_a_column_is_found_in_any_case_and_an_override_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"Url": ["u"], " TEXT": ["alt"], "Best": ["best"]})
    assert read("laion", file)[0].caption == "alt"
    assert read("laion", file, columns={"caption": "Best"})[0].caption == "best"


def test_positions_count_and_not_the_index_column(tmp_path: Path) -> None:
    table = pa.table({**numbered(4), "__index_level_0__": [3, 17, 900, 12]})
    pq.write_table(table, tmp_path / "gaps.parquet")
    rows = read("laion", tmp_path / "gaps.parquet")
    assert [(row.number, row.where) for row in rows] == [(i, f"gaps.parquet:{i}") for i in range(4)]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 11, 24, 25, 26, 29, 30, 99])
def test_any_start_yields_the_rest(tmp_path: Path, start: int) -> None:
    for index, count in enumerate([25, 0, 5]):
        write(tmp_path / f"part{index}.parquet", numbered(count, 25 if index else 0), row_group_size=10)
    source = source_of("laion", tmp_path)
    assert source.num_rows == 30
    rows = rows_of(source, start)
    assert rows == rows_of(source)[start:]
    assert [row.number for row in rows] == list(range(start, 30))
    assert [row.url for row in rows] == [f"http://x.org/{i}" for i in range(start, 30)]
    assert all(source.rows(start))  # no batch is empty


def test_row_groups_before_the_start_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{i}.parquet", numbered(30, 30 * i), row_group_size=10) for i in range(3)]
    source = source_of("laion", *files)
    read_groups, opened = [], []
    iter_batches, make = pq.ParquetFile.iter_batches, pq.ParquetFile.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        read_groups.append(kwargs["row_groups"])
        assert set(kwargs["columns"]) == {"URL", "TEXT"}
        return iter_batches(self, *args, **kwargs)

    def noted(self: Any, path: Any, **kwargs: Any) -> None:
        opened.append(Path(path).name)
        make(self, path, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    monkeypatch.setattr(pq.ParquetFile, "__init__", noted)
    rows = source.rows(45)
    assert next(rows)[0].number == 45 and read_groups == [[1]] and opened == ["1.parquet"]
    assert next(rows)[0].number == 50 and read_groups == [[1], [2]] and opened == ["1.parquet"]
    assert next(rows)[0].number == 60 and opened == ["1.parquet", "2.parquet"]
    opened.clear()
    assert next(source.rows(30))[0].number == 30 and opened == ["1.parquet"]


def test_batches_are_small_and_only_needed_columns_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**numbered(2500), "punsafe": [0.5] * 2500, "LICENSE": ["CC0"] * 2500})
    batches = list(source_of("laion", tmp_path / "a.parquet").rows())
    assert [len(batch) for batch in batches] == [1024, 1024, 452]
    assert batches[0][0].unsafe is None and batches[0][0].licence == "CC0"  # credit always travels
    assert tables.BATCH_PICTURES <= 32


def test_odd_types_never_raise(tmp_path: Path) -> None:
    broken = pa.array([b"caf\xe9", b"ok", b"ok"]).view(pa.string())
    file = write(tmp_path / "odd.parquet", {
        "url": [["http://l.org/1", "second"], [], None], "text": broken,
        "WIDTH": ["a shifted caption", "600", "12.0"], "HEIGHT": pa.array([True, False, None]),
        "aesthetic": pa.array([[1.5], [], None]), "similarity": [{"a": 1}] * 3,
        "punsafe": pa.array([b"0.5", b"x", None], pa.binary()), "LICENSE": pa.array([3, 4, None])})  # fmt: skip
    rows = read("laion", file)
    assert [row.url for row in rows] == ["http://l.org/1", "", ""]
    assert [row.caption for row in rows] == ["caf\ufffd", "ok", "ok"]
    assert [row.width for row in rows] == [None, 600, 12] and [row.height for row in rows] == [None] * 3
    assert [row.aesthetic for row in rows] == [1.5, None, None] and rows[0].similarity is None
    assert [row.unsafe for row in rows] == [0.5, None, None] and rows[0].licence == "3"


def test_values() -> None:
    assert [as_text(v) for v in (None, "NULL", " nan ", "\\N", "None", "nano", 3, [None, "b"], b"\xff", "a\ud800")] == [
        "", "", "", "", "", "nano", "3", "b", "\ufffd", "a\ufffd"]  # fmt: skip
    assert [as_number(v) for v in ("1e-3", 10**400, "inf", True, [2], {})] == [0.001, None, None, None, 2.0, None]
    assert [as_side(v) for v in ("512.0", 0, -3, 1e9, "12px")] == [512, None, None, None, None]


def test_what_a_file_lacks_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"link": ["u"], "alt_txt": ["t"]})
    write(tmp_path / "b.parquet", {"URL": ["u"], "TEXT": ["t"]})
    text = problems("laion", tmp_path, filters={"min_aesthetic": 6.0, "licences": ["CC0"]})
    assert "a.parquet: no column for the URL; it has link, alt_txt" in text
    assert "a.parquet: captions.text wants a caption" in text and "b.parquet: captions.text" not in text
    assert "b.parquet: filters.min_aesthetic needs an aesthetic score; the file has URL, TEXT. Map it with " \
           "source.columns.aesthetic, or take the filter out" in text  # fmt: skip
    assert "b.parquet: filters.licences needs a licence" in text
    assert len(text.splitlines()) == 6
    text = problems("laion", tmp_path / "a.parquet", columns={"url": "lnk", "captoin": "x"}, text="a thing")
    assert "source.columns.url: a.parquet has no column `lnk`; did you mean `link`?" in text
    assert "source.columns.captoin: there is no such field; did you mean `caption`?" in text
    assert len(text.splitlines()) == 2


def test_a_score_that_may_be_unknown_is_a_note(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", numbered(1))
    assert source_of("laion", tmp_path, needs=Needs({"aesthetic": "filters.min_aesthetic"})).notes == [
        "b.parquet: filters.min_aesthetic does nothing here, as the file has URL, TEXT"
    ]


def test_a_label_is_enough_for_max_unsafe(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**numbered(1), "NSFW": ["UNSURE"]})
    needs = Needs({"unsafe": "filters.max_unsafe", "nsfw": "filters.max_unsafe"}, {"unsafe": "filters.max_unsafe"})
    assert rows_of(source_of("laion", tmp_path, needs=needs))[0].nsfw == "UNSURE"


def test_a_broken_file_is_a_problem_and_one_that_breaks_later_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    assert f"{tmp_path / 'a.parquet'}: cannot be read" in problems("laion", tmp_path / "a.parquet")
    file = write(tmp_path / "b.parquet", numbered(2000), compression="none", use_dictionary=False)
    source = source_of("laion", file)
    data = bytearray(file.read_bytes())
    data[4:200] = b"\xff" * 196
    file.write_bytes(data)
    with pytest.raises(ScrapeError, match=r"b\.parquet: cannot be read on near row 0"):
        rows_of(source)


def test_lists_that_laion_withdrew(tmp_path: Path) -> None:
    for name in ("laion2B-en", "laion400m", "relaion2B-en-research-safe", "laion2B-en-aesthetic"):
        write(tmp_path / name / "a.parquet", numbered(1))
        notes = source_of("laion", tmp_path / name).notes
        assert len(notes) == (name in ("laion2B-en", "laion400m"))
        assert all(note.startswith(f"{name}: LAION withdrew") and "Re-LAION" in note for note in notes)


# Files


def test_folders_and_globs_in_a_natural_order_each_once(tmp_path: Path) -> None:
    for name in ("part10", "part2", "Part1", "sub/part3", ".hidden/x", "_tmp/x", "other"):
        write(tmp_path / f"{name}.parquet", numbered(1))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "readme.md").touch()

    def names(*patterns: str) -> list[str]:
        found = find_files([str(tmp_path / pattern) for pattern in patterns], {".parquet"})
        return [Path(file.path).relative_to(tmp_path).as_posix()[: -len(".parquet")] for file in found]

    assert names(".") == ["other", "Part1", "part2", "part10", "sub/part3"]
    assert names("part*.parquet") == ["part2", "part10"]
    assert names("**/part*") == ["part2", "part10", "sub/part3"]
    assert names("part10.parquet", "part*") == ["part10", "part2"]
    write(tmp_path / "odd[1].parquet", numbered(1))
    assert names("odd[1].parquet") == ["odd[1]"]


def test_all_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.zip").touch()
    text = problems(
        "urls", tmp_path / "no.csv", tmp_path / "*.csv", tmp_path / "empty", tmp_path / "a.zip", "s3://b/a.csv"
    )
    lines = text.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(f"source.files: {tmp_path / 'no.csv'}: no such file or folder (from ")
    assert "*.csv: no file matches this pattern" in lines[1]
    assert "empty: nothing there" in lines[2] and "cannot read `.zip`" in text
    assert "source.files: s3://b/a.csv: " in text


def test_a_missing_package_is_named_with_its_command() -> None:
    assert explain("s3://b/a.csv", ImportError("Install s3fs")) == (
        's3:// needs a package that is not installed: `pip install -c constraints.txt -e ".[s3]"`'
    )
    assert "`hf auth login`" in explain("hf://datasets/a/b.parquet", FileNotFoundError("not found"))
    assert explain("https://x.org/a", OSError("a\n  b")) == "a b"


def test_what_is_remote() -> None:
    assert is_remote("hf://x") and is_remote("s3://x") and is_remote("https://x")
    assert not is_remote("C:\\x") and not is_remote("file:///x") and not is_remote("a/b*.parquet")


def test_files_far_away(memory: Any, tmp_path: Path) -> None:
    local = write(tmp_path / "a.parquet", numbered(25), row_group_size=10)
    for name in ("set/part2.parquet", "set/part10.parquet"):
        memory.pipe(f"/{name}", local.read_bytes())
    memory.pipe("/set/list.txt", b"http://x.org/1\tone\n")
    for pattern in ("memory://set/*.parquet", "memory://set"):
        source = source_of("laion", pattern)
        assert source.num_rows is None  # only the first footer was read
        assert [row.where for row in rows_of(source, 24)] == [
            "part2.parquet:24", *(f"part10.parquet:{i}" for i in range(25))]  # fmt: skip
        assert source.num_rows == 50
    assert read("urls", "memory://set/list.txt")[0].caption == "one"
    assert read("urls", f"file://{local}")[3].url == "http://x.org/3"
    assert "memory://set/no*.txt" in problems("urls", "memory://set/no*.txt")


def test_the_fingerprint_knows_files_and_how_they_are_read(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        for i in range(3):
            write(tmp_path / folder / f"{i}.parquet", numbered(5 + i))
    one, again = source_of("laion", tmp_path / "one"), source_of("laion", tmp_path / "one" / "*.parquet")
    assert one.description == "laion: 3 files, 0.parquet to 2.parquet"
    assert one.fingerprint == again.fingerprint == source_of("laion", tmp_path / "two").fingerprint
    others = [
        source_of("urls", tmp_path / "one"),
        source_of("laion", tmp_path / "one", columns={"caption": "URL"}),
        source_of("laion", *(tmp_path / "one" / f"{i}.parquet" for i in (1, 0, 2))),
        source_of("laion", tmp_path / "one" / "0.parquet"),
    ]
    write(tmp_path / "two" / "2.parquet", numbered(900))
    others.append(source_of("laion", tmp_path / "two"))
    assert len({source.fingerprint for source in (one, *others)}) == 6


def test_importing_the_sources_is_quick() -> None:
    code = (
        "import sys, scrapers.sources; print([n for n in ('pyarrow', 'fsspec', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# Lists as text


def rows_in(path: Path, data: str | bytes, **settings: Any) -> list[tuple[str, str]]:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return [(row.url, row.caption) for row in read("urls", path, **settings)]


def test_txt(tmp_path: Path) -> None:
    data = "\ufeffhttp://a.org/1\tone\ttwo\r\n\n  # a comment\nhttp://a.org/2 with spaces\n"
    data += "NULL\tthree\n\tfour\nlast/no/scheme"
    path = tmp_path / "list.txt"
    assert rows_in(path, data) == [
        ("http://a.org/1", "one\ttwo"), ("http://a.org/2 with spaces", ""), ("", "three"), ("", "four"),
        ("last/no/scheme", "")]  # fmt: skip
    assert [row.where for row in read("urls", path)] == [f"list.txt:{n}" for n in (1, 4, 5, 6, 7)]
    path.write_text("http://a.org/1\nhttp://a.org/2\n")
    assert "list.txt: captions.text wants a caption" in problems("urls", path)
    assert [row.url for row in read("urls", path, needs=Needs())] == ["http://a.org/1", "http://a.org/2"]


def test_csv_with_quotes_line_ends_and_short_lines(tmp_path: Path) -> None:
    data = 'URL,width,TEXT\nhttp://a.org/1,600,"a ""big""\nred, barn"\nhttp://a.org/2\n\n,x,shifted\nhttp://a.org/3,9,b,extra\n'
    path = tmp_path / "list.csv"
    assert rows_in(path, data) == [
        ("http://a.org/1", 'a "big"\nred, barn'), ("http://a.org/2", ""), ("", "shifted"),
        ("http://a.org/3", "b")]  # fmt: skip
    assert [row.width for row in read("urls", path)] == [600, None, None, 9]
    assert [row.where for row in read("urls", path)] == [f"list.csv:{line}" for line in (3, 4, 6, 7)]


def test_broken_bytes_and_bad_lines_do_not_end_a_list(tmp_path: Path) -> None:
    assert rows_in(tmp_path / "a.csv", b"url,text\nhttp://a.org/1,caf\xe9 \xff\nhttp://a.org/2,n\x00ul\n") == [
        ("http://a.org/1", "caf\ufffd \ufffd"), ("http://a.org/2", "nul")]  # fmt: skip
    swallowed = "x,y\n" * 40_000
    rows = rows_in(tmp_path / "b.csv", f'url,text\nhttp://a.org/1,"never closed\n{swallowed}http://a.org/2,two\n')
    assert rows[0] == ("", "") and rows[-1] == ("http://a.org/2", "two") and 2 < len(rows) < 40_000
    data = (
        '{"url": "http://a.org/1", "text": "\\ud800x"}\n{"url": \nnull\n[1]\n\n{"text": "t", "url": null}\n'
        + "[" * 10_000
    )
    assert rows_in(tmp_path / "a.jsonl", data) == [
        ("http://a.org/1", "\ufffdx"), ("", ""), ("", ""), ("", ""), ("", "t"), ("", "")]  # fmt: skip


def test_cc3m_has_no_header_and_the_caption_first(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    data = 'a "very" nice barn\thttp://a.org/1\n"quoted ""x"""\thttp://a.org/2\n" open\thttp://a.org/3\n'
    assert rows_in(path, data) == [
        ("http://a.org/1", 'a "very" nice barn'), ("http://a.org/2", 'quoted "x"'),
        ("http://a.org/3", '" open')]  # fmt: skip
    assert rows_in(tmp_path / "b.tsv", "http://a.org/1\ta barn\t7\n") == [("http://a.org/1", "a barn")]
    assert rows_in(tmp_path / "c.tsv", "http://a.org/1\ta barn\tred\n", columns={"url": "0", "caption": "2"}) == [
        ("http://a.org/1", "red")]  # fmt: skip
    assert rows_in(tmp_path / "d.tsv", "caption\turl\na barn\thttp://a.org/1\n") == [("http://a.org/1", "a barn")]
    assert rows_in(tmp_path / "e.csv", "lnk,what\nhttp://a.org/1,a\n", columns={"url": "lnk", "caption": "what"}) == [
        ("http://a.org/1", "a")]  # fmt: skip
    (tmp_path / "f.csv").write_text("lnk,what\nhttp://a.org/1,a\n")
    assert "no column for the URL; it has lnk, what" in problems("urls", tmp_path / "f.csv", text="x")
    (tmp_path / "g.csv").touch()
    assert "no column for the URL; it has no columns" in problems("urls", tmp_path / "g.csv", text="x")


def test_packed_and_utf16(tmp_path: Path) -> None:
    assert rows_in(tmp_path / "a.csv.gz", gzip.compress(b"url,text\nhttp://a.org/1,\xc3\xa9\n")) == [
        ("http://a.org/1", "é")
    ]
    assert rows_in(tmp_path / "b.txt", "http://a.org/1\té\n".encode("utf-16")) == [("http://a.org/1", "é")]


def test_jsonl_and_a_webdataset_index(tmp_path: Path) -> None:
    lines = [{"image_url": "http://a.org/1", "caption": "one", "width": "600"}, {"image_url": "http://a.org/2"}]
    path = tmp_path / "a.ndjson"
    assert rows_in(path, "\n".join(map(json.dumps, lines))) == [("http://a.org/1", "one"), ("http://a.org/2", "")]
    index = write(tmp_path / "00000.parquet", {
        "url": ["http://a.org/3"], "caption": ["three"], "key": ["000000000"], "status": ["success"],
        "width": [256], "original_width": [1024], "exif": ["{}"]})  # fmt: skip
    row = read("urls", index)[0]
    assert (row.url, row.caption, row.width) == ("http://a.org/3", "three", 1024)


@pytest.mark.parametrize("start", [0, 1, 1023, 1024, 1025, 2999, 3000, 9999])
def test_any_start_of_text(tmp_path: Path, start: int) -> None:
    for name, count in (("a.txt", 1500), ("b.txt", 1500)):
        lines = [f"# comment\nhttp://x.org/{name}/{i}\tcaption {i}" for i in range(count)]
        (tmp_path / name).write_text("\n".join(lines))
    source = source_of("urls", tmp_path)
    assert source.num_rows is None
    rows = rows_of(source, start)
    assert source.num_rows == 3000
    assert [row.number for row in rows] == list(range(start, 3000)) and rows == rows_of(source)[start:]


def test_text_is_read_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("url,text\n" + "http://x.org/1,a barn\n" * 200_000)
    source = source_of("urls", path)
    rows = source.rows()
    assert len(next(rows)) == 1024
    assert source.num_rows is None
    rows.close()  # type: ignore[attr-defined]


# FFHQ


def ffhq_entry(index: int) -> dict[str, Any]:
    path = f"{index // 1000 * 1000:05d}/{index:05d}.png"
    parts = {"image": ("images1024x1024", 1024), "thumbnail": ("thumbnails128x128", 128),
             "in_the_wild": ("in-the-wild-images", 2016)}  # fmt: skip
    return {
        "category": "training",
        "metadata": {"photo_url": "https://www.flickr.com/#x", "photo_title": f"DSC {index}.JPG",
                     "author": "J. \"F\" é",
                     "license": "Attribution License", "license_url": "https://creativecommons.org/licenses/by/2.0/"},
        **{part: {"file_url": f"https://drive.example.org/{part}/{index}", "file_path": f"{folder}/{path}",
                  "file_md5": f"{index:031x}{'it'.index(part[0])}", "pixel_size": [side, side // 2],
                  "face_landmarks": [[1.5, 2.0]] * 68} for part, (folder, side) in parts.items()},
    }  # fmt: skip


def write_ffhq(path: Path, count: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({str(i): ffhq_entry(i) for i in range(count)}, **options))
    return path


@pytest.mark.parametrize("chunk_chars", [7, 5000, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_ffhqs_json_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_chars: int, indent: int | None
) -> None:
    monkeypatch.setattr(ffhq_json, "_CHUNK_CHARS", chunk_chars)
    path = write_ffhq(tmp_path / "ffhq-dataset-v2.json", 5, indent=indent)
    source = source_of("ffhq", path, needs=Needs())
    rows = rows_of(source)
    assert source.num_rows == len(rows) == 5 and "Google Drive" in source.notes[0]
    assert rows[3] == Row(
        3, "ffhq-dataset-v2.json:3", "https://drive.example.org/image/3", "", 1024, 512, licence="Attribution License",
        licence_url="https://creativecommons.org/licenses/by/2.0/", author='J. "F" é', title="DSC 3.JPG",
        md5=f"{3:031x}0",
    )  # fmt: skip
    assert rows_of(source, 4) == rows[4:]
    thumbnail = read("ffhq", path, needs=Needs(), part="thumbnail")[0]
    assert (thumbnail.url, thumbnail.width, thumbnail.md5) == (
        "https://drive.example.org/thumbnail/0",
        128,
        f"{0:031x}1",
    )


def test_ffhqs_json_is_not_read_whole(tmp_path: Path) -> None:
    path = write_ffhq(tmp_path / "ffhq.json", 3000)
    rows = source_of("ffhq", path, needs=Needs()).rows()
    assert len(next(rows)) == 1024
    rows.close()  # type: ignore[attr-defined]
    path.write_text(path.read_text()[:-500])
    source = source_of("ffhq", path, needs=Needs())
    seen = []
    with pytest.raises(ScrapeError, match=r"ffhq\.json: broken or cut short after 2999 entries; download it again"):
        for batch in source.rows():
            seen += batch
    assert len(seen) >= 2048


def test_ffhqs_readme_sample(tmp_path: Path) -> None:
    path = tmp_path / "sample.jsonc"
    path.write_text(
        '{\n  "0": {  # Image index\n    "metadata": {"license": "a # b // c ... \\" d", "author": "x",},\n'
        '    "image": {"file_url": "https://drive.example.org/...", "face_landmarks": [...] // dlib\n'
        "    }\n  },\n  ...\n}\n"
    )
    (row,) = read("ffhq", path, needs=Needs())
    assert (row.url, row.licence, row.width, row.md5) == (
        "https://drive.example.org/...",
        'a # b // c ... " d',
        None,
        "",
    )


def test_bad_entries_are_rows_and_other_files_problems(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps({"0": ffhq_entry(0), "1": None, "2": [], "3": {"image": {"pixel_size": [1], "file_md5": 5}}})
    )
    assert [(row.url != "", row.md5 != "") for row in read("ffhq", path, needs=Needs())] == [
        (True, True),
        *[(False, False)] * 3,
    ]
    for content, message in (("[1]", "not a JSON object of pictures"), ("{}", "no `image` in its first entry"),
                             ('{"a": {"b": 1}}', "is it ffhq-dataset-v2.json?"),
                             ("", "not a JSON object")):  # fmt: skip
        path.write_text(content)
        assert message in problems("ffhq", path, text="a face")
    assert "FFHQ" not in problems("ffhq", tmp_path / "none.json", text="a face")


def test_ffhq_has_no_captions_and_no_scores(tmp_path: Path) -> None:
    path = write_ffhq(tmp_path / "a.json", 1)
    text = problems("ffhq", path, filters={"min_aesthetic": 5.0, "licences": ["CC BY"]})
    assert len(text.splitlines()) == 2
    assert "Set captions.text without {caption}" in text and "Take the filter out" in text


def touch(path: Path, data: bytes = b"png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_a_folder_of_faces(tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    for name in ("00000/00010.png", "00000/00002.png", "01000/01000.JPG", "._x.png", "readme.txt"):
        touch(folder / name)
    source = source_of("ffhq", folder, needs=Needs())
    rows = rows_of(source)
    assert source.num_rows == 3 and source.notes == []
    assert [row.url for row in rows] == ["ffhq/00000/00002.png", "ffhq/00000/00010.png", "ffhq/01000/01000.JPG"]
    assert [row.file for row in rows] == [
        folder / "00000/00002.png",
        folder / "00000/00010.png",
        folder / "01000/01000.JPG",
    ]
    assert rows_of(source, 2) == rows[2:] and rows[2].number == 2
    assert "captions.text" in problems("ffhq", folder)
    other = tmp_path / "other"
    touch(other / "00002.png")
    both = read("ffhq", folder, other, needs=Needs())
    assert [row.url for row in both][-2:] == ["ffhq/faces/01000/01000.JPG", "ffhq/other/00002.png"]
    before = source.fingerprint
    touch(folder / "00000/00002.png", b"longer")
    assert source_of("ffhq", folder, needs=Needs()).fingerprint != before


def test_a_folder_with_the_json_knows_digests_and_authors(tmp_path: Path) -> None:
    write_ffhq(tmp_path / "ffhq-dataset-v2.json", 3)
    for name in (
        "images1024x1024/00000/00001.png",
        "thumbnails128x128/00000/00001.png",
        "small/00002.png",
        "extra.png",
    ):
        touch(tmp_path / name)
    extra, image, small = read("ffhq", tmp_path, needs=Needs({"licence": "filters.licences"}))
    assert (image.md5, image.author, image.width) == (f"{1:031x}0", 'J. "F" é', 1024)
    assert (small.md5, small.author, small.width) == ("", 'J. "F" é', None)  # called alike, but another file
    assert (extra.md5, extra.author) == ("", "")
    thumbnails = read("ffhq", tmp_path, needs=Needs(), part="thumbnail")
    assert [row.md5 for row in thumbnails if "thumbnails" in row.url] == [f"{1:031x}1"]


def test_a_parquet_mirror(tmp_path: Path) -> None:
    images = [{"bytes": b"png%d" % i, "path": None} for i in range(70)] + [{"bytes": None, "path": "x.png"}, None]
    file = write(tmp_path / "train-00000.parquet", {"image": images, "label": [1] * 72})
    source = source_of("ffhq", file, needs=Needs())
    batches = list(source.rows())
    assert [len(batch) for batch in batches] == [32, 32, 8] and source.num_rows == 72
    rows = [row for batch in batches for row in batch]
    assert rows[69].data == b"png69" and rows[69].url == "ffhq/train-00000.parquet/69"
    assert [row.data for row in rows[70:]] == [None, None]
    assert rows_of(source, 71) == rows[71:]
    assert "train-00000.parquet: captions.text wants a caption" in problems("ffhq", file)
    plain = write(tmp_path / "b.parquet", {"png": [b"x"], "text": ["a face"]})
    row = read("ffhq", plain)[0]
    assert (row.data, row.caption) == (b"x", "a face")
    faceless = write(tmp_path / "c.parquet", numbered(1))
    assert "no column for the pictures; it has URL, TEXT" in problems("ffhq", faceless, text="x")


@pytest.mark.skipif(not REAL.is_dir(), reason="the collected metadata are not here")
def test_collected_metadata() -> None:
    assert len(read("laion", REAL / "img2dataset_test_1000.parquet")) == 1000
    assert len(read("urls", REAL / "laion_weird_sample.csv")) == 506
    coyo = read("laion", REAL / "coyo_readme_rows.jsonl")
    assert all(row.aesthetic and row.similarity and row.unsafe is not None and row.watermark for row in coyo)
    (face,) = read("ffhq", REAL / "ffhq_readme_sample.jsonc", needs=Needs())
    assert face.md5 == "ddeaeea6ce59569643715759d537fd1b"
