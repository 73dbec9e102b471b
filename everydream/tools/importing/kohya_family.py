"""Which of kohya's scripts a TOML is for, which it does not say itself, and what follows for the model's settings."""

import re
from pathlib import Path
from typing import Literal

from everydream.models.settings import is_written_as_folder
from everydream.tools.importing.draft import Draft, find
from everydream.tools.importing.keys import Keys
from everydream.tools.importing.timesteps import put_range

Script = Literal["plain", "xl", "three encoders", "packed"]
_SIGNS: tuple[tuple[Script, str, str], ...] = (
    ("packed", "ae timestep_sampling t5xxl_max_token_length guidance_scale", "flux.?1?"),
    ("three encoders", "clip_g training_shift t5xxl_lr learning_rate_te3", "sd3|stable-diffusion-3"),
    ("xl", "learning_rate_te1 learning_rate_te2 block_lr cache_text_encoder_outputs sdxl", "xl"),
)
"""The script, keys that no earlier one of the list lacks, and what its models' files are called."""
_FOLDERS = {"packed": "models/FLUX.1-dev", "three encoders": "models/stable-diffusion-3-medium"}
_BLOCKS = [
    names.split()
    for names in """
    time_embedding add_embedding
    conv_in
    down_blocks.0.resnets.0
    down_blocks.0.resnets.1
    down_blocks.0.downsamplers
    down_blocks.1.resnets.0 down_blocks.1.attentions.0
    down_blocks.1.resnets.1 down_blocks.1.attentions.1
    down_blocks.1.downsamplers
    down_blocks.2.resnets.0 down_blocks.2.attentions.0
    down_blocks.2.resnets.1 down_blocks.2.attentions.1
    mid_block.resnets.0
    mid_block.attentions.0
    mid_block.resnets.1
    up_blocks.0.resnets.0 up_blocks.0.attentions.0
    up_blocks.0.resnets.1 up_blocks.0.attentions.1
    up_blocks.0.resnets.2 up_blocks.0.attentions.2 up_blocks.0.upsamplers
    up_blocks.1.resnets.0 up_blocks.1.attentions.0
    up_blocks.1.resnets.1 up_blocks.1.attentions.1
    up_blocks.1.resnets.2 up_blocks.1.attentions.2 up_blocks.1.upsamplers
    up_blocks.2.resnets.0
    up_blocks.2.resnets.1
    up_blocks.2.resnets.2
    conv_norm_out conv_out
""".strip().splitlines()
]
"""The 23 blocks of block_lr, as diffusers calls them: embeddings, input_blocks, middle_block, output_blocks, out."""


def script_of(keys: Keys) -> Script:
    """Return the script, told by keys that only it has and by the model's name."""
    model = Path(keys.text("pretrained_model_name_or_path", "")).name
    for script, own, called in _SIGNS:
        if any(keys.given(key) and keys.is_on(key) for key in own.split()) or re.search(called, model, re.IGNORECASE):
            return script
    return "plain"


def put_model(keys: Keys, draft: Draft, script: Script, file: Path) -> None:
    """Set the model section."""
    path = keys.text("pretrained_model_name_or_path", None)
    found = find(path, file) if path else None
    if script in _FOLDERS and path is not None and not is_written_as_folder(str(found or path)):
        draft.tell(
            "missing",
            f"pretrained_model_name_or_path: {path} is no diffusers folder, and a model with a transformer is read "
            "from such a folder only, with its text encoders and VAE in it. Say in model.path where one is.",
        )
        draft.put("model.path", _FOLDERS[script], "a stand-in: say which diffusers folder")
    else:
        draft.put_model(path, "pretrained_model_name_or_path")
    is_v = keys.flag("v_parameterization", False)
    if is_v:
        draft.put("model.prediction", "v", "v_parameterization")
    if script == "xl":
        draft.put("model.empty_prompt", "encode", "as there; zeros, as the model was trained, is auto")
    if keys.flag("zero_terminal_snr", False) and is_v:
        draft.put("model.zero_terminal_snr", True, "zero_terminal_snr")
    elif keys.given("zero_terminal_snr") and keys.is_on("zero_terminal_snr"):
        draft.tell(
            "missing",
            "zero_terminal_snr: without v_parameterization; at pure noise only a model that predicts v learns.",
        )


