"""Tar shards as sources: listed like folders, read in place."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tars import png, write_shard

from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings, SourceSettings
from everydream.data.shards import list_shard, open_binary, picture_at, read_bytes, shard_of
from everydream.types import Index
from pictures.decode import BadImage, decode


def scanned(folder: Path, **source: object) -> Index:
    return scan(DataSettings(sources=[SourceSettings(path=str(folder), **source)]), CaptionSettings())  # type: ignore[arg-type]


def captions_of(index: Index) -> dict[str, list[str]]:
    starts = index.caption_offsets.tolist()
    return {path: list(index.captions[starts[n] : starts[n + 1]]) for n, path in enumerate(index.paths)}


def reasons(index: Index) -> dict[str, str]:
    return {item.path: item.reason for item in index.rejected}


def test_captions_in_a_shard(tmp_path: Path) -> None:
    """From .txt, else .json; a member's name is a key and never a caption."""
    write_shard(tmp_path / "00000.tar", {
        "000.png": png(0), "000.txt": "by text\n", "000.json": '{"caption": "by text", "url": "x"}',
        "001.png": png(1), "001.json": '{"caption": "by json", "width": 5}',
        "002.png": png(2), "002.json": '{"caption": null}',
        "003.png": png(3), "003.json": "not json",
        "a cat_(1).png": png(4),
        "005.PNG": png(5), "005.TXT": "capitals",
        "006.jpg": b"\xff\xd8\xff no jpeg", "006.txt": "damaged",
        "007.txt": "no image", "notes.md": "x", ".hidden.png": png(7),
    })  # fmt: skip
    index = scanned(tmp_path)
    assert captions_of(index) == {
        "00000.tar/000.png": ["by text"], "00000.tar/001.png": ["by json"],
        "00000.tar/005.PNG": ["capitals"]}  # fmt: skip
    found = reasons(index)
    assert set(found) == {f"00000.tar/{name}" for name in ("002.png", "003.png", "a cat_(1).png", "006.jpg")}
    assert all("no caption" in found[f"00000.tar/{name}"] for name in ("002.png", "003.png", "a cat_(1).png"))
    assert index.width_N.tolist() == [16, 16, 16] and index.height_N.tolist() == [12, 12, 12]


def test_a_source_may_give_the_caption(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"000.png": png(0), "001.png": png(1), "001.txt": "its own"})
    index = scanned(tmp_path, default_caption="a face")
    assert captions_of(index) == {"a.tar/000.png": ["a face"], "a.tar/001.png": ["its own"]}
    labelled = captions_of(scanned(tmp_path, captions="label", label="one for all"))
    assert labelled == {"a.tar/000.png": ["one for all"], "a.tar/001.png": ["one for all"]}


def test_shards_beside_and_below_folders(tmp_path: Path) -> None:
    write_shard(
        tmp_path / "set/b.tar", {"./0.png": png(0), "./0.txt": "dotted", "sub/1.png": png(1), "sub/1.txt": "below"}
    )
    write_shard(tmp_path / "set/deep/er/c.TAR", {"0.png": png(2), "0.txt": "deep"})
    (tmp_path / "set/a plain file_(1).png").write_bytes(png(3))
    write_shard(tmp_path / "set/.hidden.tar", {"0.png": png(4), "0.txt": "hidden"})
    (tmp_path / "set/folder.tar").mkdir()
    (tmp_path / "set/folder.tar/inside_(1).png").write_bytes(png(5))
    assert captions_of(scanned(tmp_path / "set")) == {
        "a plain file_(1).png": ["a plain file"], "b.tar/0.png": ["dotted"], "b.tar/sub/1.png": ["below"],
        "deep/er/c.TAR/0.png": ["deep"], "folder.tar/inside_(1).png": ["inside"]}  # fmt: skip


def test_folder_settings_beside_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"0.png": png(0), "0.txt": "one"})
    write_shard(tmp_path / "often/b.tar", {"0.png": png(1), "0.txt": "two"})
    (tmp_path / "often/multiply.txt").write_text("3")
    write_shard(tmp_path / "never/c.tar", {"0.png": png(2), "0.txt": "three"})
    (tmp_path / "never/multiply.txt").write_text("0")
    index = scanned(tmp_path)
    assert dict(zip(index.paths, index.repeats_N.tolist(), strict=True)) == {
        "a.tar/0.png": 1.0,
        "often/b.tar/0.png": 3.0,
    }
    assert set(reasons(index)) == {"never/c.tar/0.png"}


@pytest.mark.parametrize("how", ["cut in a member", "cut in a header", "garbage", "empty", "gzip", "not a tar"])
def test_shards_that_cannot_be_read(tmp_path: Path, how: str) -> None:
    """Nothing of them is used, nothing crashes, and what lies beside them is."""
    shard = write_shard(tmp_path / "bad.tar", {f"{n}.png": png(n) for n in range(4)})
    whole = shard.read_bytes()
    shard.write_bytes({
        "cut in a member": whole[:-12_000], "cut in a header": whole[: 512 + 1024 + 100],
        "garbage": whole[:512] + os.urandom(4000),
        "empty": b"", "gzip": b"\x1f\x8b" + whole, "not a tar": b"just words " * 200}[how])  # fmt: skip
    write_shard(tmp_path / "good.tar", {"0.png": png(1), "0.txt": "good"})
    index = scanned(tmp_path)
    assert captions_of(index) == {"good.tar/0.png": ["good"]}
    found = reasons(index)
    assert found and all(path.startswith("bad.tar") for path in found)
    if how != "empty":
        assert "the shard cannot be read: damaged tar file" in found["bad.tar"]


