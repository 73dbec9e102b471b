"""From the tensors of a single file and their configurations to networks, and back."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig

from everydream.formats.files import StateDict, cast_floating
from everydream.models.common import depth, layout, schedules, text_keys, tokenizer_files
from everydream.models.common.additions import own_state
from everydream.models.common.kinds import Config, Kind, Parts


def build_parts(kind: Kind, state: StateDict, configs: Config) -> Parts:
    """Return the networks for single-file tensors and their configurations, weights in float32.

    Raises KeyError or RuntimeError where tensors and configurations do not belong together; the
    loader turns that into a message with the file's name.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(configs["unet"])
        vae = AutoencoderKL.from_config(configs["vae"])
        encoders = {text.part: text.network(CLIPTextConfig(**configs[text.part])) for text in kind.texts}
        further = {depth.PART: depth.empty(configs[depth.PART])} if depth.PART in configs else {}
    _fill(unet, layout.from_single(state, layout.unet_pairs(unet.config), layout.UNET_PREFIX))
    _fill(vae, layout.from_single(state, layout.vae_pairs(vae.config), layout.VAE_PREFIX))
    for network in further.values():
        _fill(network, {k.removeprefix(depth.PREFIX): v for k, v in state.items() if k.startswith(depth.PREFIX)})
    tokenizers = {}
    for text in kind.texts:
        _fill_text(encoders[text.part], text.from_single(state, configs[text.part]))
        files = {name: content.encode() for name, content in configs.get(text.tokenizer, {}).items()}
        if files:
            tokenizer_files.load_tokenizer(files)  # so that an odd one is this file's error
        tokenizers[text.part] = files or tokenizer_files.packaged_files(text.pad_token)
    scheduler = dict(configs["scheduler"])
    schedules.objective_of({**scheduler, schedules.ZERO_SNR: False})
    empty_prompt = configs.get("empty_prompt", kind.empty_prompt)
    networks = {"unet": unet, **encoders, "vae": vae, **further}
    used = single_tensors(kind, networks).keys()
    # A stale EMA copy would be picked up by readers that prefer EMA weights, in place of what was trained.
    extras = {k: v for k, v in state.items() if k not in used and not k.startswith("model_ema.")}
    return Parts(networks, tokenizers, scheduler, empty_prompt, configs.get(depth.EXTRACTOR, {}), extras)


def single_tensors(kind: Kind, networks: Mapping[str, Any]) -> StateDict:
    """Return the networks' own tensors under CompVis' names, a depth estimator's under transformers'."""
    unet, vae = networks["unet"], networks["vae"]
    state = {
        **layout.to_single(own_state(unet), layout.unet_pairs(unet.config), layout.UNET_PREFIX),
        **layout.to_single(vae.state_dict(), layout.vae_pairs(vae.config), layout.VAE_PREFIX),
    }
    for text in kind.texts:
        state |= text.to_single(text_keys.without_level(own_state(networks[text.part])))
    if depth.PART in networks:
        state |= depth.single_tensors(networks[depth.PART])
    return state


def _fill(module: nn.Module, state: StateDict) -> None:
    """Put float32 weights into a module made on the meta device."""
    module.load_state_dict(cast_floating(state, torch.float32), strict=True, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def _fill_text(encoder: Any, state: StateDict) -> None:
    """As `_fill`, whichever level names transformers uses; its position buffer is not saved, so it is made."""
    state = {key: tensor for key, tensor in state.items() if key != "embeddings.position_ids"}
    if hasattr(encoder, "text_model"):
        state = text_keys.with_level(state)
    _fill(encoder, state)
    core = getattr(encoder, "text_model", encoder)
    core.embeddings.position_ids = torch.arange(encoder.config.max_position_embeddings).expand(1, -1)
