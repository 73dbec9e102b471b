"""`everydream info`: files of ours and of other tools are told apart, and nothing in them is run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tools.tool_app import run

from everydream.errors import ConfigError, FormatError
from everydream.formats.embeddings import (
    read_embedding,
    read_for_several,
    write_for_diffusers,
    write_for_several,
    write_for_webui,
)
from everydream.formats.hypernetworks import HypernetworkFile, read_hypernetwork, write_hypernetwork
from everydream.formats.pngs import parameters, settings_in, write_png
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.models.write import write_model
from everydream.tools.info.read import info


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files as other tools leave them."""
    folder = tmp_path_factory.mktemp("foreign")
    cross = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {
        f"{cross}.lora_down.weight": torch.zeros(4, 1024, dtype=torch.float16),
        f"{cross}.lora_up.weight": torch.zeros(320, 4, dtype=torch.float16),
        f"{cross}.alpha": torch.tensor(4.0),
    }
    said = {"ss_network_dim": "4", "ss_tag_frequency": json.dumps({"10_dog": {"dog": 3}})}
    save_file(lora, folder / "kohya.safetensors", said)
    recipe = {"sd_merge_recipe": json.dumps({"type": "webui", "primary_model_hash": "ab"}), "format": "pt"}
    merged = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(3, 4)}
    words = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    save_file({**merged, words: torch.zeros(5, 6, dtype=torch.bfloat16)}, folder / "merged.safetensors", recipe)
    torch.save({"string_to_param": {"*": torch.zeros(2, 768)}, "name": "rex"}, folder / "word.pt")
    state = {"linear.0.weight": torch.zeros(2, 2)}
    torch.save({768: (state, state), 320: (state, state), "layer_structure": [1, 1]}, folder / "hyper.pt")

    class Callback:
        """A class that a file of a trainer names."""

    globals()["Callback"] = Callback
    Callback.__qualname__ = "Callback"
    torch.save({"state_dict": merged, "callbacks": Callback(), "global_step": 7}, folder / "lightning.ckpt")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "family", "num_parameters"),
    [
        ("kohya.safetensors", "adapter", "sd2", 4 * 1024 + 320 * 4 + 1),
        ("merged.safetensors", "model", "sd1", 12 + 30),
        ("word.pt", "embedding", "sd1", 2 * 768),
        ("hyper.pt", "hypernetwork", "sd1", 16),
        ("lightning.ckpt", "model", None, 12),
    ],
)
def test_files_of_other_tools(foreign: Path, name: str, kind: str, family: str | None, num_parameters: int) -> None:
    facts = info(foreign / name)
    assert (facts["kind"], facts["family"], facts["parameters"]) == (kind, family, num_parameters)
    whole = hashlib.sha256((foreign / name).read_bytes()).hexdigest()
    assert (facts["sha256"], facts["short_hash"], facts["auto_v2"]) == (whole, whole[:10], whole[:10].upper())


def test_what_other_tools_say_is_shown(foreign: Path) -> None:
    facts = info(foreign / "kohya.safetensors")
    assert facts["metadata"]["ss_tag_frequency"] == {"10_dog": {"dog": 3}}
    assert facts["keys"]["parts"] == {"lora_unet": facts["parameters"]}
    assert info(foreign / "merged.safetensors")["metadata"]["sd_merge_recipe"]["type"] == "webui"
    assert info(foreign / "merged.safetensors")["precision"] == {"bf16": 30, "fp32": 12}
    named = info(foreign / "lightning.ckpt")
    assert [name.rpartition(".")[2] for name in named["code"]] == ["Callback"] and named["beside"] == ["callbacks"]
    shown = run("info", foreign / "lightning.ckpt").stdout
    assert "It names code, none of which was run" in shown and "global_step" in shown
    assert json.loads(run("info", foreign / "word.pt", "--json").stdout)["kind"] == "embedding"


def test_a_models_folder_and_file(model_folder: Path, tmp_path: Path) -> None:
    folder = info(model_folder)
    assert (folder["kind"], folder["family"]) == ("diffusers folder", "sd1")
    family = load(ModelSettings(path=str(model_folder)))
    file = info(write_model(family, tmp_path / "m", "safetensors", torch.float16))
    assert (file["kind"], file["family"], list(file["precision"])) == ("model", "sd1", ["fp16"])
    own = sum(t.numel() for t in family.single_file().values())
    assert file["parameters"] == own and sum(part["parameters"] for part in folder["parts"].values()) >= own - 100
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", {"k": "1"})
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors", {"k": "2"})
    one, other = info(tmp_path / "a.safetensors"), info(tmp_path / "b.safetensors")
    assert one["auto_v3"] == other["auto_v3"] == hashlib.sha256(bytes(4)).hexdigest()
    assert one["sha256"] != other["sha256"]


