"""Pickled checkpoints give their tensors and run nothing, whatever they name."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from everydream.errors import FormatError
from everydream.formats.files import read_file
from everydream.formats.pickles import load_pickle

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2], dtype=torch.int64)}
FORMATS = {"zip": True, "legacy": False}


def save(path: Path, contents: Any, kind: str = "zip", **kwargs: Any) -> Path:
    torch.save(contents, path, _use_new_zipfile_serialization=FORMATS[kind], **kwargs)
    return path


def assert_weights(tensors: dict[str, torch.Tensor]) -> None:
    assert tensors.keys() == WEIGHTS.keys()
    for key, tensor in WEIGHTS.items():
        assert type(tensors[key]) is torch.Tensor
        assert tensors[key].dtype == tensor.dtype and torch.equal(tensors[key], tensor)


# --- honest files


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin", ".safetensors"])
def test_a_flat_checkpoint_is_read_whatever_its_ending(tmp_path: Path, kind: str, ending: str) -> None:
    file = read_file(save(tmp_path / f"m{ending}", WEIGHTS, kind))
    assert_weights(file.tensors)
    assert file.metadata == {} and file.skipped == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_nested_checkpoint_keeps_what_stands_beside_the_weights(tmp_path: Path, kind: str) -> None:
    contents = {"state_dict": OrderedDict(WEIGHTS), "global_step": 7, "epoch": 1, "note": ["x", {"y": 2.5}]}
    file = read_file(save(tmp_path / "m.ckpt", contents, kind))
    assert_weights(file.tensors)
    assert file.metadata == {"global_step": 7, "epoch": 1, "note": ["x", {"y": 2.5}]}


def test_parameters_and_what_is_no_tensor(tmp_path: Path) -> None:
    contents = {"w": torch.nn.Parameter(torch.ones(2)), "global_step": 3, 5: torch.ones(1), "s": "text"}
    file = read_file(save(tmp_path / "m.pt", contents))
    assert list(file.tensors) == ["w"]
    assert type(file.tensors["w"]) is torch.Tensor and not file.tensors["w"].requires_grad


def test_a_state_dict_of_a_module_with_its_metadata(tmp_path: Path) -> None:
    """Its OrderedDict carries `_metadata` as an attribute, which the pickle sets."""
    module = torch.nn.BatchNorm1d(3)
    file = read_file(save(tmp_path / "m.pt", {"state_dict": module.state_dict(), "when": np.float64(1)}))
    assert file.tensors.keys() == module.state_dict().keys()
    assert any("scalar" in name for name in file.skipped)


@pytest.fixture
def vanishing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ModuleType]:
    """Make a module with classes that can be pickled; the returned function makes it unimportable again."""
    folder = tmp_path / "vanishing"
    folder.mkdir()
    (folder / "lightning_like_module.py").write_text(
        "import enum\n"
        "class ModelCheckpoint:\n"
        "    def __init__(self, best): self.best = best\n"
        "class Config(dict):\n    pass\n"
        "class Names(list):\n    pass\n"
        "class Seen(set):\n    pass\n"
        "class Mode(enum.Enum):\n    FAST = 1\n"
        "class Slotted:\n    __slots__ = ('x',)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    import lightning_like_module

    def vanish() -> ModuleType:
        monkeypatch.undo()
        sys.modules.pop("lightning_like_module", None)
        with pytest.raises(ImportError):
            __import__("lightning_like_module")
        return lightning_like_module

    lightning_like_module.vanish = vanish
    return vanish


@pytest.mark.parametrize("kind", FORMATS)
def test_a_lightning_checkpoint_is_read_without_its_classes(
    tmp_path: Path, vanishing: Callable[[], ModuleType], kind: str
) -> None:
    module = sys.modules["lightning_like_module"]
    slotted = module.Slotted()
    slotted.x = 3
    contents = {
        "state_dict": OrderedDict(WEIGHTS),
        "callbacks": {module.ModelCheckpoint: {"best": 0.5, "instance": module.ModelCheckpoint(1)}},
        "hyper_parameters": module.Config(lr=1e-4),
        "names": module.Names(["a", "b"]),
        "seen": module.Seen({1, 2}),
        "mode": module.Mode.FAST,
        "slotted": slotted,
        "loss": np.float32(0.25),
        "array": np.arange(3),
        "global_step": 12,
    }
    path = save(tmp_path / "m.ckpt", contents, kind)
    vanishing()
    file = read_file(path)
    assert_weights(file.tensors)
    assert file.metadata["global_step"] == 12
    for name in ("ModelCheckpoint", "Config", "Names", "Seen", "Mode", "Slotted"):
        assert f"lightning_like_module.{name}" in file.skipped
    assert any(name.startswith("numpy") for name in file.skipped)
    assert file.skipped == sorted(set(file.skipped))


def test_containers_that_hold_themselves(tmp_path: Path) -> None:
    contents: dict[str, Any] = {"state_dict": dict(WEIGHTS), "list": [1]}
    contents["list"].append(contents["list"])
    contents["self"] = contents
    file = read_file(save(tmp_path / "m.pt", contents))
    assert_weights(file.tensors)
    assert file.metadata["list"][1] is file.metadata["list"]


# --- hostile files


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def payloads(marker: Path) -> dict[str, Call]:
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "subprocess": Call(subprocess.check_call, ["touch", str(marker)]),
        "open": Call(open, str(marker), "w"),
        "import": Call(__import__, "a_module_that_is_missing"),
        "path": Call(Path.touch, marker),
    }


def places(payload: Call) -> dict[str, Any]:
    ordered = OrderedDict(WEIGHTS)
    ordered["evil"] = payload
    return {
        "top": payload,
        "beside": {"state_dict": dict(WEIGHTS), "evil": payload},
        "inside": {"state_dict": {**WEIGHTS, "evil": payload}},
        "ordered": {"state_dict": ordered},
        "key": {"state_dict": dict(WEIGHTS), "k": {(1, payload): 1}},
        "state_dict": {"state_dict": payload, **WEIGHTS},
        "list": {"state_dict": dict(WEIGHTS), "many": [[payload], (payload,)]},
        "flat": {**WEIGHTS, "evil": payload},
    }


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("place", places(Call(print)))
@pytest.mark.parametrize("name", payloads(Path()))
def test_a_call_by_reduce_never_happens(tmp_path: Path, name: str, place: str, kind: str) -> None:
    marker = tmp_path / "marker"
    path = save(tmp_path / "evil.ckpt", places(payloads(marker)[name])[place], kind)
    try:
        file = read_file(path)
    except FormatError as error:
        assert str(path) in str(error)
        assert place == "top"
    else:
        assert_weights(file.tensors)
        assert file.skipped
    assert not marker.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_hostile_storage(tmp_path: Path, kind: str) -> None:
    """A tensor whose storage is a call; and persistent ids with a call in each place."""
    marker = tmp_path / "marker"
    payload = Call(os.system, f"touch {marker}")
    rebuilt = Call(torch._utils._rebuild_tensor_v2, payload, 0, (1,), (1,), False, OrderedDict())
    with pytest.raises(FormatError, match="evil"):
        read_file(save(tmp_path / "evil.ckpt", {"state_dict": {**WEIGHTS, "x": rebuilt}}, kind))
    assert not marker.exists()


# Opcodes written by hand. `u(text)` pushes a string.
def u(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def in_legacy(path: Path, program: bytes) -> Path:
    """Write a legacy file of torch.save with this program as its object."""
    with path.open("wb") as file:
        for head in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True}):
            pickle.dump(head, file, protocol=2)
        file.write(program)
        pickle.dump([], file, protocol=2)
    return path


def in_zip(path: Path, program: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """Write a zip file of torch.save with this program as its object."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for name, data in (storages or {}).items():
            archive.writestr(f"archive/data/{name}", data)
        archive.writestr("archive/version", "3\n")
    return path