def put_reading(keys: Keys, draft: Draft, script: Script) -> None:
    """Set how captions are read: clip_skip and length."""
    clip_skip, length = keys.whole("clip_skip", None), keys.whole("max_token_length", 75)
    if clip_skip is not None and script == "plain":
        draft.put("text_encoder.clip_skip", max(0, clip_skip - 1), "clip_skip, which counts from 1 there")
    elif clip_skip is not None:
        draft.tell("needless", "clip_skip: not used for such models, there as here.")
    if script in _FOLDERS:
        if keys.given("max_token_length"):
            draft.tell("needless", "max_token_length: T5 reads long captions as they are.")
    elif length > 75:
        draft.put("text_encoder.chunks", -(-length // 75), "max_token_length")
        draft.tell(
            "changed",
            "max_token_length: each portion of 75 tokens keeps its own begin and end here; there those in between are "
            "taken out after encoding.",
        )


def put_timesteps(keys: Keys, draft: Draft, script: Script) -> None:
    """Set at which noise levels images are trained."""
    if script not in _FOLDERS:
        put_range(keys, draft, "min_timestep", "max_timestep")
        return
    scheme = keys.text("weighting_scheme", "none")
    mean, std = keys.number("logit_mean", 0.0), keys.number("logit_std", 1.0)
    how = keys.text("timestep_sampling", "sigma") if script == "packed" else "levels"
    scale, shift = keys.number("sigmoid_scale", 1.0), keys.number("discrete_flow_shift", 3.0)
    trained = keys.number("training_shift", 1.0)
    is_normal = scheme == "logit_normal" if how in ("sigma", "levels") else how != "uniform"
    # The scheduler's timesteps fall from noise to clean, so a mean over their places has the opposite sign.
    centre, width = {"sigma": (-mean, std), "levels": (mean, std)}.get(how, (0.0, scale))
    draft.put("timesteps.law", "logit_normal" if is_normal else "uniform", "timestep_sampling, weighting_scheme")
    if is_normal:
        draft.put("timesteps.mean", centre + 0.0, "logit_mean")
        draft.put("timesteps.std", width, "logit_std, sigmoid_scale")
    shifts = {"sigma": shift, "shift": shift, "levels": trained}
    if how != "flux_shift":  # which is the model's own
        draft.put("timesteps.shift", shifts.get(how, 1.0), "discrete_flow_shift, training_shift")
    if scheme == "mode":
        draft.tell("missing", "weighting_scheme: mode; noise levels are uniform or logit-normal.")
    _tell_weights(keys, draft, script, scheme)


def _tell_weights(keys: Keys, draft: Draft, script: Script, scheme: str) -> None:
    """Tell what differs of the loss: theirs is of the image that a prediction implies, ours of the flow."""
    kind = keys.text("model_prediction_type", "sigma_scaled")
    if kind == "additive":
        draft.tell("missing", "model_prediction_type: additive; the transformer predicts the flow.")
    elif kind != "raw" and scheme != "sigma_sqrt":  # sigma_sqrt divides by what the other multiplies with
        weights = "2 / (pi (1 - 2 sigma + 2 sigma^2)) times " if scheme == "cosmap" else ""
        draft.tell(
            "changed",
            f"model_prediction_type, weighting_scheme: errors count {weights}sigma squared as much there, so noisy "
            "levels count more; here all count alike, which is raw or sigma_sqrt there.",
        )
    if script == "packed" and keys.number("guidance_scale", 3.5) != 1.0:
        draft.tell("changed", f"guidance_scale: {keys.number('guidance_scale', 3.5):g}; training says 1 here.")


def put_block_rates(keys: Keys, draft: Draft) -> None:
    """Set block_lr's 23 rates as factors on the UNet's."""
    given = keys.any("block_lr")
    if given is None:
        return
    texts = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    try:
        rates = [float(text) for text in texts]
    except (TypeError, ValueError):
        rates = []
    if len(rates) != len(_BLOCKS) or min(rates) < 0 or max(rates) == 0:
        keys.problem("block_lr", f"should be {len(_BLOCKS)} rates with a comma between them (it is {given!r})")
        return
    if draft.settings_at("optimizer.name") == "prodigy":
        draft.tell("missing", "block_lr: prodigy finds one rate for all parts.")
        return
    peak = max(rates)
    draft.put("unet.lr", peak, "the largest of block_lr")
    factors = {name: rate / peak for names, rate in zip(_BLOCKS, rates, strict=True) for name in names if rate != peak}
    if factors:
        draft.put("unet.block_lr", factors, "block_lr, as factors on unet.lr")