def test_pictures_say_how_they_were_drawn(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    said = parameters("a dög", "ugly", Steps=3, Sampler="ddim", CFG_scale=7.0, Seed=None)
    assert said == "a dög\nNegative prompt: ugly\nSteps: 3, Sampler: ddim, CFG scale: 7.0"
    write_png(tmp_path / "a.png", picture, {"seed": 5, "prompt": "a dög"}, said)
    assert settings_in(tmp_path / "a.png") == {"seed": 5, "prompt": "a dög"}
    assert info(tmp_path / "a.png")["parameters"] == said
    Image.fromarray(picture).save(tmp_path / "plain.png")
    assert settings_in(tmp_path / "plain.png") == {} and "settings" not in info(tmp_path / "plain.png")
    assert "Drawn by EveryDream with" in run("info", tmp_path / "a.png").stdout


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    refusals: list[tuple[str, Any, type[Exception], str]] = [
        ("nowhere.ckpt", None, ConfigError, "There is nothing at"),
        ("a.png", b"no picture", FormatError, "cannot be read as a picture"),
        ("a.ckpt", b"no weights", FormatError, "cannot be read as a checkpoint"),
        ("a.safetensors", b"\x09\0\0\0\0\0\0\0{}", FormatError, "not a whole safetensors file"),
    ]
    for name, content, error, message in refusals:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=message):
            info(tmp_path / name)
    with pytest.raises(FormatError, match=r"no model_index\.json"):
        info(tmp_path)
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match=r"is the folder of a run\. Give a file in .*checkpoints, or .* review"):
        info(tmp_path)
    torch.save({"a": 1}, tmp_path / "empty.ckpt")
    with pytest.raises(FormatError, match="holds no tensors"):
        info(tmp_path / "empty.ckpt")


def test_small_files_say_what_made_them_and_are_read_as_before(tmp_path: Path) -> None:
    keys = ("project", "method", "weights", "step", "steps_planned", "epoch", "images_seen")
    about = {
        **dict.fromkeys(keys, 3), "trainer": {"everydream": "1"}, "base": {"name": "m", "sha256": "0", "of": "file"},
        "data": {"images": 0, "fingerprint": "0", "sources": []},
    }  # fmt: skip
    rows_VD = torch.ones(2, 768)
    write_for_webui(tmp_path / "rex.pt", "rex", rows_VD, about)
    write_for_diffusers(tmp_path / "rex.safetensors", "rex", rows_VD, about)
    write_for_several(tmp_path / "two.safetensors", "rex", {"clip_l": rows_VD, "clip_g": rows_VD}, about)
    layer = {"linear.0.weight": torch.zeros(2, 2), "linear.0.bias": torch.zeros(2)}
    plan = HypernetworkFile((1.0, 1.0), "linear", False, False, None, {768: (layer, layer)})
    write_hypernetwork(tmp_path / "hyper.pt", "hyper", plan, about)
    for name in ("rex.pt", "rex.safetensors", "two.safetensors", "hyper.pt"):
        assert info(tmp_path / name)["provenance"] == about, name
    for name in ("rex.pt", "rex.safetensors"):
        assert torch.equal(read_embedding(tmp_path / name)["rex"], rows_VD)
    assert read_for_several(tmp_path / "two.safetensors")[0] == "rex"
    assert set(read_hypernetwork(tmp_path / "hyper.pt").weights) == {768}


def test_files_of_strangers_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    deep = "[" * 100_000
    write_png(path, np.zeros((8, 8, 3), np.uint8), {}, "\x1b[31mred")
    result = run("info", path)
    assert "\x1b" not in result.output and "[U+001B][31mred" in result.output
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 16)
    with pytest.raises(FormatError, match="cannot be read as a picture"):
        info(path)
    for said in (json.dumps({"provenance": {"trainer": 1}}), '{"provenance": {"trainer": {}, "base": []}}', deep):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"everydream": said, "other": deep})
        assert info(tmp_path / "a.safetensors")["provenance"] == {}
        assert run("info", tmp_path / "a.safetensors").exit_code == 0