def raw(path: Path, program: bytes) -> Path:
    path.write_bytes(program)
    return path


CONTAINERS = {"raw": raw, "legacy": in_legacy, "zip": in_zip}
P2, P4 = b"\x80\x02", b"\x80\x04"


def programs(marker: Path) -> dict[str, bytes]:
    command = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    system = b"cos\nsystem\n"
    builtin = b"cbuiltins\n%s\n"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n"

    def storage(position: int) -> bytes:
        items = [u("storage"), b"ctorch\nFloatStorage\n", u("0"), u("cpu"), b"K\x01"]
        items[position] = system + b"(" + u(command) + b"tR"
        return P2 + b"(" + b"".join(items) + b"tQ."

    return {
        "GLOBAL REDUCE": P2 + system + b"(" + u(command) + b"tR.",
        "STACK_GLOBAL": P4 + u("os") + u("system") + b"\x93" + u(command) + b"\x85R.",
        "STACK_GLOBAL dotted": P4 + u("os") + u("path.os.system") + b"\x93" + u(command) + b"\x85R.",
        "GLOBAL through an allowed module": P4 + u("collections") + u("abc.sys.modules") + b"\x93.",
        "GLOBAL through torch._utils": P4 + u("torch._utils") + u("os.system") + b"\x93" + u(command) + b"\x85R.",
        "INST": b"(" + b"S" + repr(command).encode() + b"\nios\nsystem\n.",
        "OBJ": P2 + b"(" + builtin % b"exec" + u(code) + b"o.",
        "NEWOBJ": P2 + b"csubprocess\nPopen\n" + b"(" + u(command) + b"tR" + b".",
        "NEWOBJ class": P2 + b"csubprocess\nPopen\n(" + u(command) + b"t\x81.",
        "NEWOBJ_EX": P4 + b"csubprocess\nPopen\n(" + u(command) + b"t}" + u("shell") + b"\x88s\x92.",
        "BUILD on an instance": P2 + b"csubprocess\nPopen\n)\x81}" + u("__setstate__") + system + b"sb.",
        "BUILD on a class": P2 + b"cos\nsystem\n}" + u("__setstate__") + builtin % b"exec" + b"sb" + u(code)
        + b"\x85R.",
        "BUILD calls a state": P2 + b"ccollections\nOrderedDict\n)R}" + u("__setstate__") + system + b"sb" + u(command)
        + b"b.",
        "getattr": P2 + builtin % b"getattr" + b"(" + b"cos\n__dict__\n" + u("system") + b"tR(" + u(command) + b"tR.",
        "eval": P2 + builtin % b"eval" + b"(" + u(code) + b"tR.",
        "python 2's": P2 + b"c__builtin__\nexecfile\n(" + u(command) + b"tR.",
        "torch.load": P2 + b"ctorch\nload\n(" + u(str(marker)) + b"tR.",
        "torch.hub.load": P2 + b"ctorch.hub\nload\n(" + u("a/b") + b"tR.",
        "torch.save": P2 + b"ctorch\nsave\n(" + u("text") + u(str(marker)) + b"tR.",
        "_rebuild_from_type": P2 + b"ctorch._tensor\n_rebuild_from_type_v2\n(" + system + builtin % b"int" + b"("
        + u(command) + b"tNtR.",
        "_rebuild_sparse": P2 + b"ctorch._utils\n_import_dotted_name\n(" + u("os.system") + b"tR(" + u(command)
        + b"tR.",
        "named like a storage": P2 + b"cos\nsystem.Storage\n(" + u(command) + b"tR.",
        "named like a known storage": P2 + b"cos\nFloatStorage\n(" + u(command) + b"tR.",
        "typed storage": P2 + b"ctorch.storage\n_load_from_bytes\n(" + u("x") + b"tR.",
        "hooks": P2 + tensor + b"(N" + b"K\x00)" + b")" + b"\x89" + system + b"(" + u(command) + b"tRtR.",
        "persistent id of a call": P2 + system + b"(" + u(command) + b"tRQ.",
        "persistent id as text": b"Pcos\nsystem\n.",
        "storage type": storage(1),
        "storage key": storage(2),
        "storage location": storage(3),
        "storage size": storage(4),
        "module": P2 + b"(" + u("module") + b"cos\nsystem\n" + u("x") + u("y") + b"tQ.",
        "memo": P2 + system + b"q\x00" + b"0h\x00(" + u(command) + b"tR.",
        "extension": P2 + b"\x82\x01.",
        "stack underflow": P2 + b"0000.",
        "no stop": P2 + b"K\x01",
        "frame": P4 + b"\x95" + (2**40).to_bytes(8, "little") + b".",
        "huge text": P4 + b"\x8d" + (2**62).to_bytes(8, "little") + b".",
    }  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", programs(Path("x")))
