"""What kohya's scripts train, and at which rates: the whole model, a low-rank network, or new words."""

import math
from collections.abc import Mapping

from everydream.tools.importing.draft import Draft
from everydream.tools.importing.keys import Keys
from everydream.tools.importing.kohya_family import Script
from everydream.tools.importing.kohya_lengths import Lengths

_KINDS = {"lora": "lora", "locon": "lora", "loha": "loha", "lokr": "lokr"}
_TARGETS = {"attn-only": ["attention"], "attn-mlp": ["attention", "feed_forward"]}
_RATE = 2e-6
"""learning_rate where none is given."""


def put_method(keys: Keys, draft: Draft, suits: bool, script: Script) -> None:
    """Set the method and its part; `suits` tells whether the learning rates do."""
    module = keys.text("network_module", None)
    if module is not None:
        _put_network(keys, draft, module)
        _put_rates(keys, draft, "unet_lr", "text_encoder_lr", suits)
    elif keys.given("token_string"):
        _put_words(keys, draft, suits)
    else:
        draft.put("method", "dreambooth" if draft.has_class_images else "full")
        if (keys.given("in_json") or script != "plain") and not keys.flag("train_text_encoder", False):
            draft.put("text_encoder.train", False, "train_text_encoder")
        own = "learning_rate_te" if script == "plain" else "learning_rate_te1"
        _put_rates(keys, draft, "learning_rate", own, suits)
    if script in ("xl", "three encoders") and (module is not None or keys.flag("train_text_encoder", False)):
        _put_second_rate(keys, draft, "text_encoder_lr" if module is not None else None, suits)


def put_stop(keys: Keys, draft: Draft, lengths: Lengths) -> None:
    """Set when the text encoder stops training: by steps there, by epochs here."""
    stop = keys.whole("stop_text_encoder_training", None)
    if stop is None or stop == 0:
        return
    if stop < 0:
        draft.put("text_encoder.train", False, "stop_text_encoder_training")
        draft.entries.pop("text_encoder.lr", None)
    elif lengths.steps_per_epoch is None:
        draft.tell(
            "missing",
            f"stop_text_encoder_training: after {stop} steps, and the images are not there to say how "
            "many epochs that is; set text_encoder.epochs.",
        )
    else:
        epochs = math.ceil(stop / lengths.steps_per_epoch)
        draft.put("text_encoder.epochs", epochs, "stop_text_encoder_training")
        draft.tell("changed", f"stop_text_encoder_training: {stop} steps are about {epochs} epochs here.")


def _put_network(keys: Keys, draft: Draft, module: str) -> None:
    draft.put("method", "lora", "network_module")
    arguments = _arguments(keys)
    is_lycoris = module.startswith("lycoris")
    algorithm = arguments.pop("algo", "lora").lower() if is_lycoris else module.rpartition(".")[2]
    draft.put("lora.kind", _KINDS.get(algorithm, "lora"), "network_args" if is_lycoris else "network_module")
    if algorithm not in _KINDS:
        draft.tell("changed", f"network_module: {module} with {algorithm} is plain LoRA here.")
    rank, alpha = keys.whole("network_dim", 4), keys.number("network_alpha", 1.0)
    draft.put("lora.rank", rank, "network_dim")
    if alpha:  # 0 means the rank, there as here
        draft.put("lora.alpha", alpha, "network_alpha")
    draft.put("lora.dropout", keys.number("network_dropout", 0.0), "network_dropout")
    _put_targets(draft, arguments, rank, alpha or rank, is_lycoris)
    for part, key in (("text_encoder", "network_train_unet_only"), ("unet", "network_train_text_encoder_only")):
        if keys.flag(key, False):
            draft.put(f"{part}.train", False, key)
    for name, value in arguments.items():
        draft.tell("missing", f"network_args: {name}={value}; our adapters have no such argument.")


