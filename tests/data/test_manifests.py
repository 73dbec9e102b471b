import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everydream.data.manifests import read_manifest
from everydream.data.texts import BadText

EXPECTED = [("a.jpg", ("a cat",)), ("sub/ü.png", ("日本語, tags",))]
ROWS = [
    {"file_name": "a.jpg", "text": "a  cat\n", "width": 5},
    {"file_name": "sub/ü.png", "text": "日本語, tags", "width": 6},
]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path, **options):
    return [(row.path, row.captions) for row in read_manifest(path, **options) if not row.problem]


def problems(path, **options):
    return [(row.where, row.path, row.problem) for row in read_manifest(path, **options) if row.problem]


CSV = 'width,file_name,text\n5,a.jpg,"a  cat\n"\n6,sub/ü.png,"日本語, tags"\n'


@pytest.mark.parametrize(("name", "content"), [
    ("m.json", json.dumps(ROWS)),
    ("m.json", json.dumps({"images": ROWS, "info": {}})),
    ("m.json", json.dumps({row["file_name"]: row["text"] for row in ROWS})),
    ("m.json", json.dumps({row["file_name"]: {"caption": row["text"], "tags": "x"} for row in ROWS})),
    ("m.jsonl", "\n".join(map(json.dumps, ROWS))),
    ("M.JSONL", "\ufeff\r\n" + "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n"),
    ("m.csv", CSV),
    ("m.csv", CSV.encode("utf-16")),
    ("m.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
    ("m.csv", 'FileName;TEXT\na.jpg;a cat\nsub/ü.png;"日本語, tags"\n'),
    ("m.tsv", "image\tcaption\na.jpg\ta cat\nsub/ü.png\t日本語, tags\n"),
], ids=lambda value: value if isinstance(value, str) and len(value) < 8 else "")  # fmt: skip
def test_formats(name, content, tmp_path):
    assert read(write(tmp_path, name, content)) == EXPECTED


def test_parquet_with_nulls_and_columns_that_are_no_text(tmp_path):
    rows = [{**row, "image": {"bytes": b"123"}, "embedding": [1.0]} for row in ROWS]
    rows.append({"file_name": "c.jpg", "text": None, "width": None, "image": None, "embedding": None})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    assert read(tmp_path / "m.parquet") == [*EXPECTED, ("c.jpg", ())]


@pytest.mark.parametrize("path_key", ["path", "file_name", "file", "filename", "image", "image_path"])
@pytest.mark.parametrize("caption_key", ["caption", "text", "TEXT", "prompt"])
def test_detected_columns(path_key, caption_key, tmp_path):
    path = write(tmp_path, "m.jsonl", json.dumps({"id": "7", caption_key: "c", path_key: "p"}))
    assert read(path) == [("p", ("c",))]


def test_the_first_known_name_counts_and_a_given_one_wins(tmp_path):
    path = write(tmp_path, "m.json", json.dumps([{"text": "t", "caption": "c", "file": "f", "path": "p", "mine": "m"}]))
    assert read(path) == [("p", ("c",))]
    assert read(path, path_column="file", caption_column="mine") == [("f", ("m",))]


@pytest.mark.parametrize(("caption", "captions"), [
    (["one ", " two"], ("one", "two")), ([" ", "x"], ("x",)), ("", ()), (None, ()), ([], ()),
])  # fmt: skip
def test_captions_of_one_row(caption, captions, tmp_path):
    path = write(tmp_path, "m.json", json.dumps([{"path": "p", "caption": caption}]))
    assert read(path) == [("p", captions)]


def test_bad_rows_do_not_spoil_the_rest(tmp_path):
    lines = ['{"path": "a", "text": "t"}', "{broken", '["list"]', '{"text": "no path"}', '{"path": 5, "text": "t"}',
             '{"path": "b", "text": 5}', '{"path": "c", "text": ["x", {}]}', '{"path": " ", "text": "t"}']  # fmt: skip
    path = write(tmp_path, "m.jsonl", "\n".join(lines))
    assert read(path) == [("a", ("t",))]
    found = problems(path)
    assert found[0][:2] == ("line 2", "") and found[0][2].startswith("not valid JSON (Expecting property name")
    assert found[1:] == [
        ("line 3", "", "is data, not an object"),
        ("line 4", "", "no path in `path`"),
        ("line 5", "", "`path` holds 5, not a path"),
        ("line 6", "b", "`text` holds 5, not a text"),
        ("line 7", "c", "`text` holds data, not a text"),
        ("line 8", "", "no path in `path`"),
    ]


def test_a_shifted_csv_row_is_a_problem_of_that_row(tmp_path):
    path = write(tmp_path, "m.csv", "path,text\na.jpg,one, two\nb.jpg\nc.jpg,fine\n\n")
    assert read(path) == [("c.jpg", ("fine",))]
    assert problems(path) == [
        ("line 2", "a.jpg", "has 3 cells, the header 2"),
        ("line 3", "b.jpg", "has 1 cells, the header 2"),
    ]


def test_bad_rows_after_the_peeked_ones(tmp_path):
    path = write(tmp_path, "m.jsonl", "\n".join(['{"path": "a", "text": "t"}'] * 150 + ["5"]))
    assert len(read(path)) == 150
    assert problems(path) == [("line 151", "", "is 5, not an object")]


@pytest.mark.parametrize(("name", "content", "options", "message"), [
    ("m.txt", "a", {}, ": not a manifest; known are .json, .jsonl"),
    ("m.json", "{", {}, ": not valid JSON ("),
    ("m.json", "[" * 100_000, {}, ": not valid JSON ("),
    ("m.json", "5", {}, ": expected a list of rows or an object, found 5"),
    ("m.json", "[]", {}, ": no rows"),
    ("m.jsonl", "{broken", {}, ": no rows: line 1: not valid JSON"),
    ("m.csv", "", {}, ": no rows"),
    ("m.csv", b"path,text\n\xff,a", {}, ": not UTF-8 at byte 10; save it as UTF-8"),
    ("m.parquet", "PAR1", {}, ": not a readable Parquet file ("),
    ("m.csv", "URL,TEXT\nhttp://x/y.jpg,t", {}, ": lists URLs (column `URL`), not files; download the images first"),
    ("m.csv", "a,b\n1,2", {}, ": no column with the images' paths among a, b; name it in path_column"),
    ("m.csv", "path,b\n1,2", {}, ": no caption column among path, b; name it in caption_column"),
    ("m.csv", "path,text\n1,2", {"path_column": "paht"}, ": no column `paht` (path_column); did you mean `path`?"),
    ("m.csv", "path,text\n1,2", {"caption_column": "zzz"},
     ": no column `zzz` (caption_column); known keys: path, text"),
    ("m.csv", f'path,text\n1,"{"x" * 140_000}"', {}, ", line 2: not valid CSV (field larger"),
])  # fmt: skip
def test_unreadable_manifests_name_the_file(name, content, options, message, tmp_path):
    path = write(tmp_path, name, content)
    with pytest.raises(BadText) as caught:
        read(path, **options)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_default_caption_makes_the_column_optional(tmp_path):
    path = write(tmp_path, "m.csv", "path,b\na.jpg,2")
    assert read(path, caption_needed=False) == [("a.jpg", ())]
