import contextlib
import csv
import json
import os
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from everydream.data import checking
from everydream.data.pairing import unique_names
from everydream.data.scan import require_usable, scan, source_warnings
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.walking import walk
from everydream.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def image(path, size=(20, 10), colour=(10, 20, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def tree(root, files):
    """Write files; None is an image, text is text, bytes are bytes."""
    for name, content in files.items():
        path = root / name
        if content is None:
            image(path)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def run(*sources, captions=None, progress=None, **data):
    sources = [source if isinstance(source, dict) else {"path": str(source)} for source in sources]
    settings = DataSettings(sources=[SourceSettings(**source) for source in sources], **data)
    return scan(settings, captions or CaptionSettings(), progress)


def captions_of(index):
    offsets = index.caption_offsets.tolist()
    return {path: index.captions[offsets[n] : offsets[n + 1]] for n, path in enumerate(index.paths)}


def reasons(index):
    return {item.path: item.reason for item in index.rejected}


# Which files


def test_images_are_found_at_any_depth_sorted_and_whatever_their_case(tmp_path):
    names = ["B.bmp", "a.gif", "a/deep/er/y.webp", "a/x.Png", "b.JPG", "c.JFIF", "d.tif", "e.TIFF", "f.avif", "g.jpeg"]
    tree(tmp_path, dict.fromkeys(reversed(names)))
    assert run(tmp_path).paths == names


def test_everything_else_is_ignored(tmp_path):
    tree(tmp_path, {"a.jpg": None, "notes.txt": "stray", "x.zip": "PK", ".hidden.jpg": None,
                    "._a.jpg": b"\0\x05\x16\x07", ".git/b.jpg": None, ".DS_Store": "x", "jpg": "no suffix",
                    "Thumbs.db": "x", "a.jpg.bak": "x"})  # fmt: skip
    index = run(tmp_path)
    assert (index.paths, index.rejected) == (["a.jpg"], [])


def test_symlinks_are_followed_and_loops_cut(tmp_path):
    image(tmp_path / "set" / "in" / "a.jpg")
    image(tmp_path / "else" / "b.jpg")
    (tmp_path / "set" / "in" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "self").symlink_to(".")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "else")
    (tmp_path / "set" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    index = run(tmp_path / "set")
    assert index.paths == ["in/a.jpg", "linked/b.jpg"]
    assert reasons(index) == {"gone.jpg": "cannot be read: No such file or directory"}


def test_a_pipe_named_like_an_image_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    image(tmp_path / "a.jpg")
    assert run(tmp_path).paths == ["a.jpg"]


def test_order_does_not_come_from_the_file_system(tmp_path, monkeypatch):
    tree(tmp_path, {f"{name}.jpg": None for name in "bdac"})
    listing = os.scandir

    def reversed_listing(path):
        return contextlib.nullcontext(sorted(listing(path), key=lambda entry: entry.name, reverse=True))

    monkeypatch.setattr(os, "scandir", reversed_listing)
    assert [file for folder in walk(tmp_path) for file in folder.files] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path, monkeypatch):
    tree(tmp_path, {"a.jpg": None, "locked/b.jpg": None})
    listing = os.scandir

    def deny(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listing(path)

    monkeypatch.setattr(os, "scandir", deny)
    index = run(tmp_path)
    assert index.paths == ["a.jpg"]
    assert reasons(index) == {"locked": "the folder cannot be listed: Permission denied"}


def test_names_that_are_not_utf8(tmp_path):
    image(tmp_path / "a.jpg").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    index = run(tmp_path)
    assert reasons(index) == {
        "caf\\udce9.jpg": "its name is not valid UTF-8, so it cannot be a caption or stand in reports; rename it"
    }


# Captions


def test_captions_by_rule(tmp_path):
    tree(tmp_path, {"a cat_1.jpg": None, "b.jpg": None, "b.txt": "one\ntwo", "_3.jpg": None})
    index = run(tmp_path)
    assert captions_of(index) == {"a cat_1.jpg": ["a cat"], "b.jpg": ["one two"]}
    assert reasons(index) == {"_3.jpg": "no caption: no text before the first `_` of its name, and no sidecar; "
                                        "write one, or give the source a default_caption"}  # fmt: skip
    index = run({"path": str(tmp_path), "lines": "choose", "default_caption": " a  thing "})
    assert captions_of(index) == {"_3.jpg": ["a thing"], "a cat_1.jpg": ["a cat"], "b.jpg": ["one", "two"]}
    assert index.warnings == {0: ["no caption of its own: default_caption is used"]}
    index = run({"path": str(tmp_path), "label": "photo of  billhamilton man"})
    assert set(index.captions) == {"photo of billhamilton man"} and len(index) == 3 and not index.warnings


def test_a_bad_sidecar_rejects_its_image_only(tmp_path):
    tree(tmp_path, {"s/a.jpg": None, "s/a.yaml": "x: [", "s/b.jpg": None, "s/b.txt": b"\xff", "s/c.jpg": None,
                    "s/d.jpg": None, "s/d.yaml": "main_prompt: 5", "s/e.jpg": None, "s/e.yaml": ""})  # fmt: skip
    index = run(tmp_path)
    assert captions_of(index) == {"s/c.jpg": ["c"], "s/e.jpg": ["e"]}
    assert {path: reason.partition(":")[0] for path, reason in reasons(index).items()} == {
        "s/a.jpg": "s/a.yaml, line 1", "s/b.jpg": "s/b.txt", "s/d.jpg": "s/d.yaml, line 1"}  # fmt: skip


def test_main_prompt_never_moves(tmp_path):
    tree(tmp_path, {"a.jpg": None, "a.yaml": "main_prompt: 'a cat, sitting'\ntags: [x, y]", "b.jpg": None,
                    "b.yaml": "main_prompt: m\ntags: [x]\nkeep_tags: 5"})  # fmt: skip
    assert run(tmp_path, captions=CaptionSettings(keep_tags=1)).keep_tags_N.tolist() == [2, 5]


def test_lint_and_twins_are_warnings(tmp_path):
    tree(tmp_path, {"parens (1).jpg": None, "x.jpg": None, "x.txt": "a", "x.caption": "b"})
    assert run(tmp_path).warnings == {
        0: ['" (1)" looks like a copy\'s suffix'],
        1: ["two captions: x.caption is used, x.txt says something else"],
    }


@pytest.mark.parametrize(("count", "same", "warned"), [(5, 5, True), (4, 4, False), (20, 18, True), (20, 17, False)])
def test_one_caption_for_nearly_all_images(count, same, warned, tmp_path):
    tree(tmp_path, {("same" if n < same else f"other{n}") + f"_{n}.png": None for n in range(count)})
    source = SourceSettings(path=str(tmp_path))
    found = source_warnings(run(tmp_path), [source])
    assert found == ({0: [f'{same} of {count} images have the same caption, "same"']} if warned else {})
    (tmp_path / "empty").mkdir()
    both = [source, SourceSettings(path=str(tmp_path / "empty"))]
    assert source_warnings(run(tmp_path, tmp_path / "empty"), both)[1] == ["holds no usable image"]
    assert source_warnings(run({"path": str(tmp_path), "label": "x"}), [SourceSettings(path="x", label="x")]) == {}


# Settings


def test_columns_hold_what_counts(tmp_path):
    tree(tmp_path, {
        "global.yaml": "flip_p: 0.5\nbatch_id: faces",
        "a/local.yaml": "multiply: '2'\nloss_scale: 0.5",
        "a/x.jpg": None,
        "a/x.yaml": "multiply: 3\nshuffle_tags: true\ncond_dropout: 0",
        "a/y.jpg": None,
        "b/z.jpg": None,
        "b/batch_id.txt": "hands",
        "b/keep/w.jpg": None,
    })  # fmt: skip
    source = {"path": str(tmp_path), "dropout": 0.2, "keep_tags": 4}
    index = run(source, flip_p=0.1)
    assert index.paths == ["a/x.jpg", "a/y.jpg", "b/keep/w.jpg", "b/z.jpg"]
    assert index.repeats_N.tolist() == [3, 2, 1, 1]
    assert index.dropout_N.tolist() == [0, 0.2, 0.2, 0.2]
    assert index.flip_p_N.tolist() == [0.5] * 4
    assert index.loss_scale_N.tolist() == [0.5, 0.5, 1, 1]
    assert index.shuffle_tags_N.tolist() == [True, False, False, False]
    assert index.keep_tags_N.tolist() == [4] * 4
    assert [index.batch_ids[n] for n in index.batch_id_N] == ["faces", "faces", "faces", "hands"]
    assert index.batch_ids == ["", "faces", "hands"]


def test_bad_and_zero_settings_are_listed(tmp_path):
    tree(tmp_path, {"a.jpg": None, "bad/multiply.txt": "two", "bad/b.jpg": None, "off/multiply.txt": "0",
                    "off/c.jpg": None, "off/_1.jpg": None, "off/below/d.jpg": None, "e.jpg": None,
                    "e.yaml": "multiply: 0"})  # fmt: skip
    index = run(tmp_path, strict=True)
    assert index.paths == ["a.jpg", "off/below/d.jpg"]
    assert reasons(index) == {
        "bad/b.jpg": "bad/multiply.txt: multiply is 'two', expected a number of at least 0",
        "e.jpg": "multiply is 0 in e.yaml",
        "off/_1.jpg": "multiply is 0 in off/multiply.txt",
        "off/c.jpg": "multiply is 0 in off/multiply.txt",
    }


# Images


def test_bad_images_are_rejected_and_odd_ones_warned_of(tmp_path):
    tree(tmp_path, {"a.jpg": None, "empty.jpg": b"", "lfs.png": LFS, "page.jpg": "<!doctype html>"})
    (tmp_path / "cut.jpg").write_bytes(image(tmp_path / "cut.jpg", (64, 64)).read_bytes()[:-40])
    image(tmp_path / "jpeg.png", format="JPEG")
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    index = run(tmp_path)
    assert reasons(index) == {
        "cut.jpg": "truncated: the JPEG ends before its pixels do",
        "empty.jpg": "not an image: an empty file (0 bytes)",
        "lfs.png": "not an image: a Git LFS pointer (fetch the real file with `git lfs pull`)",
        "page.jpg": "not an image: an HTML page",
    }
    assert {index.paths[n]: found for n, found in index.warnings.items()} == {
        "jpeg.png": ["content is JPEG, its name says png"],
        "moving.gif": ["has several frames or pages; only the first is used"],
    }


def test_sizes_are_those_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image(tmp_path / "a.jpg", (30, 20), exif=exif)
    index = run(tmp_path)
    assert (index.width_N.tolist(), index.height_N.tolist()) == ([20], [30])


@pytest.mark.parametrize(
    ("check", "limit", "decoded"), [("full", 0, True), ("headers", 9, False), ("auto", 2, True), ("auto", 1, False)]
)
def test_check_modes(check, limit, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "AUTO_FULL_IMAGES", limit)
    image(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes(image(tmp_path / "cut.jpg", (64, 64)).read_bytes()[:-40])
    assert run(tmp_path, check=check).paths == (["a.jpg"] if decoded else ["a.jpg", "cut.jpg"])


@pytest.mark.parametrize("check", ["headers", "full"])
def test_bombs_are_refused_by_their_header(check, tmp_path):
    frame = struct.pack("<HH", 65535, 65535)
    (tmp_path / "b.gif").write_bytes(
        b"GIF89a" + frame + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + frame + b"\0\x02\x02L\x01\0;"
    )
    image(tmp_path / "a.jpg", (60, 40))
    index = run(tmp_path, check=check, max_megapixels=0.0024)
    assert index.paths == ["a.jpg"]
    assert reasons(index)["b.gif"].startswith("too large: 65535 x 65535 = 4,295 megapixels")


def test_large_images_are_decoded_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_ALONE_PIXELS", 1)
    tree(tmp_path, {f"{n}.png": None for n in range(8)})
    inside, most = [], []

    def decode(path, *_):
        inside.append(path)
        time.sleep(0.005)
        most.append(len(inside))
        inside.remove(path)
        return np.zeros((10, 20, 3), np.uint8)

    monkeypatch.setattr(checking, "decode", decode)
    assert len(run(tmp_path)) == 8 and max(most) == 1 and len(most) == 8


def test_a_header_that_lies_about_the_size(tmp_path, monkeypatch):
    image(tmp_path / "a.jpg")
    monkeypatch.setattr(checking, "decode", lambda *_: np.zeros((9, 20, 3), np.uint8))
    assert reasons(run(tmp_path)) == {"a.jpg": "damaged: its header says 20 x 10, its pixels are 20 x 9"}


def test_progress_counts_every_image(tmp_path):
    tree(tmp_path, {"a.jpg": None, "b.jpg": b"", "c.jpg": None, "_.jpg": None})
    calls = []
    run(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4) and sorted(calls) == calls


# Digests


def digests(root, **options):
    index = run({"path": str(root), **options})
    return dict(zip(index.paths, index.digest_N.tolist(), strict=True))


def test_digest_changes_with_all_that_matters_and_nothing_else(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.bmp")
    first = digests(tmp_path)
    os.utime(tmp_path / "a.bmp", (1, 1))
    assert digests(tmp_path) == first
    (tmp_path / "a.txt").write_text("a")
    assert digests(tmp_path) == first  # the same caption from elsewhere
    seen = {first["a.bmp"], digests(tmp_path, dropout=0.5)["a.bmp"]}
    (tmp_path / "a.txt").write_text("b")
    seen.add(digests(tmp_path)["a.bmp"])
    (tmp_path / "flip_p.txt").write_text("0.5")
    seen.add(digests(tmp_path)["a.bmp"])
    data = bytearray((tmp_path / "a.bmp").read_bytes())
    for position in (60, len(data) // 2 + 5, len(data) - 1):
        data[position] ^= 1
        (tmp_path / "a.bmp").write_bytes(data)
        seen.add(digests(tmp_path)["a.bmp"])
    (tmp_path / "a.bmp").rename(tmp_path / "a.BMP")
    seen.add(digests(tmp_path)["a.BMP"])
    assert len(seen) == 8


def test_digest_does_not_depend_on_where_the_folder_lies(tmp_path):
    image(tmp_path / "one" / "s" / "a.png")
    image(tmp_path / "two" / "s" / "a.png")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


# Manifests


def test_manifest(tmp_path):
    tree(tmp_path / "m", {"a.jpg": None, "sub/b.jpg": None, "c.jpg": None, "sub/multiply.txt": "2", "a.txt": "not read",
                          "kohya.webp": None})  # fmt: skip
    outside = image(tmp_path / "outside.jpg")
    rows = [
        {"file_name": "sub/b.jpg", "text": "b"},
        {"file_name": "./a.jpg", "text": "first"},
        {"file_name": "a.jpg", "text": "second  variant"},
        {"file_name": "sub\\b.jpg", "text": ["c", "d"]},
        {"file_name": str(outside), "text": "outside"},
        {"file_name": str(tmp_path / "m" / "c.jpg"), "text": ""},
        {"file_name": "kohya", "text": "by its stem"},
        {"file_name": "../outside.jpg", "text": "x"},
        {"file_name": "gone.jpg", "text": "x"},
        {"file_name": "ü" * 400 + ".jpg", "text": "x"},
        {"file_name": "http://host/a.jpg", "text": "x"},
        {"file_name": "sub", "text": "x"},
        {"file_name": "a.jpg", "text": 5},
        {"text": "x"},
    ]
    path = tmp_path / "m" / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    index = run({"path": str(path), "captions": "manifest"})
    assert captions_of(index) == {str(outside): ["outside"], "a.jpg": ["first", "second variant"],
                                  "kohya.webp": ["by its stem"], "sub/b.jpg": ["b", "c", "d"]}  # fmt: skip
    assert index.repeats_N.tolist() == [1, 1, 1, 2]
    assert index.roots == [str(tmp_path / "m")] and index.names == ["rows.jsonl"]
    assert index.warnings == {1: ["line 13: `text` holds 5, not a text"]}
    assert [(Path(item.path).name[-12:], item.reason) for item in index.rejected] == [
        ("outside.jpg", "line 8: lies outside the manifest's folder; give its absolute path if that is meant"),
        ("c.jpg", "no caption: line 6 has none; write one, or give the source a default_caption"),
        ("gone.jpg", "line 9: no such file"),
        ("a.jpg", "line 11: is a URL, not a file; download the images first"),
        ("rows.jsonl", "line 14: no path in `file_name`"),
        ("sub", "line 12: no such file"),
        ("üüüüüüüü.jpg", "line 10: no such file"),
    ]


def test_manifest_without_captions_and_with_a_default(tmp_path):
    tree(tmp_path, {"a.jpg": None, "m.csv": "path,x\na.jpg,1\n"})
    source = {"path": str(tmp_path / "m.csv"), "captions": "manifest", "default_caption": "thing"}
    assert captions_of(run(source)) == {"a.jpg": ["thing"]}
    with pytest.raises(DataError, match=r"sources\.0: .*m\.csv: no caption column among path, x"):
        run({**source, "default_caption": None})


def test_bad_row_without_a_good_one_rejects_the_image(tmp_path):
    tree(tmp_path, {"a.jpg": None, "m.csv": "path,text\na.jpg,1,2\n"})
    index = run({"path": str(tmp_path / "m.csv"), "captions": "manifest"})
    assert reasons(index) == {"a.jpg": "line 2: has 3 cells, the header 2"}


# Sources


def test_all_missing_sources_at_once(tmp_path):
    image(tmp_path / "good" / "a.jpg")
    tree(tmp_path, {"file.txt": "x", "m.csv": "path,text\n", "bad.json": "{"})
    sources = [tmp_path / "good", tmp_path / "gone", tmp_path / "file.txt", tmp_path / "m.csv",
               {"path": str(tmp_path / "good"), "captions": "manifest"},
               {"path": str(tmp_path / "bad.json"), "captions": "manifest"}]  # fmt: skip
    with pytest.raises(DataError) as caught:
        run(*sources)
    lines = [line.replace(str(tmp_path), "") for line in str(caught.value).splitlines()]
    assert lines[0] == "Sources that cannot be read:"
    assert lines[1].startswith("  data.sources.1: /gone: does not exist (from ")
    assert lines[2:5] == [
        "  data.sources.2: /file.txt: is a file, not a folder of images",
        "  data.sources.3: /m.csv: is a file, not a folder of images; set captions: manifest to read it as a manifest",
        "  data.sources.4: /good: is a folder; give the manifest file in it",
    ]
    assert lines[5].startswith("  data.sources.5: /bad.json: not valid JSON")


def test_names_are_unique(tmp_path):
    sources = [SourceSettings(path=path, name=name) for path, name in
               [("a/cats", None), ("b/cats/", None), ("x", "cats"), ("y", "cats (2)"), ("c/dogs", None)]]  # fmt: skip
    assert unique_names(sources) == ["cats", "cats (2)", "cats (3)", "cats (2) (2)", "dogs"]


def test_records_are_sorted_by_source_then_path(tmp_path):
    tree(tmp_path, {"z/b.jpg": None, "z/a.jpg": None, "a/c.jpg": None})
    index = run(tmp_path / "z", tmp_path / "a")
    assert [index.key(n) for n in range(3)] == ["z/a.jpg", "z/b.jpg", "a/c.jpg"]


def test_an_empty_source_is_a_mistake_unless_it_was_emptied_on_purpose(tmp_path):
    """Ground truth that is not there would leave the model unprotected without a word."""
    image(tmp_path / "full" / "a.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^data\.sources\.0: no usable image in .*empty\n"):
        require_usable(run(tmp_path / "empty", tmp_path / "full"))
    tree(tmp_path / "off", {"a.jpg": None, "multiply.txt": "0"})
    require_usable(run(tmp_path / "off", tmp_path / "full"))
    with pytest.raises(DataError, match=r"^No usable image in .*empty\.$"):
        require_usable(run(tmp_path / "empty"))


def test_no_usable_image_lists_why(tmp_path):
    tree(tmp_path, {f"{n:02}.jpg": b"" for n in range(25)} | {"off/multiply.txt": "0", "off/a.jpg": None})
    with pytest.raises(DataError) as caught:
        require_usable(run({"path": str(tmp_path), "name": "set"}))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("(1 were taken out by multiply 0).")
    assert lines[1] == "  set/00.jpg: not an image: an empty file (0 bytes)"
    assert len(lines) == 22 and lines[-1] == "  and 5 more"


def test_strict_refuses_rejections_but_not_what_was_taken_out(tmp_path):
    tree(tmp_path, {"a.jpg": None, "off/multiply.txt": "0", "off/b.jpg": None})
    require_usable(run(tmp_path), strict=True)
    tree(tmp_path, {"bad.jpg": b""})
    index = run(tmp_path)
    require_usable(index)
    with pytest.raises(
        DataError, match=r"^1 of 3 images cannot be used, and data.strict is on.*\n  .*/bad.jpg: not an image"
    ):
        require_usable(index, strict=True)


def test_nothing_is_written_beside_the_images(tmp_path):
    tree(tmp_path, {"a.jpg": None, "b.jpg": b"", "c.yaml": "x", "c.jpg": None})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    before[tmp_path] = tmp_path.stat().st_mtime_ns
    run(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in [*tmp_path.rglob("*"), tmp_path]} == before


# Real files


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
@pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="recorded with Pillow 13, which reads more TIFFs"
)
def test_real_bad_images_are_judged_as_recorded():
    index = run(SHARED / "badimages")
    with (SHARED / "badimages" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    usable = dict(zip(index.paths, zip(index.width_N.tolist(), index.height_N.tolist(), strict=True), strict=True))
    assert {path for path in usable if rows[path]["convert_rgb"] != "ok"} == set()
    assert {path for path in reasons(index) if rows[path]["convert_rgb"] == "ok"} == set()
    assert len(usable) + len(index.rejected) == 287
    recorded = {path: tuple(map(int, rows[path]["after_exif_transpose"].split("x"))) for path in usable}
    assert usable == recorded
    kinds = Counter(reason.split(":")[0].split()[0] for reason in reasons(index).values())
    assert kinds == {"damaged": 17, "truncated": 3, "too": 2, "not": 2, "content": 3}, (
        "three are HEIC, without its plug-in"
    )


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared")
def test_real_sets_are_usable():
    manifest = SHARED / "captionsets" / "unsplash_blip" / "metadata.jsonl"
    sources = [SHARED / "captionsets" / "mickey1928", SHARED / "dreambooth"]
    index = run(*sources, {"path": str(manifest), "captions": "manifest"})
    assert not index.rejected
    assert Counter(index.source_N.tolist()) == {0: 74, 1: 99, 2: 9}
    assert sum("its name says png" in warning for found in index.warnings.values() for warning in found) == 9
