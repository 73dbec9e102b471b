"""What attention is asked: a float mask keeps it from the fast kernels, so there is none but T5's distances."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from everydream.models.load import load
from everydream.models.settings import ModelSettings
from everydream.types import Crop


@pytest.mark.parametrize("name", ["sd1", "flux"])
def test_attention_gets_no_mask(
    name: str, model_folder: Path, flow_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, bool]] = []
    attention, who = torch.nn.functional.scaled_dot_product_attention, ""

    def watched(*inputs: Any, **named: Any) -> torch.Tensor:
        mask = inputs[3] if len(inputs) > 3 else named.get("attn_mask")
        seen.append((who, mask is not None, bool(named.get("is_causal"))))
        return attention(*inputs, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    family = load(ModelSettings(path=str(model_folder if name == "sd1" else flow_folders[name])))
    for part in family.word_parts:
        who = "clip"
        family.modules()[part](torch.zeros(2, 77, dtype=torch.long))
    who = "text"
    conditioning = family.encode_text(["a dog", ""], [Crop((64, 64), 0, 0, (64, 64), False)] * 2)
    who = "denoiser"
    if family.guides_itself:
        conditioning = replace(conditioning, guidance_B=torch.ones(2))
    family.predict(torch.randn(2, 4, 8, 8), torch.tensor([1, 2]), conditioning)
    assert {call for call in seen if call[0] != "text"} == {("clip", False, True), ("denoiser", False, False)}
