"""EveryDream2trainer: its train.json and the optimizer.json that belongs to it as a draft of ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from everydream.errors import ConfigError
from everydream.tools.importing.draft import Draft, find
from everydream.tools.importing.everydream2_tables import MISSING, NEEDLESS, NEUTRAL, OPTIMIZER_MISSING
from everydream.tools.importing.keys import Keys
from everydream.tools.importing.optimizers import put_arguments, put_optimizer, put_schedule, settle_rates
from everydream.tools.importing.reading import read_json
from everydream.tools.importing.timesteps import put_range
from everydream.tools.importing.validating import put_everydream2_validation

_OPTIMIZER_FILE = "optimizer.json"
_ARGUMENTS = ("d0", "d_coef", "decouple", "growth_rate", "momentum", "safeguard_warmup", "use_bias_correction")


def everydream2(raw: dict[str, Any], file: Path) -> Draft:
    """Return the draft of a train.json, whose defaults count for missing keys.

    Raises ConfigError where the optimizer's file that it names is not there or cannot be read.
    """
    draft = Draft("EveryDream2trainer")
    keys = Keys(raw, draft)
    draft.put_project(keys.text("project_name", "myproj"), "project_name")
    _put_seed(keys, draft)
    _put_model(keys, draft)
    draft.sources += _sources(keys.any("data_root") or "input", keys)
    _put_data(keys, draft)
    _put_training(keys, draft)
    _put_optimizer(keys, draft, _optimizer_of(keys, file, draft))
    _put_outputs(keys, draft, file)
    put_everydream2_validation(keys, draft, file)
    keys.tell_rest(NEEDLESS, MISSING, NEUTRAL)
    return draft


def _put_seed(keys: Keys, draft: Draft) -> None:
    seed = keys.whole("seed", 555)
    if seed < 0:
        draft.tell("changed", f"seed: {seed}, random there; here 555, so that the run can be repeated.")
    draft.put("seed", seed if seed >= 0 else 555, "seed")


def _put_model(keys: Keys, draft: Draft) -> None:
    path = keys.text("resume_ckpt", "sd_v1-5_vae.ckpt")
    if path == "findlast":
        draft.tell("missing", "resume_ckpt: findlast, the newest model in its logs; say which file that is.")
    draft.put_model(path if path != "findlast" else None, "resume_ckpt")


def _sources(root: Any, keys: Keys) -> Iterator[dict[str, Any]]:
    """Yield the sources of a data_root: a folder, a JSON list of images, or several of them."""
    if isinstance(root, list):
        for item in root:
            yield from _sources(item, keys)
    elif isinstance(root, dict) and root.get("resolver") == "multi":
        yield from _sources(root.get("resolvers"), keys)
    elif isinstance(root, dict):
        yield from _sources(root.get("path"), keys)
    elif isinstance(root, str):
        yield {"path": root, **({"captions": "manifest"} if root.lower().endswith(".json") else {})}
    else:
        keys.problem("data_root", f"should be a folder of images (it is {root!r})")


def _put_data(keys: Keys, draft: Draft) -> None:
    draft.put("data.resolution", keys.whole("resolution", 512), "resolution")
    draft.put("data.flip_p", keys.number("flip_p", 0.0), "flip_p")
    draft.put("captions.dropout", keys.number("cond_dropout", 0.04), "cond_dropout")
    draft.put("captions.shuffle_tags", keys.flag("shuffle_tags", False), "shuffle_tags")
    draft.put("captions.keep_tags", keys.whole("keep_tags", 0), "keep_tags")


def _put_training(keys: Keys, draft: Draft) -> None:
    draft.put("train.epochs", keys.whole("max_epochs", 300), "max_epochs")
    draft.put("train.batch_size", keys.whole("batch_size", 2), "batch_size")
    draft.put("train.gradient_accumulation", keys.whole("grad_accum", 1), "grad_accum")
    draft.put("train.precision", "fp32" if keys.flag("disable_amp", False) else "fp16", "disable_amp")
    if keys.given("gradient_checkpointing"):
        draft.put("train.gradient_checkpointing", keys.flag("gradient_checkpointing", True), "gradient_checkpointing")
    draft.put("train.max_grad_norm", keys.number("clip_grad_norm", None), "clip_grad_norm")
    for part, key in (("unet", "disable_unet_training"), ("text_encoder", "disable_textenc_training")):
        draft.put(f"{part}.train", not keys.flag(key, False), key)
    draft.put("text_encoder.clip_skip", max(0, keys.whole("clip_skip", 0) - 1), "clip_skip, which counts from 1 there")
    draft.put("loss.min_snr_gamma", keys.number("min_snr_gamma", None), "min_snr_gamma")
    noise = keys.number("zero_frequency_noise_ratio", 0.02)
    draft.put("loss.offset_noise", max(0.0, noise), "zero_frequency_noise_ratio")
    if keys.text("loss_type", "mse_huber") != "mse":
        draft.tell(
            "missing",
            f"loss_type: {keys.text('loss_type', 'mse_huber')}; the loss is the mean squared error. "
            "loss.kind: huber is another form of it: pseudo-Huber, with a bound that moves with the noise.",
        )
    _put_noise_levels(keys, draft)
    _put_ema(keys, draft)


def _put_noise_levels(keys: Keys, draft: Draft) -> None:
    discount = keys.number("pyramid_noise_discount", None)
    if discount:
        draft.put("loss.pyramid_noise", discount, "pyramid_noise_discount")
        draft.tell("changed", "pyramid_noise_discount: grains grow coarser faster there.")
    put_range(keys, draft, "timestep_start", "timestep_end")
    if keys.flag("enable_zero_terminal_snr", False):
        draft.put("model.zero_terminal_snr", True, "enable_zero_terminal_snr")
        draft.tell("changed", "enable_zero_terminal_snr: a model that predicts the noise is refused with it here.")
    if keys.given("attn_type"):
        kinds = {"xformers": "xformers", "slice": "sliced"}
        draft.put("memory.attention", kinds.get(keys.text("attn_type", "sdp"), "sdpa"), "attn_type")


def _put_ema(keys: Keys, draft: Draft) -> None:
    if keys.given("ema_strength_target") or not keys.given("ema_decay_rate"):
        return  # told with what has no counterpart
    decay, interval = keys.number("ema_decay_rate", 0.0), keys.whole("ema_update_interval", 500)
    if not 0 < decay < 1 or interval < 1:
        keys.problem("ema_decay_rate", f"should lie between 0 and 1, every so many steps (it is {decay:g}, {interval})")
        return
    each = decay ** (1 / interval)
    draft.put("ema.decay", each, "ema_decay_rate")
    if interval > 1:
        draft.tell("changed", f"ema_decay_rate: {decay:g} every {interval} steps is {each:.6g} every step here.")


def _optimizer_of(keys: Keys, file: Path, draft: Draft) -> Keys:
    """Return the keys of the optimizer's file: the named one, else the one beside train.json, else none at all."""
    name = keys.text("optimizer_config", None)
    path = find(name or _OPTIMIZER_FILE, file)
    if path is None and name is not None:
        raise ConfigError(
            f"{file}: optimizer_config is {name}, and there is no such file here or in {file.absolute().parent}. It "
            "holds the learning rates; put it there, or take the key out to import with the default ones."
        )
    if path is None:
        draft.tell(
            "changed",
            f"{_OPTIMIZER_FILE}: not beside {file.name}, so its defaults count: learning rate 1e-6, if "
            "lr says no other.",
        )
        return Keys({}, draft)
    return Keys(read_json(path), draft, f"{path.name}: ")


