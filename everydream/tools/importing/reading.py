"""A file of another trainer -> whose it is, and its keys. Told by what the file holds, never by its name."""

import json
import re
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from everydream.errors import ConfigError
from everydream.tools.importing.flags import parse_flags

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Trainer = Literal["joepenna", "everydream2", "kohya"]
_SIGNATURES: dict[Trainer, frozenset[str]] = {
    "joepenna": frozenset({
        "training_images_folder_path", "regularization_images_folder_path", "max_training_steps", "class_word",
        "token_only", "flip_percent", "project_config_filename", "save_every_x_steps", "token", "schema",
    }),
    "everydream2": frozenset({
        "data_root", "resume_ckpt", "max_epochs", "cond_dropout", "optimizer_config", "save_every_n_epochs",
        "ckpt_every_n_minutes", "disable_textenc_training", "disable_amp", "sample_steps", "grad_accum",
    }),
    "kohya": frozenset({
        "pretrained_model_name_or_path", "train_data_dir", "dataset_config", "in_json", "network_module", "output_name",
        "train_batch_size", "max_train_steps", "max_train_epochs", "datasets", "mixed_precision", "optimizer_type",
        "save_every_n_epochs", "token_string", "unet_lr", "network_dim",
    }),
}  # fmt: skip
"""Keys that tell whose a file is: the trainer with the most of them."""
KNOWN = (
    "Known are JoePenna's JSON config and command line, EveryDream2trainer's train.json, and kohya's TOML (of a run "
    "or of a data set)."
)


class Found(NamedTuple):
    """What a file turned out to be."""

    trainer: Trainer
    raw: dict[str, Any]
    """Its keys; kohya's sections, which only group, are gone."""


def read(path: Path) -> Found:
    """Read a file. Raises ConfigError if it cannot be read, is broken, or is none of the known formats."""
    raw = parse(path)
    if "base" in raw and ("text_encoder_overrides" in raw or "text_encoder_freezing" in raw):
        raise ConfigError(
            f"{path} is EveryDream2trainer's optimizer.json, a part of its settings. Import its train.json; the "
            "optimizer's file is found by the key optimizer_config, or beside it."
        )
    flat = _without_sections(raw)
    scores = {trainer: len(keys & flat.keys()) for trainer, keys in _SIGNATURES.items()}
    trainer = max(scores, key=lambda name: scores[name])
    if not scores[trainer]:
        shown = ", ".join(map(repr, list(raw)[:6])) or "nothing"
        raise ConfigError(f"{path} holds {shown}, which are no settings of a known trainer. {KNOWN}")
    return Found(trainer, flat if trainer == "kohya" else raw)


def parse(path: Path) -> dict[str, Any]:
    """Read JSON, TOML or a command line. Raises ConfigError."""
    text = _text_of(path)
    if text.lstrip().startswith("{"):
        return parse_json(text, path)
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if re.search(r"(^|\s)--?[a-z_]+[\s=]", text):
            return parse_flags(text, str(path))
        hint = (
            r" In double quotes a \ begins an escape; write Windows paths in 'single quotes'." if "\\" in text else ""
        )
        raise ConfigError(
            f"{path} is neither JSON, nor TOML ({error}), nor a command line with --flags.{hint} {KNOWN}"
        ) from error


def parse_json(text: str, path: Path) -> dict[str, Any]:
    """Return the object that a JSON text holds. Raises ConfigError."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}. Correct that place; nothing was imported.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no JSON object, so it has no settings. {KNOWN}")
    return raw


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that another one names. Raises ConfigError."""
    return parse_json(_text_of(path), path)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.absolute()} cannot be read: {error}.") from error


def _without_sections(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of all sections; those of a data set (`general`, `datasets`) keep their place."""
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        flat |= value if isinstance(value, dict) and key not in ("general", "network_args") else {key: value}
    return flat