def test_no_opcode_runs_anything(tmp_path: Path, name: str, container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "marker"
    path = CONTAINERS[container](tmp_path / "evil.bin", programs(marker)[name])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FormatError, match="evil.bin"):
        read_file(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.bin"]
    assert not marker.exists()


def test_a_raw_pickle_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = raw(tmp_path / "evil.pkl", pickle.dumps(Call(os.system, f"touch {marker}")))
    with pytest.raises(FormatError, match="evil.pkl"):
        read_file(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "function", [torch._utils._rebuild_tensor, torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter]
)
@pytest.mark.parametrize("container", ["legacy", "zip"])
def test_tensor_builders_cannot_be_changed(tmp_path: Path, function: Any, container: str) -> None:
    """With BUILD a file can set attributes of whatever it can name."""
    slots = b"N}" + u("__defaults__") + b"Ns" + u("__name__") + u("changed") + b"s" + u("mark") + u("x") + b"s\x86"
    program = P2 + f"ctorch._utils\n{function.__name__}\n".encode() + slots + b"b."
    before = (function.__name__, function.__defaults__, dict(function.__dict__))
    with pytest.raises(FormatError):
        read_file(CONTAINERS[container](tmp_path / "evil.pt", program))
    assert (function.__name__, function.__defaults__, dict(function.__dict__)) == before


@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_tensor_v2", "collections\nOrderedDict", "some.module\nThing"])
def test_no_patch_of_a_module_is_written(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A legacy module whose source differs makes torch.load write `<__name__>.patch` if its class asks for it."""
    monkeypatch.chdir(tmp_path)
    slots = b"N}" + u("__name__") + u(str(tmp_path / "written")) + b"s" + u("dump_patches") + b"\x88s\x86b"
    module = b"c" + name.encode() + b"\n" + slots
    program = P2 + b"(" + u("module") + module + u("source.py") + u("a line\n") + b"tQ."
    with pytest.raises(FormatError, match="evil"):
        read_file(in_legacy(tmp_path / "evil.pt", program))
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pt"]


@pytest.mark.parametrize("beside", [b"", u("odd") + b"csome.module\nThing\n)Rs"], ids=["plain", "restricted"])
def test_a_dict_whose_methods_a_file_replaces(tmp_path: Path, beside: bytes) -> None:
    """OrderedDicts take attributes from a pickle, so `items` and `get` may be anything there."""
    floats = b"ctorch._utils\n_rebuild_tensor_v2\n((" + u("storage") + b"ctorch\nFloatStorage\n" + u("0") + u("cpu") \
        + b"K\x01tQK\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR"  # fmt: skip
    attributes = (
        b"}" + b"".join(u(name) + u("no method") + b"s" for name in ("items", "get", "keys", "__class__x")) + b"b"
    )
    ordered = b"ccollections\nOrderedDict\n)R"
    inner = ordered + u("w") + floats + b"s" + attributes
    program = P2 + ordered + u("state_dict") + inner + b"s" + u("everydream") + ordered + attributes + b"s" \
        + beside + attributes + b"."  # fmt: skip
    file = read_file(in_zip(tmp_path / "m.pt", program, {"0": np.float32(2.5).tobytes()}))
    assert file.tensors["w"].tolist() == [2.5]
    assert type(file.metadata["everydream"]) is dict


def test_hooks_of_a_parameter_do_not_travel(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    hooks = OrderedDict({1: Call(os.system, f"touch {tmp_path / 'marker'}")})
    rebuilt = Call(torch._utils._rebuild_parameter, parameter.data, True, hooks)
    file = read_file(save(tmp_path / "m.ckpt", {"w": rebuilt}))
    assert not file.tensors["w"]._backward_hooks and not file.tensors["w"].requires_grad
    file.tensors["w"].requires_grad_(True).sum().backward()
    assert not (tmp_path / "marker").exists()


# --- archives that are programs


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.fixture(scope="module")
def torchscript() -> bytes:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer PyTorch deprecates TorchScript altogether
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(Twice()), buffer)
    return buffer.getvalue()


@pytest.fixture
def no_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail("TorchScript was loaded")

    monkeypatch.setattr(torch.jit, "load", refuse)


@pytest.mark.usefixtures("no_jit")
@pytest.mark.filterwarnings("ignore")  # a warning of torch.load before it gives over must not stop it here
def test_torchscript_is_refused_unopened(tmp_path: Path, torchscript: bytes) -> None:
    path = raw(tmp_path / "script.ckpt", torchscript)
    with pytest.raises(FormatError, match=r"script\.ckpt is a TorchScript archive.*as \.safetensors"):
        read_file(path)


@pytest.mark.usefixtures("no_jit")
@pytest.mark.filterwarnings("ignore")  # a warning of torch.load before it gives over must not stop it here
def test_torchscript_behind_a_second_list_of_contents_is_refused(tmp_path: Path, torchscript: bytes) -> None:
    """Python's zip reader takes the directory just before the end, torch's the one at the offset that is given."""
    start = torchscript.rfind(b"PK\x05\x06")
    size, offset = (int.from_bytes(torchscript[start + i : start + i + 4], "little") for i in (12, 16))
    directory = torchscript[offset : offset + size]
    harmless = directory.replace(b"constants.pkl", b"innocence.pkl")
    path = raw(tmp_path / "two.ckpt", torchscript[: offset + size] + harmless + torchscript[start:])
    with zipfile.ZipFile(path) as archive:
        assert not any(name.endswith("constants.pkl") for name in archive.namelist())
    with pytest.raises(FormatError, match="two.ckpt"):
        read_file(path)


def test_a_tar_archive_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(FormatError, match=r"old\.pt is a tar archive"):
        read_file(path)


# --- files that are not whole


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_a_file_cut_short(tmp_path: Path, kind: str, share: float) -> None:
    whole = save(tmp_path / "whole.pt", {"state_dict": {"w": torch.randn(500)}}, kind).read_bytes()
    path = raw(tmp_path / "short.pt", whole[: int(len(whole) * share)])
    with pytest.raises(FormatError, match="short.pt"):
        read_file(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bytes_never_do_worse_than_a_message(tmp_path: Path, kind: str) -> None:
    whole = save(tmp_path / "whole.pt", {"state_dict": dict(WEIGHTS), "step": 3}, kind).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.choice(len(whole), 150, replace=False):
        damaged = bytearray(whole)
        damaged[position] ^= int(rng.integers(1, 256))
        path = raw(tmp_path / "flipped.pt", bytes(damaged))
        try:
            tensors = read_file(path).tensors
        except FormatError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert all(type(tensor) is torch.Tensor for tensor in tensors.values())
    assert refused > 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"just a text\n",
        b"\x00" * 600,
        b"\xff\xd8\xff\xe0 a picture",
        b"<html>404</html>",
        b"version https://git-lfs",
    ],
)
def test_what_is_no_model_file(tmp_path: Path, content: bytes) -> None:
    path = raw(tmp_path / "other.ckpt", content)
    with pytest.raises(FormatError, match=r"other\.ckpt cannot be read as a checkpoint"):
        read_file(path)


@pytest.mark.parametrize("damage", [False, True])
def test_a_zip_of_something_else(tmp_path: Path, damage: bool) -> None:
    path = tmp_path / "pictures.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x" * 100)
    if damage:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"PK\x01\x02", b"PK\x01\x09"))
    with pytest.raises(FormatError, match="pictures.ckpt"):
        read_file(path)


@pytest.mark.parametrize("contents", [{}, [1, 2], {"state_dict": {}}, {"state_dict": {"x": 1}}, torch.ones(2), "text"])
def test_a_file_without_named_tensors(tmp_path: Path, contents: Any) -> None:
    path = save(tmp_path / "none.pt", contents)
    with pytest.raises(FormatError, match=r"none\.pt holds no tensors"):
        read_file(path)


def test_the_message_names_what_was_not_run(tmp_path: Path) -> None:
    path = save(tmp_path / "evil.pt", Call(os.system, "true"))
    with pytest.raises(FormatError, match=r"names (posix|nt|os)\.system; none of that was run"):
        read_file(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no model file at"):
        read_file(tmp_path / "nothing.ckpt")


def test_contents_and_names_come_apart(tmp_path: Path) -> None:
    contents, skipped = load_pickle(save(tmp_path / "m.pt", {"n": np.float64(1.0), "t": torch.ones(1)}))
    assert contents["t"].tolist() == [1.0]
    assert skipped and all("." in name for name in skipped)
