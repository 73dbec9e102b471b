"""Writing is atomic and repeatable; reading goes by content."""

import os
import re
import shutil
import stat
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from everydream.errors import DiskError, FormatError
from everydream.formats.atomic import atomic_file, atomic_folder, format_bytes, require_space
from everydream.formats.files import (
    canonical,
    cast_floating,
    json_metadata,
    read_file,
    total_bytes,
    write_pickle,
    write_safetensors,
)


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "w": torch.randn(3, 4),
        "half": torch.randn(5).half(),
        "bf": torch.randn(2).bfloat16(),
        "ids": torch.arange(7),
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 3),
    }


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_what_is_written_is_read(tmp_path: Path, write) -> None:
    write(tmp_path / "m.bin", tensors())
    assert equal(read_file(tmp_path / "m.bin").tensors, tensors())


def test_safetensors_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    state, metadata = tensors(), {"b": "2", "a": "1"}
    write_safetensors(tmp_path / "1.safetensors", state, metadata)
    again = {key: tensor.clone() for key, tensor in reversed(state.items())}
    write_safetensors(tmp_path / "other name.safetensors", again, dict(reversed(metadata.items())))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "other name.safetensors").read_bytes()
    assert read_file(tmp_path / "1.safetensors").metadata == {"format": "pt", **metadata}


def test_pickle_bytes_depend_on_content_alone(tmp_path: Path) -> None:
    """A resumed run writes what the straight one writes: strings, tensors and containers may come from a file."""
    parts = ["mo", "del"]
    contents = {
        "state_dict": tensors(),
        "name": "model",
        "".join(parts): ["".join(parts), {"model": 1, "x": None, "y": 2.5, "z": True}],
        "optimizer": {"w": {"step": torch.tensor(3.0), "exp_avg": torch.ones(3, 4)}},
    }
    write_pickle(tmp_path / "first.ckpt", contents)
    loaded = torch.load(tmp_path / "first.ckpt", weights_only=True)
    write_pickle(tmp_path / "second.ckpt", loaded)
    odd = OrderedDict(loaded)
    odd["state_dict"] = OrderedDict((k, torch.stack([v, v])[1]) for k, v in loaded["state_dict"].items())
    odd["model"] = tuple(odd["model"])
    write_pickle(tmp_path / "third.ckpt", odd)
    first = (tmp_path / "first.ckpt").read_bytes()
    assert (tmp_path / "second.ckpt").read_bytes() == first
    assert (tmp_path / "third.ckpt").read_bytes() == first


def test_canonical_refuses_what_is_not_plain() -> None:
    with pytest.raises(AssertionError, match="not a plain value"):
        canonical({"a": object()})


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_a_view_is_written_without_its_storage(tmp_path: Path, write) -> None:
    big = torch.randn(1000, 1000)
    write(
        tmp_path / "m", {"row": big[3], "column": big[:, 5], "transposed": big[:2].T, "grad": big[0].requires_grad_()}
    )
    assert (tmp_path / "m").stat().st_size < 40_000
    state = read_file(tmp_path / "m").tensors
    assert torch.equal(state["row"], big[3]) and torch.equal(state["column"], big[:, 5])
    assert torch.equal(state["transposed"], big[:2].T)


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_tensors_that_share_memory_are_written_as_if_they_did_not(tmp_path: Path, write) -> None:
    whole = torch.randn(4)
    write(tmp_path / "shared", {"a": whole, "b": whole.view(2, 2), "c": whole})
    write(tmp_path / "apart", {"a": whole.clone(), "b": whole.clone().view(2, 2), "c": whole.clone()})
    assert (tmp_path / "shared").read_bytes() == (tmp_path / "apart").read_bytes()
    assert torch.equal(read_file(tmp_path / "shared").tensors["b"], whole.view(2, 2))


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_strides_do_not_show(tmp_path: Path, write) -> None:
    """A 1x1 convolution is contiguous in two memory formats at once."""
    kernel = torch.randn(6, 4, 1, 1)
    write(tmp_path / "plain", {"w": kernel, "v": torch.ones(2, 3, 2, 2)})
    last = {"w": kernel.clone(), "v": torch.ones(2, 3, 2, 2)}
    write(tmp_path / "last", {k: v.to(memory_format=torch.channels_last) for k, v in last.items()})
    write(tmp_path / "odd", {"w": kernel.as_strided((6, 4, 1, 1), (4, 1, 77, 1)), "v": last["v"]})
    assert (tmp_path / "last").read_bytes() == (tmp_path / "plain").read_bytes() == (tmp_path / "odd").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_only_floating_tensors_are_cast(dtype: torch.dtype) -> None:
    """Defect 26: elsewhere integer tensors are halved too."""
    state = {**tensors(), "position_ids": torch.tensor([[70_000]]), "flag": torch.tensor([True])}
    cast = cast_floating(state, dtype)
    for key, tensor in state.items():
        assert cast[key].dtype == (dtype if tensor.is_floating_point() else tensor.dtype)
    assert cast["position_ids"].item() == 70_000
    assert cast_floating(state, None) == state
    assert total_bytes(state, dtype) == sum(t.numel() * t.element_size() for t in cast.values())