def _put_optimizer(keys: Keys, draft: Draft, optimizer: Keys) -> None:
    base, text = optimizer.table("base"), optimizer.table("text_encoder_overrides")
    suits = put_optimizer(draft, "optimizer", base.text("optimizer", "adamw8bit"))
    _put_rates(keys, draft, optimizer, base, text, suits)
    settle_rates(draft, "optimizer")
    own = {"betas": base.any("betas"), "eps": base.number("epsilon", None)}
    own |= {"weight_decay": base.number("weight_decay", 0.01)}
    own |= {name: base.any(name) for name in _ARGUMENTS if base.given(name)}
    put_arguments(draft, "optimizer.json", [f"{name}={value}" for name, value in own.items() if value is not None])
    _put_own_optimizer(keys, draft, text)
    shape = base.text("lr_scheduler", keys.text("lr_scheduler", "constant"))
    _put_lengths(keys, draft, base, put_schedule(draft, "lr_scheduler", shape))
    _put_freezing(optimizer.table("text_encoder_freezing"), draft)
    base.tell_rest({}, OPTIMIZER_MISSING, {})
    text.tell_rest({}, OPTIMIZER_MISSING, optimizer.any("base") or {})  # what base says too asks for nothing
    optimizer.tell_rest(NEEDLESS, OPTIMIZER_MISSING, {})