def _put_targets(draft: Draft, arguments: dict[str, str], rank: int, alpha: float, is_lycoris: bool) -> None:
    """Set which layers get an adapter; convolutions have the rank of the others here."""
    preset, conv_rank = arguments.pop("preset", "full"), arguments.pop("conv_dim", None)
    # Where no alpha is given for convolutions, it is 1 with kohya's own networks, and that of the others with LyCORIS.
    conv_alpha = arguments.pop("conv_alpha", None if is_lycoris or conv_rank is None else "1")
    targets = _TARGETS.get(preset, ["attention", "feed_forward"])
    # LyCORIS takes the convolutions too unless its preset or a rank of 0 says otherwise.
    wanted = conv_rank not in (None, "0") or (is_lycoris and conv_rank is None and preset not in _TARGETS)
    draft.put("lora.targets", [*targets, "convolution"] if wanted else targets, "network_args")
    for name, value, ours in (("conv_dim", conv_rank, rank), ("conv_alpha", conv_alpha, alpha)):
        if wanted and value is not None and value != f"{ours:g}":
            draft.tell("changed", f"network_args: {name}={value} is {ours:g} here, as for all layers.")


def _arguments(keys: Keys) -> dict[str, str]:
    """Return network_args, a list of key=value or a table."""
    given = keys.any("network_args") or []
    if isinstance(given, Mapping):
        return {str(key): str(value) for key, value in given.items()}
    pairs = (argument.partition("=") for argument in keys.texts("network_args"))
    return {key.strip(): value.strip() for key, _, value in pairs}


def _put_rates(keys: Keys, draft: Draft, unet_key: str, text_key: str, suits: bool) -> None:
    """Set the rates of both networks; a part without one has learning_rate, and 0 means that it does not train."""
    common = keys.number("learning_rate", _RATE)
    rates = {
        "unet": (unet_key, keys.number(unet_key, common)),
        "text_encoder": (text_key, _first(keys, text_key, common)),
    }
    for part, (key, rate) in rates.items():
        if f"{part}.train" in draft.entries:
            continue
        if not rate:
            draft.put(f"{part}.train", False, key)
        elif suits:
            draft.put(f"{part}.lr", rate, key if keys.given(key) else "learning_rate")
    if keys.given("learning_rate") and keys.given(text_key) and unet_key != "learning_rate" and keys.given(unet_key):
        draft.tell("idle", "learning_rate")  # both parts have rates of their own


def _put_second_rate(keys: Keys, draft: Draft, listed: str | None, suits: bool) -> None:
    """Set the rate of a second text encoder: of a list, or with a key of its own; without one, it is as the first."""
    if listed is not None and (draft.settings_at("text_encoder.train") is False or not keys.given(listed)):
        return
    rates = keys.any(listed or "learning_rate_te2")
    if listed is None:
        key, rate = "learning_rate_te2", keys.number("learning_rate_te2", keys.number("learning_rate", _RATE))
    elif isinstance(rates, list) and len(rates) > 1 and isinstance(rates[1], int | float):
        key, rate = listed, float(rates[1])
    else:
        return
    draft.put("text_encoder_2.train", bool(rate), key)
    if rate and suits:
        draft.put("text_encoder_2.lr", rate, key)


def _first(keys: Keys, key: str, default: float) -> float:
    """Return a rate that may be a list with one for each text encoder."""
    value = keys.any(key)
    if isinstance(value, list) and value and isinstance(value[0], int | float):
        return float(value[0])
    return keys.number(key, default)


def _put_words(keys: Keys, draft: Draft, suits: bool) -> None:
    draft.put("method", "textual_inversion", "token_string")
    token, init = keys.text("token_string", None), keys.text("init_word", None)
    if init is None:
        draft.tell("changed", "init_word: none, random there; here it starts from the word object.")
    vectors = keys.whole("num_vectors_per_token", 1)
    word = {"token": token, "vectors": vectors, "init": init or "object"}
    draft.put("textual_inversion.words", [word], "token_string, num_vectors_per_token, init_word")
    if suits:
        draft.put("textual_inversion.lr", keys.number("learning_rate", _RATE), "learning_rate")
    for key, template in (
        ("use_object_template", "a photo of {}"),
        ("use_style_template", "a painting in the style of {}"),
    ):
        if keys.flag(key, False):
            _put_template(draft, key, template.format(token))


def _put_template(draft: Draft, key: str, label: str) -> None:
    draft.tell("changed", f"{key}: one of a list of sentences there; here every image is captioned {label!r}.")
    for source in draft.training_sources():
        source.pop("captions", None)
        source["label"] = label
