"""Low-rank adapters as tensors: their names in files, and the change of weight that they stand for.

    file -> {module: {leaf: tensor}} -> delta of the module's weight

Modules go by our names (part.module), leaves by those of kohya's and LyCORIS's files: `lora_down.weight`,
`lora_up.weight`, `lora_mid.weight` (LoCon's Tucker form), `hada_*` (LoHa), `lokr_*` (LoKr), `alpha`.
LoRA: Hu et al. 2021, arXiv 2106.09685; LoHa: Nam et al. 2022, arXiv 2108.06098; LyCORIS: arXiv 2309.14859.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from everydream.formats.files import StateDict

Adapter = dict[str, StateDict]
"""{module: {leaf: tensor}}."""

# diffusers' names of the two matrices, from its first attention processors to peft.
_DOWN = ("lora_A.weight", "lora.down.weight", "lora_linear_layer.down.weight", "lora_down.weight")
_UP = ("lora_B.weight", "lora.up.weight", "lora_linear_layer.up.weight", "lora_up.weight")
_PROCESSOR = re.compile(r"(?:\.processor)?\.(to_q|to_k|to_v|to_out)_lora\.(down|up)\.weight$")
_UNET_ENDS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_TEXT_ENDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_CLIP = re.compile(r"^(text_encoder(?:_2)?\.)")
LEAVES = {
    "alpha", "lora_down.weight", "lora_up.weight", "lora_mid.weight",
    *(f"hada_{leaf}" for leaf in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{leaf}" for leaf in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
}  # fmt: skip
"""All that `delta` knows."""


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
        name = _CLIP.sub(r"\1text_model.", module)
        out[f"{name}.lora_A.weight"] = leaves["lora_down.weight"]
        out[f"{name}.lora_B.weight"] = leaves["lora_up.weight"] * _scale(leaves)
    return out


def from_file(tensors: StateDict, metadata: Mapping[str, Any], names: Mapping[str, str]) -> tuple[Adapter, list[str]]:
    """Return (adapter, keys that belong to no module of the model, or are of no kind that is known).

    `names`: our module -> kohya's. Files with diffusers' module names in kohya's spelling are about as well.
    """
    ours = {f"lora_{module}".replace(".", "_"): module for module in names}
    ours |= {theirs: module for module, theirs in names.items()}
    adapter: Adapter = {}
    unknown, by_diffusers = [], set()
    for key, tensor in tensors.items():
        is_kohya = key.startswith("lora_") and "." in key
        name, leaf = key.split(".", 1) if is_kohya else _split_diffusers(key)
        module = ours.get(name) if is_kohya else next((m for m in _spelled_out(name) if m in names), None)
        if module is None or leaf not in LEAVES:
            unknown.append(key)
            continue
        adapter.setdefault(module, {})[leaf] = tensor
        if not is_kohya:
            by_diffusers.add(module)
    described = _described(metadata)
    for module in by_diffusers:
        alpha = _described_alpha(described, module, rank_of(adapter[module]))
        if alpha is not None:
            adapter[module].setdefault("alpha", torch.tensor(alpha))
    return adapter, unknown


def _spelled_out(name: str) -> Iterator[str]:
    """Yield what a name in diffusers' or peft's spelling may mean; some files leave the part out."""
    name = name.removeprefix("base_model.model.").replace("text_model.", "", 1)
    yield name
    yield from (f"{part}.{name}" for part in ("unet", "transformer", "text_encoder"))


def _split_diffusers(key: str) -> tuple[str, str]:
    """Return (module, leaf) of a key in one of diffusers' spellings; ("", "") if it is in none."""
    if found := _PROCESSOR.search(key):
        ends = _TEXT_ENDS if ".self_attn." in key else _UNET_ENDS
        return f"{key[: found.start()]}.{ends[found[1]]}", f"lora_{found[2]}.weight"
    for leaf, endings in (("lora_down.weight", _DOWN), ("lora_up.weight", _UP)):
        for ending in endings:
            if key.endswith("." + ending):
                return key.removesuffix("." + ending), leaf
    return (key.removesuffix(".alpha"), "alpha") if key.endswith(".alpha") else ("", "")


def _described(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what diffusers' writer says of an adapter since 0.34, {} for other files."""
    try:
        described = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (TypeError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


def _described_alpha(described: Mapping[str, Any], module: str, rank: int | None) -> float | None:
    """Return a module's alpha by that description; rank-stabilised LoRA divides by the root of the rank."""
    part, _, name = module.partition(".")
    by_name = described.get(f"{part}.alpha_pattern")
    pairs = by_name.items() if isinstance(by_name, dict) else ()
    fitting = [value for ending, value in pairs if f".{name}".endswith(f".{ending}")]
    alpha = next(iter(fitting), described.get(f"{part}.lora_alpha"))
    if not isinstance(alpha, int | float) or rank is None:
        return None
    return float(alpha) * (math.sqrt(rank) if described.get(f"{part}.use_rslora") else 1.0)


def rank_of(leaves: StateDict) -> int | None:
    """Return a module's rank; None for a Kronecker product of two full matrices."""
    ranked = ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
    return next((int(leaves[leaf].shape[0]) for leaf in ranked if leaf in leaves), None)


def _scale(leaves: StateDict) -> float:
    rank = rank_of(leaves)
    return float(leaves["alpha"]) / rank if rank is not None and "alpha" in leaves else 1.0


def delta(leaves: StateDict, shape: Sequence[int]) -> torch.Tensor:
    """Return the change of a weight of this shape, float32. Raises ValueError for matrices that do not give one."""
    try:
        product = _delta(leaves)
        if product.flatten(1).shape != torch.empty(tuple(shape), device="meta").flatten(1).shape:
            raise ValueError(f"they give a change of {tuple(product.shape)}")
        return product.reshape(tuple(shape))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError, TypeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _delta(leaves: StateDict) -> torch.Tensor:
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
