"""`everydream caption auto`, with tiny random models of the reference library."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tool_app import run

from everydream.data.captions import index_siblings, read_caption
from everydream.tools.captioning import model
from everydream.tools.files import list_pictures

WORDS = ["a", "photo", "of", "red", "blue", "dog", "cat", "on", "the", "grass"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads on from its prompt."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_blip import BlipImageProcessor

    folder = tmp_path_factory.mktemp("blip")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join([*special, *WORDS]) + "\n", encoding="utf-8")
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **width, "vocab_size": len(special) + len(WORDS), "encoder_hidden_size": 16, "projection_dim": 16,
            "max_position_embeddings": 32, "bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3,
        },
        vision_config={**width, "image_size": 32, "patch_size": 16, "projection_dim": 16},
        projection_dim=16, image_text_hidden_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = BertTokenizerFast(str(vocabulary), bos_token="[DEC]")
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in a conversation."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_clip import CLIPImageProcessor

    folder = tmp_path_factory.mktemp("llava")
    special = ["<pad>", "<s>", "</s>", "<image>", "[UNK]", "USER", "ASSISTANT", ":"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="[UNK]",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    width = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**width, num_hidden_layers=2, image_size=32, patch_size=16, projection_dim=16),
        text_config=LlamaConfig(
            **width, num_hidden_layers=1, num_key_value_heads=2, vocab_size=len(vocabulary),
            max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=3,
    )  # fmt: skip
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for m in messages %}<s> USER : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %} "
        "{% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
    )
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer, patch_size=16,
        vision_feature_select_strategy="default", chat_template=template, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def pictures(folder: Path, count: int, name: str = "{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name.format(number))
    return folder


def texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.rglob("*.txt"))}


class Counted:
    """A stand-in for a model, which says what it was asked and can break off."""

    def __init__(self, dies_after: int = 10**6) -> None:
        self.prompts: list[str] = []
        self.batches: list[int] = []
        self._left = dies_after

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        self.prompts += prompts
        self.batches.append(len(images))
        return [f"seen at {image.width}" for image in images]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    captioner = Counted()
    monkeypatch.setattr(model, "load_captioner", lambda *_: captioner)
    return captioner


# Real models


def test_blip_writes_what_the_reference_library_says(blip: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = pictures(tmp_path / "in", 5)
    run("caption", "auto", folder, "--model", blip, "--device", "cpu", "--batch-size", 2, "--max-new-tokens", 6)
    processor, network = AutoProcessor.from_pretrained(blip), AutoModelForImageTextToText.from_pretrained(blip)
    expected = {}
    for number in range(5):
        with Image.open(folder / f"{number}.png") as image:
            inputs = processor(images=image, text="", return_tensors="pt")
        said = network.generate(**inputs, max_new_tokens=6)
        expected[f"{number}.txt"] = processor.decode(said[0], skip_special_tokens=True).strip() + "\n"
    assert texts(folder) == expected and all(len(text.split()) >= 2 for text in expected.values())


def test_a_conversation_is_answered_without_its_question(llava: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    captioner = model.load_captioner(str(llava), "cpu", 5)
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    prompts = ["the red dog on the grass", "cat", "a photo of a cat on the grass"]
    processor, network = AutoProcessor.from_pretrained(llava), AutoModelForImageTextToText.from_pretrained(llava)
    expected = []
    for image, prompt in zip(images, prompts, strict=True):
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        said = network.generate(**inputs, max_new_tokens=5)
        answer = said[0, inputs["input_ids"].shape[1] :]
        expected.append(processor.decode(answer, skip_special_tokens=True).strip())
    assert captioner(images, prompts) == expected and len(set(expected)) > 1
    assert [captioner([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)] == expected


def test_prompts_of_different_lengths_are_not_mixed_up(blip: Path) -> None:
    captioner = model.load_captioner(str(blip), "cpu", 6)
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]
    prompts = ["a photo of", "red dog on the", "cat"]
    alone = [captioner([image], [prompt])[0] for image, prompt in zip(images, prompts, strict=True)]
    assert captioner(images, prompts) == alone
    assert not any(text.startswith(prompt) for text, prompt in zip(alone, prompts, strict=True))


@pytest.mark.parametrize("kind", ["nothing there", "another model"])
def test_a_model_that_cannot_caption_is_named(kind: str, tmp_path: Path, model_folder: Path) -> None:
    folder = pictures(tmp_path / "in", 1)
    path = tmp_path / "nowhere" if kind == "nothing there" else model_folder / "text_encoder"
    said = run("caption", "auto", folder, "--model", path, "--device", "cpu", check=2).stderr
    assert f"--model {path} cannot be loaded on cpu" in said and "image-text-to-text" in said
    assert not texts(folder)


# The folder


def test_existing_captions_are_kept_unless_overwritten(tmp_path: Path, counted: Counted) -> None:
    folder = pictures(tmp_path / "in", 5)
    (folder / "0.txt").write_text("mine", encoding="utf-8")
    (folder / "1.yaml").write_text("main_prompt: mine", encoding="utf-8")
    (folder / "2.json").write_text('{"caption": "from the web"}', encoding="utf-8")
    (folder / "3.yaml").write_text("multiply: 2", encoding="utf-8")
    said = run("caption", "auto", folder, "--model", "m").stdout
    assert texts(folder) == {"0.txt": "mine", **dict.fromkeys(["2.txt", "3.txt", "4.txt"], "seen at 50\n")}
    assert "2 images have captions already" in said and "3 captions written" in said
    said = run("caption", "auto", folder, "--model", "m").stdout
    assert counted.batches == [3] and "0 captions written" in said
    run("caption", "auto", folder, "--model", "m", "--overwrite", "--batch-size", 3)
    assert counted.batches == [3, 3, 1]
    assert set(texts(folder)) == {"0.txt", "2.txt", "3.txt", "4.txt"} and texts(folder)["0.txt"] == "seen at 50\n"


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "in", 5)
    monkeypatch.setattr(model, "load_captioner", lambda *_: Counted(dies_after=1))
    said = run("caption", "auto", folder, "--model", "m", "--batch-size", 2, check=130).stderr
    assert "the same command goes on" in said and list(texts(folder)) == ["0.txt", "1.txt"]
    again = Counted()
    monkeypatch.setattr(model, "load_captioner", lambda *_: again)
    run("caption", "auto", folder, "--model", "m", "--batch-size", 2)
    assert len(texts(folder)) == 5 and again.batches == [2, 1]


@pytest.mark.usefixtures("counted")
def test_captions_can_go_elsewhere(tmp_path: Path) -> None:
    folder = pictures(pictures(tmp_path / "in", 1) / "sub", 2).parent
    (folder / "0.txt").write_text("mine", encoding="utf-8")
    before = sorted(folder.rglob("*"))
    run("caption", "auto", folder, "--model", "m", "--out", tmp_path / "out")
    assert sorted(folder.rglob("*")) == before
    written = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.txt"))
    assert written == ["0.txt", "sub/0.txt", "sub/1.txt"]
    assert "0 captions written" in run("caption", "auto", folder, "--model", "m", "--out", tmp_path / "out").stdout


@pytest.mark.usefixtures("counted")
def test_images_of_one_stem_have_a_sidecar_each(tmp_path: Path) -> None:
    folder = pictures(pictures(tmp_path / "in", 1), 1, "{}.webp")
    run("caption", "auto", folder, "--model", "m")
    assert list(texts(folder)) == ["0.png.txt", "0.webp.txt"]
    siblings = index_siblings(file.name for file in folder.iterdir())
    for picture in list_pictures(folder).pictures:
        assert read_caption(folder, "", picture.name, siblings, "join").variants == ("seen at 50",)
    (folder / "0.txt").write_text(" ", encoding="utf-8")
    said = run("caption", "auto", folder, "--model", "m", "--overwrite").stdout
    assert "0.png: shares a .txt with another image of its name" in said


def test_a_rehearsal_writes_nothing(tmp_path: Path, counted: Counted) -> None:
    folder = pictures(tmp_path / "in", 4)
    said = run("caption", "auto", folder, "--model", "m", "--dry-run", 2).stdout
    assert "0.png: seen at 50\n1.png: seen at 50\n" in said and "2 captions shown, none written" in said
    assert not texts(folder) and counted.batches == [2]


@pytest.mark.usefixtures("counted")
def test_bad_images_are_rejected_and_listed(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 2)
    (folder / "bad.png").write_text("no image", encoding="utf-8")
    said = run("caption", "auto", folder, "--model", "m").stderr
    assert "bad.png: not an image: a text file" in said and list(texts(folder)) == ["0.txt", "1.txt"]


def test_an_image_that_the_model_cannot_take_does_not_spoil_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictures(tmp_path / "in", 3)
    Image.new("RGB", (1, 1)).save(folder / "1.png")

    def fussy(images: Sequence[Image.Image], _: Sequence[str]) -> list[str]:
        if any(image.width == 1 for image in images):
            raise ValueError("mean must have 1 elements\nand more")
        return ["" if image.width == 2 else "fine" for image in images]

    Image.new("RGB", (2, 2)).save(folder / "2.png")
    monkeypatch.setattr(model, "load_captioner", lambda *_: fussy)
    said = run("caption", "auto", folder, "--model", "m").stderr
    assert "1.png: the model cannot take it: mean must have 1 elements\n" in said
    assert "2.png: the model said nothing about it" in said and texts(folder) == {"0.txt": "fine\n"}
    (folder / "0.png").unlink()
    assert "captioned no image" in run("caption", "auto", folder, "--model", "m", check=2).stderr


def test_too_large_a_batch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> list[str]:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(model, "load_captioner", lambda *_: full)
    said = run("caption", "auto", pictures(tmp_path / "in", 3), "--model", "m", check=2).stderr
    assert "A batch of 3 images does not fit" in said and "--batch-size" in said


# Prompts


def test_prompts_are_filled_with_what_is_known(tmp_path: Path, counted: Counted) -> None:
    folder = pictures(tmp_path / "cats of rome", 2, "a cat_{}.png")
    pictures(folder / "sub", 1, "_{}.png")
    for path, known in (("a cat_0", {"place": "Rome", "year": 2024}), ("a cat_1", {"year": 1999}), ("sub/_0", {})):
        (folder / f"{path}.json").write_text(json.dumps({**known, "list": [1]}), encoding="utf-8")
    run("caption", "auto", folder, "--model", "m", "--prompt", "{{{folder}}} {name}: {caption}?", "--dry-run", 9)
    assert counted.prompts == ["{cats of rome} a cat_0: a cat?", "{cats of rome} a cat_1: a cat?", "{sub} _0: ?"]
    said = run("caption", "auto", folder, "--model", "m", "--prompt", "In {year}").stderr
    assert counted.prompts[3:] == ["In 2024", "In 1999"]
    assert "sub/_0.png: its .json says nothing about {year}, which the prompt asks for" in said


@pytest.mark.parametrize(("prompt", "said"), [("a {colour}", "there is no {colour}"), ("a {", "write a brace")])
def test_unknown_placeholders_are_named_before_a_model_is_loaded(tmp_path: Path, prompt: str, said: str) -> None:
    folder = pictures(tmp_path / "in", 1)
    (folder / "0.json").write_text('{"place": "Rome"}', encoding="utf-8")
    shown = run("caption", "auto", folder, "--model", tmp_path / "nowhere", "--prompt", prompt, check=2).stderr
    assert said in shown and "cannot be loaded" not in shown
    if "colour" in prompt:
        assert "folder, name, caption; from the .json files: place" in shown