def _put_own_optimizer(keys: Keys, draft: Draft, text: Keys) -> None:
    """Set what of the optimizer the text encoder has by itself."""
    if keys.flag("disable_textenc_training", False):
        return
    own = {"betas": text.any("betas"), "eps": text.number("epsilon", None)}
    own |= {"weight_decay": text.number("weight_decay", None)}
    given = {name: value for name, value in own.items() if value is not None}
    differing = {name: value for name, value in given.items() if value != draft.settings_at(f"optimizer.{name}")}
    if differing:
        draft.put("text_encoder.optimizer", differing, "text_encoder_overrides")
    elif given:
        draft.tell("idle", "text_encoder_overrides")


def _put_rates(keys: Keys, draft: Draft, optimizer: Keys, base: Keys, text: Keys, suits: bool) -> None:
    """Set both rates: `lr` of train.json goes before all, as there; the text encoder's falls back on the UNet's."""
    name = "text_encoder_lr_scale"
    scale = text.number(name, base.number(name, optimizer.number(name, 1.0)))
    one, unet, own = keys.number("lr", None), base.number("lr", None), text.number("lr", None)
    unet = one or unet or 1e-6
    if suits:
        draft.put("unet.lr", unet, "lr")
        said = "lr of train.json, which goes before all there" if one else "lr of text_encoder_overrides, else the same"
        draft.put("text_encoder.lr", one or own or unet * scale, said)


def _put_lengths(keys: Keys, draft: Draft, base: Keys, shape: str) -> None:
    warmup = base.whole("lr_warmup_steps", None) or keys.whole("lr_warmup_steps", None)
    decay = base.whole("lr_decay_steps", None) or keys.whole("lr_decay_steps", None)
    if shape == "constant":  # neither has an effect there
        for key, steps in (("lr_warmup_steps", warmup), ("lr_decay_steps", decay)):
            if steps is not None:
                draft.tell("idle", key)
        return
    if warmup:
        draft.put("lr_schedule.warmup_steps", warmup, "lr_warmup_steps")
    else:
        draft.tell("changed", "lr_warmup_steps: not set, so about 3 % of all steps there; here none.")
    length = f"{decay} steps" if decay else "not set, so one and a half times the run, and it ends at a quarter"
    draft.tell("changed", f"lr_decay_steps: {length}; here the rate falls to 0 over the run.")


def _put_freezing(freezing: Keys, draft: Draft) -> None:
    last = freezing.whole("unfreeze_last_n_layers", None)
    front = freezing.whole("freeze_front_n_layers", None)
    if last is None and front is not None and front < 0:
        last = -front
    elif last is None and front:
        last = max(1, 12 - front)
        draft.tell(
            "changed", f"freeze_front_n_layers: {front} of SD 1's 12 layers; with SD 2, which has 23, say 23 less."
        )
    if last is not None:
        draft.put("text_encoder.train_last_layers", last, "unfreeze_last_n_layers")
    if freezing.flag("freeze_embeddings", False):
        draft.put("text_encoder.train_embeddings", False, "freeze_embeddings")
    freezing.tell_rest({}, OPTIMIZER_MISSING, {})


def _put_outputs(keys: Keys, draft: Draft, file: Path) -> None:
    epochs, minutes = keys.whole("save_every_n_epochs", None), keys.number("ckpt_every_n_minutes", None)
    if epochs is None and minutes is None:
        minutes = 20.0
    draft.put("checkpoints.every_epochs", epochs if epochs and epochs > 0 else None, "save_every_n_epochs")
    draft.put("checkpoints.every_minutes", minutes if minutes and minutes >= 1 else None, "ckpt_every_n_minutes")
    draft.put("checkpoints.from_epoch", keys.whole("save_ckpts_from_n_epochs", 0), "save_ckpts_from_n_epochs")
    draft.put("checkpoints.keep", None, "all, as there")
    only_folder = keys.flag("no_save_ckpt", False)
    draft.put("checkpoints.formats", ["diffusers"] if only_folder else ["diffusers", "safetensors"], "no_save_ckpt")
    draft.put("checkpoints.dtype", "fp32" if keys.flag("save_full_precision", False) else "fp16", "save_full_precision")
    draft.put("samples.every_steps", keys.whole("sample_steps", 250), "sample_steps")
    prompts = keys.text("sample_prompts", None)
    if prompts is not None and prompts.lower().endswith(".json"):
        draft.tell(
            "missing", f"sample_prompts: {prompts}; write its prompts in a text file, one a line, for samples.prompts."
        )
    elif prompts is not None and find(prompts, file) is not None:
        draft.put("samples.prompts", prompts, "sample_prompts")
    elif prompts is not None:
        draft.tell("missing", f"sample_prompts: {prompts} is not there; samples are of a few captions of the images.")
