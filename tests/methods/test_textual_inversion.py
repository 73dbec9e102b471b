"""New words: only their vectors change, and their files open wherever such files are opened."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from parity.test_step_against_diffusers import make_batch
from safetensors.torch import save_file
from teaching import attach, make_method
from torch import nn

from everydream.errors import ConfigError, FormatError
from everydream.formats.embeddings import read_embedding
from everydream.methods.settings import TextualInversionSettings, WordSettings
from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.seeding import torch_generator
from everydream.step import LossSettings, training_step

CAPTIONS = ["a photo of <rex> in the snow", "<Kim> and <rex>"]


def fresh(folder: Path) -> Any:
    return load(ModelSettings(path=str(folder)))


def words(**changes: Any) -> TextualInversionSettings:
    rex = WordSettings(token="<rex>", vectors=3, init="small dog")
    return TextualInversionSettings(words=[rex, WordSettings(token="<Kim>", init="woman")], **changes)


def test_words_start_from_words_and_only_they_change(model_folder: Path) -> None:
    family = fresh(model_folder)
    before = {key: tensor.clone() for key, tensor in family.single_file().items()}
    small, dog, woman = family.word_vectors("small dog woman")
    (group,) = attach(family, "textual_inversion", CAPTIONS, textual_inversion=words())
    learned = family.learned_words()
    assert torch.equal(learned["<rex>"], torch.stack([small, small, dog]))
    assert torch.equal(learned["<Kim>"], woman[None])
    assert [p.shape for p in group.parameters] == [(4, 64)] and group.lr == 5e-3
    assert [p for m in family.modules().values() for p in m.parameters() if p.requires_grad] == group.parameters

    optimizer = torch.optim.AdamW(group.parameters, lr=0.1, weight_decay=0.5)
    batch = make_batch([0, 1])
    batch.captions[:] = CAPTIONS
    training_step(batch, family, LossSettings(), 2).loss.backward()
    optimizer.step()
    after = family.single_file()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert all(not torch.equal(learned[word], family.learned_words()[word]) for word in learned)


def test_one_token_for_each_vector_in_any_case_and_not_inside_words(model_folder: Path) -> None:
    family = fresh(model_folder)
    known = family.modules()["text_encoder"].config.vocab_size
    settings = TextualInversionSettings(words=[WordSettings(token="rexo", vectors=2, init="dog")])
    attach(family, "textual_inversion", ["rexo"], textual_inversion=settings)

    def new_tokens(caption: str) -> list[int]:
        return [int(i) - known for i in family.clips["text_encoder"].tokenize([caption])[0] if i >= known]

    assert new_tokens("a photo of rexo, in the snow") == [0, 1]
    assert new_tokens("Rexo and rexo's house") == [0, 1, 0, 1]
    assert new_tokens("rexos in trexo") == []
    plain = fresh(model_folder)
    with torch.no_grad():
        expected = plain.encode_text(["rexos in a park"], []).tokens_BLD
        torch.testing.assert_close(family.encode_text(["rexos in a park"], []).tokens_BLD, expected, rtol=0, atol=0)


def test_odd_words(model_folder: Path) -> None:
    """Letters whose small forms are others, words inside words, signs that patterns are made of, a padded embedding."""
    family = fresh(model_folder)
    family.modules()["text_encoder"].resize_token_embeddings(49472, mean_resizing=False)
    known = len(family.clips["text_encoder"].tokenizer)
    words = ["<dino>", "<stone>", "a.b*c", "rexo", "rexo-two"]
    settings = TextualInversionSettings(words=[WordSettings(token=word, init="dog") for word in words])
    (group,) = attach(family, "textual_inversion", [" ".join(words)], textual_inversion=settings)

    def new_tokens(caption: str) -> list[int]:
        return [int(i) - known for i in family.clips["text_encoder"].tokenize([caption])[0] if i >= known]

    assert new_tokens("<d\u0130no> <\u017ftone>") == [0, 1]
    assert new_tokens("a.b*c, aXb*c; rexo-two rexo(rexo) Rexo's") == [2, 4, 3, 3, 3]
    before = family.encode_text(["a rexo"], []).tokens_BLD
    group.parameters[0].data[3] += 1.0
    assert not torch.allclose(before, family.encode_text(["a rexo"], []).tokens_BLD)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [("<rex>", "<rex>", "reads them alike"), ("<Rex>", "<rex>", "reads them alike"), ("<rex>", "rex|", "one name")],
)
def test_twin_words(first: str, second: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"cannot both be learned; .*{why}"):
        TextualInversionSettings(words=[WordSettings(token=token, init="dog") for token in (first, second)])


def test_vectors_stay_within_the_vocabularys_norms(model_folder: Path) -> None:
    family = fresh(model_folder)
    longest = family.modules()["text_encoder"].get_input_embeddings().weight.norm(dim=-1).max()
    (group,) = attach(family, "textual_inversion", CAPTIONS, textual_inversion=words())
    group.parameters[0].data *= torch.tensor([0.5, 1.0, 50.0, 1.0])[:, None]
    norms = torch.cat(list(family.learned_words().values())).norm(dim=-1)
    assert norms[2] == pytest.approx(float(longest.detach()), rel=1e-5)
    raw = group.parameters[0].detach().norm(dim=-1)
    torch.testing.assert_close(norms[:2], raw[:2])
    free = fresh(model_folder)
    (group,) = attach(free, "textual_inversion", CAPTIONS, textual_inversion=words(limit_norm=False))
    group.parameters[0].data *= 50
    assert torch.cat(list(free.learned_words().values())).norm(dim=-1).min() > 5 * longest.detach()


def test_words_that_cannot_be_learned(model_folder: Path) -> None:
    settings = TextualInversionSettings(
        words=[WordSettings(token="dog", init="dog"), WordSettings(token="<rex>", init="dog")]
    )
    with pytest.raises(ConfigError) as told:
        attach(fresh(model_folder), "textual_inversion", ["a dog"], textual_inversion=settings)
    first, second = str(told.value).splitlines()
    assert first.startswith("textual_inversion.words.0.token: 'dog' is in the model's vocabulary already")
    assert second.startswith("textual_inversion.words.1.token: none of the 1 captions holds '<rex>'")


@pytest.mark.parametrize("format_name", ["safetensors", "pt"])
def test_diffusers_reads_it_and_so_do_we(model_folder: Path, tmp_path: Path, format_name: str) -> None:
    family = fresh(model_folder)
    method = make_method("textual_inversion", textual_inversion=words())
    method.attach(family, 0, CAPTIONS)[0].parameters[0].data += torch.randn(4, 64, generator=torch_generator(3)) * 0.01
    paths = method.export(family, tmp_path / "word", format_name, torch.float32)
    assert [path.name for path in paths] == [f"word-rex.{format_name}", f"word-Kim.{format_name}"]
    pipeline = StableDiffusionPipeline.from_pretrained(model_folder, local_files_only=True, safety_checker=None)
    for path, word in zip(paths, ("<rex>", "<Kim>"), strict=True):
        pipeline.load_textual_inversion(path.parent, weight_name=path.name, token=word)
        assert torch.equal(read_embedding(path)[word], family.learned_words()[word])
    with torch.no_grad():
        theirs = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)[0]
        torch.testing.assert_close(family.encode_text(CAPTIONS, []).tokens_BLD, theirs, atol=1e-6, rtol=1e-6)
        loaded = fresh(model_folder)
        loaded.learn_words({word: read_embedding(p)[word] for p, word in zip(paths, ("<rex>", "<Kim>"), strict=True)})
        torch.testing.assert_close(loaded.encode_text(CAPTIONS, []).tokens_BLD, theirs, atol=1e-6, rtol=1e-6)


def test_all_forms_of_files_are_read(tmp_path: Path) -> None:
    rows = torch.randn(2, 64, generator=torch_generator(1))
    torch.save({"<a>": rows[0]}, tmp_path / "learned_embeds.bin")
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "b"}, tmp_path / "webui.pt")
    original = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": nn.ParameterDict({"*": nn.Parameter(rows)}),
    }
    torch.save(original, tmp_path / "rinongal.pt")
    save_file({"emb_params": rows}, tmp_path / "kohya.safetensors")
    expected = {"learned_embeds.bin": "<a>", "webui.pt": "b", "rinongal.pt": "rinongal", "kohya.safetensors": "kohya"}
    for name, word in expected.items():
        found = read_embedding(tmp_path / name)
        assert found.keys() == {word} and torch.equal(found[word], rows[:1] if word == "<a>" else rows)
        assert not found[word].requires_grad


def test_files_that_are_no_embedding(tmp_path: Path) -> None:
    save_file({"clip_g": torch.zeros(1, 1280), "clip_l": torch.zeros(1, 768)}, tmp_path / "sdxl.safetensors")
    with pytest.raises(FormatError, match="for SDXL"):
        read_embedding(tmp_path / "sdxl.safetensors")
    torch.save({"weights": [1, 2]}, tmp_path / "other.pt")
    with pytest.raises(FormatError, match=r"other.pt is no textual-inversion embedding: it holds weights"):
        read_embedding(tmp_path / "other.pt")
    with pytest.raises(FormatError, match="There is no embedding file at"):
        read_embedding(tmp_path / "none.pt")