def test_an_empty_shard_is_no_problem(tmp_path: Path) -> None:
    write_shard(tmp_path / "empty.tar", {})
    write_shard(tmp_path / "good.tar", {"0.png": png(1), "0.txt": "good"})
    index = scanned(tmp_path)
    assert captions_of(index) == {"good.tar/0.png": ["good"]} and list(index.rejected) == []


def test_only_files_are_members(tmp_path: Path) -> None:
    """Links and devices in a tar lead nowhere: least of all out of it."""
    (tmp_path / "secret.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind, target in (("l.png", tarfile.SYMTYPE, "../secret.png"), ("h.png", tarfile.LNKTYPE,
        "secret.png"),
                                   ("d.png", tarfile.CHRTYPE, ""), ("dir.png", tarfile.DIRTYPE, "")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    assert list_shard(tmp_path / "a.tar") == []
    with pytest.raises(FileNotFoundError, match=r"no l\.png in the shard"):
        read_bytes(tmp_path / "a.tar/l.png")


def test_digests_follow_the_content(tmp_path: Path) -> None:
    """Of each image on its own: what is beside it in the shard does not matter."""

    def digests(**members: bytes | str) -> dict[str, int]:
        write_shard(tmp_path / "a.tar", {name.replace("_", "."): content for name, content in members.items()})
        os.utime(tmp_path / "a.tar", ns=(0, next(times)))
        index = scanned(tmp_path)
        return dict(zip(index.paths, index.digest_N.tolist(), strict=True))

    times = iter(range(10**9, 10**10, 10**6))
    first = digests(a_png=png(1), a_txt="one", b_png=png(2), b_txt="two")
    assert digests(b_png=png(2), b_txt="two", c_png=png(3), c_txt="more", a_png=png(1), a_txt="one") == {
        **first, "a.tar/c.png": digests(c_png=png(3), c_txt="more")["a.tar/c.png"]}  # fmt: skip
    other = digests(a_png=png(7), a_txt="one", b_png=png(2), b_txt="other")
    assert other["a.tar/a.png"] != first["a.tar/a.png"] and other["a.tar/b.png"] != first["a.tar/b.png"]
    assert digests(a_png=png(1), a_txt="one", b_png=png(2), b_txt="two") == first


def test_members_are_opened_in_place(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "x/00000.tar", {"0.png": png(1), "sub/1.png": png(2)})
    plain = tmp_path / "x/0.png"
    plain.write_bytes(png(3))
    assert shard_of(shard / "0.png") == shard and shard_of(shard / "sub/1.png") == shard
    assert shard_of(plain) is None and shard_of(tmp_path / "no.tar/0.png") is None and shard_of(shard) is None
    assert read_bytes(shard / "sub/1.png") == png(2) and open_binary(shard / "0.png").read() == png(1)
    assert read_bytes(plain) == png(3) and picture_at(plain) == plain
    assert np.array_equal(decode(picture_at(shard / "0.png")), np.asarray(Image.open(io.BytesIO(png(1)))))
    with pytest.raises(BadImage, match="cannot be read"):
        picture_at(shard / "9.png")
    write_shard(shard, {"9.png": png(9), "0.png": png(8)})
    os.utime(shard, ns=(0, 1))
    assert read_bytes(shard / "0.png") == png(8) and list_shard(shard) == ["9.png", "0.png"]
    shard.unlink()
    with pytest.raises(FileNotFoundError):
        read_bytes(shard / "0.png")


def test_training_from_shards_is_training_from_files(tmp_path: Path, project: object, model_folder: Path) -> None:
    """Bit for bit: the same pictures and captions, once in a shard, once beside it."""
    from conftest import metrics_of, train_here

    losses = []
    for kind in ("tar", "files"):
        folder = tmp_path / kind / "set"
        members = {f"{n:03d}.{ending}": png(n, (64, 64)) if ending == "png" else f"a thing {n}"
                   for n in range(6) for ending in ("png", "txt")}  # fmt: skip
        # Draws depend on an image's path, so the files lie in a folder that is called like the shard.
        write_shard(folder / "0.tar", members)  # type: ignore[arg-type]
        if kind == "files":
            (folder / "0.tar").unlink()
            (folder / "0.tar").mkdir()
            for name, content in members.items():
                (folder / "0.tar" / name).write_bytes(content.encode() if isinstance(content, str) else content)
        data = {"sources": [{"path": str(folder)}], "workers": 2 if kind == "tar" else 0}
        config = project(data=data, runs_dir=str(tmp_path / kind / "runs"))  # type: ignore[operator]
        run = train_here(config)
        losses.append([line["loss"] for line in metrics_of(run) if "loss" in line])
        assert json.loads(json.dumps(losses[-1])) and not (run / "rejected.txt").exists()
    assert len(losses[0]) >= 2 and losses[0] == losses[1]
