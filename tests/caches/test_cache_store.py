"""A folder of shards: whole or not there, damage found, room kept, shared by processes."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from everydream.caches import contents, filling
from everydream.caches.contents import UNKNOWN, hash_files
from everydream.caches.filling import NoRoom, Room, Shelf
from everydream.caches.keys import content_hash
from everydream.caches.shards import list_shards
from everydream.caches.store import MARK, Store, as_keys

ABOUT = {"kind": "latents"}


def key(number: int) -> bytes:
    return content_hash(str(number).encode())


def entries(*numbers: int, dtype: torch.dtype = torch.float32) -> dict[bytes, torch.Tensor]:
    return {key(n): torch.arange(n, n + 96).view(8, 3, 4).to(dtype) for n in numbers}


def filled(folder: Path, *parts: range, dtype: torch.dtype = torch.float32) -> Store:
    store = Store(folder)
    for part in parts:
        store.write(entries(*part, dtype=dtype), ABOUT)
    store.look()
    return store


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_entries_come_back_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    store = filled(tmp_path / "new", range(40), range(40, 60), dtype=dtype)
    assert store.has(as_keys([key(n) for n in (0, 39, 59, 60)])).tolist() == [True, True, True, False]
    for number in (0, 39, 40, 59):
        found, written = store.read(key(number)), entries(number, dtype=dtype)[key(number)]
        assert found is not None and found.dtype == dtype and torch.equal(found, written)
    assert store.read(key(60)) is None and store.take_notes() == []
    assert store.sums()[0].entries == 60


@pytest.mark.parametrize("where", [0.1, 0.5, 0.99])
def test_a_flipped_byte_is_found_and_named(tmp_path: Path, where: float) -> None:
    """In the header or in an entry: no entry is ever read that is not as it was written."""
    store = filled(tmp_path, range(20))
    (path,) = list_shards(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 0x10
    path.write_bytes(content)
    read = {number: store.read(key(number)) for number in range(20)}
    assert all(found is None or torch.equal(found, entries(n)[key(n)]) for n, found in read.items())
    again = Store(tmp_path)
    assert path in again.verify()
    assert path.name in again.remove_damaged()[0] and not list(tmp_path.iterdir())
    assert Store(tmp_path).has(as_keys([key(0)])).tolist() == [False]


def test_damage_found_while_reading_marks_the_shard_for_the_next_filling(tmp_path: Path) -> None:
    store = filled(tmp_path, range(3), range(3, 6))
    content = bytearray(store.shards[0].path.read_bytes())
    content[-1] ^= 1
    store.shards[0].path.write_bytes(content)
    numbers = [n for n in range(6) if store.read(key(n)) is None]
    assert len(numbers) == 1
    (note,) = store.take_notes()
    assert str(store.shards[0].path) in note and key(numbers[0]).hex() in note
    assert store.shards[0].path.with_suffix(MARK).exists()
    again = Store(tmp_path)
    assert list(again.damaged) == [store.shards[0].path] and len(again.shards) == 1


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_shard_cut_short_is_found_and_named(tmp_path: Path, left: int) -> None:
    filled(tmp_path, range(3))
    (path,) = list_shards(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    store = Store(tmp_path)
    assert store.damaged[path] in ("cut short", "header cannot be read (JSONDecodeError)") and not store.shards


def test_a_kill_while_writing_leaves_no_shard(tmp_path: Path) -> None:
    store = filled(tmp_path, range(3))
    killed = patch("everydream.formats.atomic.put_in_place", side_effect=KeyboardInterrupt)
    with killed, patch.object(Path, "unlink"), pytest.raises(KeyboardInterrupt):
        store.write(entries(7), ABOUT)
    (partial,) = tmp_path.glob("*.partial")
    assert len(Store(tmp_path).shards) == 1
    assert store.remove_unfinished() == 0, "it may be another process's, under way"
    os.utime(partial, (0, 0))
    assert store.remove_unfinished() == 1 and not partial.exists()


def test_processes_that_write_at_once_do_no_harm(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: filled(tmp_path, range(n, n + 3)), [0, 0, 1, 2]))
    store = Store(tmp_path)
    assert len(store.shards) == 4 and store.verify() == {}
    for number in range(5):
        found = store.read(key(number))
        assert found is not None and torch.equal(found, entries(number)[key(number)])
    store.remove(store.redundant())
    assert store.has(as_keys([key(n) for n in range(5)])).all() and len(store.shards) < 4


def test_room_is_made_of_what_was_longest_unused_and_never_of_what_is_needed(tmp_path: Path) -> None:
    store = filled(tmp_path, range(3), range(3, 6), range(6, 9))
    one = store.shards[0].bytes
    for number, age in ((0, 30), (3, 20), (6, 10)):
        keys = as_keys([key(number)])
        store.touch(keys)
        (path,) = [shard.path for shard in store._holding(keys)]
        os.utime(path, (time.time() - age, time.time() - age))
    keep = as_keys([key(0)])
    assert store.make_room(one, 3 * one, keep)
    assert store.has(as_keys([key(n) for n in (0, 3, 6)])).tolist() == [True, False, True]
    assert not store.make_room(2 * one, 2 * one, keep), "what is needed stays"
    assert store.has(as_keys([key(n) for n in (0, 6)])).tolist() == [True, True], "nothing was given up for nothing"


@pytest.mark.parametrize("why", ["bound", "reserve", "full disk"])
def test_no_room_is_said_and_leaves_whole_shards(tmp_path: Path, why: str) -> None:
    store = filled(tmp_path, range(3))
    bound = 1.5 * store.taken_bytes if why == "bound" else 1e9
    shelf = Shelf(store, ABOUT, Room(bound, 1 << 60 if why == "reserve" else 0, as_keys([key(0)])))
    shelf.put(entries(*range(10, 20)))
    full = OSError(28, "No space left on device") if why == "full disk" else None
    told = {"bound": "cache.max_gb", "reserve": "checkpoints"}.get(why, "No space left")
    with patch("everydream.caches.shards.save", side_effect=full), pytest.raises(NoRoom, match=told):
        shelf.write()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    assert Store(tmp_path).verify() == {}


def test_shards_are_written_when_full_or_when_a_minute_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SHARD_ENTRIES", 4)
    shelf = Shelf(Store(tmp_path), ABOUT, Room(1e9, 0, as_keys([])))
    for number in range(10):
        shelf.put(entries(number))
    assert len(list_shards(tmp_path)) == 2
    shelf.since -= 100.0
    shelf.put(entries(10))
    assert len(list_shards(tmp_path)) == 3 and Store(tmp_path).has(as_keys([key(n) for n in range(11)])).all()


def test_an_edited_file_has_another_hash_although_size_and_date_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K #931, #709: what goes by name, size or date keeps the latents of the older picture."""
    monkeypatch.setattr(contents, "_SETTLED_S", 0.0)
    paths = [tmp_path / name for name in ("a.png", "a.jpg", "gone.png")]
    for path in paths[:2]:
        path.write_bytes(path.suffix.encode() * 1000)
    folder, dates = tmp_path / "cache", paths[0].stat()
    before = hash_files(folder, paths, [None] * len(paths))
    assert before[0] != before[1] and before[2] == UNKNOWN
    with patch.object(contents, "read_bytes", side_effect=AssertionError("read again")):
        assert (hash_files(folder, paths[:2], [None] * 2) == before[:2]).all(), "remembered"
    time.sleep(0.05)  # more than a tick of the file system's clock; a real run waits for `_SETTLED_S`
    paths[0].write_bytes(b".pnG" * 1000)
    os.utime(paths[0], ns=(dates.st_atime_ns, dates.st_mtime_ns))
    assert hash_files(folder, paths, [None] * len(paths))[0] not in before
    paths[0].write_bytes(b".png" * 1000)
    assert (hash_files(folder, paths, [None] * len(paths)) == before).all(), "and the same when it is put back"
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    assert (hash_files(folder, paths, [None] * len(paths)) == before).all(), (
        "what is remembered is damaged, so the files are read"
    )


