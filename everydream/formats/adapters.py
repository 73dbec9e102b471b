"""Low-rank adapters as tensors: their names in files, and the change of weight that they stand for.

    file -> {module: {leaf: tensor}} -> delta of the module's weight

Modules go by our names (part.module), leaves by those of kohya's and LyCORIS's files: `lora_down.weight`,
`lora_up.weight`, `lora_mid.weight` (LoCon's Tucker form), `hada_*` (LoHa), `lokr_*` (LoKr), `alpha`.
LoRA: Hu et al. 2021, arXiv 2106.09685; LoHa: Nam et al. 2022, arXiv 2108.06098; LyCORIS: arXiv 2309.14859.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from everydream.formats.files import StateDict

Adapter = dict[str, StateDict]
"""{module: {leaf: tensor}}."""

# diffusers' names of the two matrices, from its first attention processors to peft.
_DOWN = ("lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_down.weight")
_UP = ("lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_up.weight")
_PROCESSOR = re.compile(r"\.processor\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")


def to_kohya(adapter: Adapter, names: Mapping[str, str]) -> StateDict:
    """Return the tensors under kohya's names; `names`: our module -> theirs."""
    return {f"{names[module]}.{leaf}": tensor for module, leaves in adapter.items() for leaf, tensor in leaves.items()}


def to_diffusers(adapter: Adapter) -> StateDict:
    """Return a LoRA's tensors under diffusers' names.

    alpha / rank is multiplied into the second matrix, since readers without the metadata that diffusers
    writes of late take it for 1.
    """
    out: StateDict = {}
    for module, leaves in adapter.items():
        name = module.replace("text_encoder.", "text_encoder.text_model.", 1)
        out[f"{name}.lora_A.weight"] = leaves["lora_down.weight"]
        out[f"{name}.lora_B.weight"] = leaves["lora_up.weight"] * _scale(leaves)
    return out


def from_file(tensors: StateDict, metadata: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Adapter, list[str]]:
    """Return (adapter, keys that belong to no module of the model); `names`: our module -> kohya's."""
    ours = {theirs: module for module, theirs in names.items()}
    alphas = _alphas(metadata)
    adapter: Adapter = {}
    unknown = []
    for key, tensor in tensors.items():
        name, leaf = key.split(".", 1) if key.startswith("lora_") and "." in key else _split_diffusers(key)
        module = ours.get(name, name)
        if module not in names or not leaf:
            unknown.append(key)
            continue
        leaves = adapter.setdefault(module, {})
        leaves[leaf] = tensor
        part = module.split(".", 1)[0]
        if part in alphas and not key.startswith("lora_"):
            leaves["alpha"] = torch.tensor(alphas[part])
    return adapter, unknown


def _split_diffusers(key: str) -> tuple[str, str]:
    """Return (our module, leaf) of a key in one of diffusers' spellings; ("", "") if it is in none."""
    key = key.replace("text_encoder.text_model.", "text_encoder.", 1)
    if found := _PROCESSOR.search(key):
        target = "to_out.0" if found[1] == "to_out" else found[1]
        return f"{key[: found.start()]}.{target}", f"lora_{found[2]}.weight"
    for leaf, endings in (("lora_down.weight", _DOWN), ("lora_up.weight", _UP)):
        for ending in endings:
            if key.endswith("." + ending):
                return key.removesuffix("." + ending), leaf
    return (key.removesuffix(".alpha"), "alpha") if key.endswith(".alpha") else ("", "")


def _alphas(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Return alpha by part from the metadata that diffusers writes since 0.34."""
    try:
        described = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (TypeError, ValueError):
        return {}
    endings = {key: value for key, value in described.items() if key.endswith(".lora_alpha")}
    return {key.removesuffix(".lora_alpha"): float(value) for key, value in endings.items()}


def rank_of(leaves: StateDict) -> int | None:
    """Return a module's rank; None for a Kronecker product of two full matrices."""
    ranked = ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
    return next((int(leaves[leaf].shape[0]) for leaf in ranked if leaf in leaves), None)


def _scale(leaves: StateDict) -> float:
    rank = rank_of(leaves)
    return float(leaves["alpha"]) / rank if rank is not None and "alpha" in leaves else 1.0


def delta(leaves: StateDict) -> torch.Tensor:
    """Return the change of weight, float32, with the shape of the products: flat where those of convolutions are.

    Raises KeyError for leaves that are no adapter or lack a matrix, RuntimeError for shapes that do not fit together.
    """
    t = {leaf: tensor.float() for leaf, tensor in leaves.items()}
    if "lora_mid.weight" in t:
        up, down = t["lora_up.weight"].flatten(1), t["lora_down.weight"].flatten(1)
        product = torch.einsum("or,rshw,si->oihw", up, t["lora_mid.weight"], down)
    elif "lora_down.weight" in t:
        product = t["lora_up.weight"].flatten(1) @ t["lora_down.weight"].flatten(1)
    elif "hada_w1_a" in t:
        product = _product(t, "hada_w1", "hada_t1") * _product(t, "hada_w2", "hada_t2")
    else:
        first, second = _product(t, "lokr_w1", None), _product(t, "lokr_w2", "lokr_t2")
        product = torch.kron(first.reshape(*first.shape, *[1] * (second.dim() - 2)), second.contiguous())
    return product * _scale(leaves)


def _product(t: StateDict, name: str, core: str | None) -> torch.Tensor:
    """Return a matrix that is stored whole, as a product of two, or in Tucker form around `core` (R, R, H, W)."""
    if name in t:
        return t[name]
    if core is not None and core in t:
        return torch.einsum("rshw,ro,si->oihw", t[core], t[f"{name}_a"], t[f"{name}_b"])
    return t[f"{name}_a"] @ t[f"{name}_b"]