@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_a_failed_write_leaves_the_old_file(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.ckpt"
    write(path, tensors())
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write(path, {"w": torch.zeros(9)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.ckpt"]


def test_an_interrupt_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as partial:
        partial.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and not partial.exists()


def test_a_left_over_partial_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "f.partial").write_text("much longer rubbish of a killed process")
    with atomic_file(tmp_path / "f") as partial:
        partial.write_text("new")
    assert (tmp_path / "f").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_folder_is_there_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "export"
    (tmp_path / "export.partial" / "rubbish").mkdir(parents=True)
    with atomic_folder(path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["export"] and [p.name for p in path.iterdir()] == ["a"]
    with atomic_folder(path) as folder:
        (folder / "c").write_text("3")
    assert [p.name for p in path.iterdir()] == ["c"]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.parametrize("write", [write_safetensors, write_pickle])
def test_the_mode_of_a_file_follows_the_umask(tmp_path: Path, write, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "m", tensors())
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == mode


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000))
    require_space(tmp_path / "runs" / "not there yet", 1_500_000, "x")
    with pytest.raises(DiskError) as error:
        require_space(tmp_path / "runs", 4_300_000_000, "This run")
    assert str(error.value) == (
        f"This run needs 4.3 GB in {tmp_path / 'runs'}, but only 1.5 MB are free there. Nothing was overwritten. "
        "Free some space, lower `checkpoints.keep`, or set `runs_dir` to another disk."
    )


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1.5e6, "1.5 MB"), (2e9, "2.0 GB"), (5e12, "5000.0 GB")],
)
def test_sizes_for_people(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize("ending", [".ckpt", ".pt", "", ".safetensors"])
def test_safetensors_are_known_by_content(tmp_path: Path, ending: str) -> None:
    save_file(tensors(), tmp_path / f"m{ending}")
    assert equal(read_file(tmp_path / f"m{ending}").tensors, tensors())


@pytest.mark.parametrize("keep", [0, 4, 9, 40, 200, -100, -1])
def test_safetensors_cut_short(tmp_path: Path, keep: int) -> None:
    save_file(tensors(), tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[:keep])
    with pytest.raises(FormatError, match=re.escape(str(tmp_path / "short.safetensors"))) as error:
        read_file(tmp_path / "short.safetensors")
    assert "Compare its size" in str(error.value) or "compare its size" in str(error.value)


def test_metadata_is_canonical() -> None:
    assert json_metadata({"b": 1, "a": {"d": "é", "c": None}}) == json_metadata({"a": {"c": None, "d": "é"}, "b": 1})
    assert " " not in json_metadata({"a": [1, 2], "b": 3})


def test_other_readers_open_what_is_written(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "m.safetensors", tensors())
    assert equal(load_file(tmp_path / "m.safetensors"), tensors())
    write_pickle(tmp_path / "m.ckpt", {"state_dict": tensors()})
    assert equal(torch.load(tmp_path / "m.ckpt", weights_only=True)["state_dict"], tensors())


def test_what_lies_at_the_temporary_name_is_replaced_and_no_link_is_followed(tmp_path: Path) -> None:
    path, partial, victim = tmp_path / "a.txt", tmp_path / "a.txt.partial", tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").write_text("precious")
    partial.symlink_to(victim / "kept")
    with atomic_file(path) as target:
        target.write_text("new")
    partial.symlink_to(victim)
    with atomic_folder(tmp_path / "a.txt.d"), atomic_file(path) as target:
        target.write_text("newer")
    partial.mkdir()
    (partial / "left-over").write_text("of a killed run")
    with atomic_file(path) as target:
        target.write_text("newest")
    assert path.read_text() == "newest" and not partial.exists()
    assert (victim / "kept").read_text() == "precious"