def test_a_file_that_was_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"new")
    assert hash_files(tmp_path / "cache", [path], [None])[0] == np.bytes_(content_hash(b"new"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("number", "is_damage"), [(errno.ESTALE, False), (errno.ETIMEDOUT, False), (errno.EIO, True)])
def test_what_may_pass_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_damage: bool
) -> None:
    """A network that did not answer costs this reading; a bad place on a disk costs the shard."""
    store = filled(tmp_path, range(3))

    def fails(*_: object) -> None:
        raise OSError(number, "it fails")

    for name in ("read_entry", "read_header"):
        with monkeypatch.context() as patch:
            patch.setattr(f"everydream.caches.store.{name}", fails)
            assert bool(Store(tmp_path).damaged) == (is_damage and name == "read_header")
            assert bool(Store(tmp_path).take_notes()) == (not is_damage and name == "read_header")
            if name == "read_entry":
                assert store.read(key(1)) is None and "it fails" in store.take_notes()[0]
    assert bool(list(tmp_path.glob("*.damaged"))) == is_damage


def test_the_cache_of_somebody_else_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shards can be read, and neither removed nor marked."""
    store = filled(tmp_path, range(3), range(3, 6))
    torn = store.shards[0].path
    torn.write_bytes(torn.read_bytes()[:-4])

    def refused(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refused)
    store = Store(tmp_path)
    (line,) = store.remove_damaged()
    assert line == f"{torn.name}: cut short; it cannot be removed (Permission denied)"
    assert not store.make_room(1, store.taken_bytes, as_keys([])), "no room can be made"
    assert len(store.shards) == 1


def test_room_is_made_also_where_others_write_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = filled(tmp_path, *(range(n, n + 1) for n in range(6)))
    for age, shard in enumerate(ours.shards):
        os.utime(shard.path, (1000 + age, 1000 + age))
    one = ours.shards[0].bytes
    Store(tmp_path).write(entries(50), ABOUT)  # by another process, since this one looked
    Store(tmp_path).write(entries(51), ABOUT)
    assert ours.make_room(one, 6 * one, as_keys([]))
    assert ours.taken_bytes + one <= 6 * one and len(ours.shards) == 5
