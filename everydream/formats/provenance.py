"""What a file says of how it was made: where it stands in each format, and other tools' names for parts of it.

    About    everydream's own, plain data: trainer, base, data, progress, settings (see `everydream.provenance`)
    modelspec.*    Stability's convention for .safetensors, version 1.0.0
    ss_*     kohya's, which web UIs show of adapters

Keys of other tools are written where they are true of this trainer's runs, and left out otherwise.
"""

import json
from collections.abc import Mapping
from typing import Any

from everydream.formats.files import METADATA_KEY, json_metadata

About = Mapping[str, Any]
PROVENANCE = "provenance"
FOLDER_FILE = "everydream.json"
"""Where diffusers folders keep it."""

_ABOUT = dict.fromkeys(("project", "method", "weights", "step", "steps_planned", "epoch", "images_seen"), object) | {
    "trainer": Mapping, "base": Mapping, "data": Mapping,
}  # fmt: skip
_BASE = dict.fromkeys(("name", "sha256", "of"), object)
_DATA = {"images": object, "fingerprint": object, "sources": list}
_SOURCE = {"name": object, "role": str, "images": object, "draws_per_epoch": object, "licences": Mapping}
"""What is read of each part; `everydream.provenance` writes them."""


def own_metadata(about: About | None, model: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return the safetensors metadata of our own: how to rebuild the model, how it was made."""
    said = {**({"model": model} if model is not None else {}), **({PROVENANCE: about} if about else {})}
    return {METADATA_KEY: json_metadata(said)} if said else {}


def modelspec(architecture: str, prediction: str, about: About | None) -> dict[str, str]:
    """Return Stability's keys; `about` brings title, resolution and a description."""
    keys = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": prediction,
    }
    if about:
        side = about["resolution"]
        keys["modelspec.title"] = str(about["project"])
        keys["modelspec.resolution"] = f"{side}x{side}"
        keys["modelspec.description"] = (
            f"{about['method']} of {about['base']['name']}: {about['data']['images']} images, step {about['step']}, "
            f"{about['images_seen']} images seen"
        )
    return keys


def kohya(about: About | None) -> dict[str, str]:
    """Return kohya's keys about a training run."""
    if not about:
        return {}
    base, draws = about["base"], sum(source["draws_per_epoch"] for source in about["data"]["sources"])
    keys: dict[str, Any] = {
        "ss_output_name": about["project"],
        "ss_sd_model_name": base["name"],
        "ss_new_sd_model_hash": base["sha256"] if base["of"] == "file" else None,
        "ss_steps": about["step"],
        "ss_epoch": about["epoch"],
        "ss_num_train_images": draws,
        "ss_resolution": f"({about['resolution']}, {about['resolution']})",
        **_of_settings(about.get("config")),
    }
    return {key: str(value) for key, value in keys.items() if value is not None}


def _of_settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if config is None:
        return {}
    train = config["train"]
    return {
        "ss_seed": config["seed"],
        "ss_num_epochs": train["epochs"],
        "ss_total_batch_size": train["batch_size"],
        "ss_gradient_accumulation_steps": train["gradient_accumulation"],
        "ss_max_grad_norm": train["max_grad_norm"],
        "ss_unet_lr": config["unet"]["lr"] if config["unet"]["train"] else None,
        "ss_text_encoder_lr": config["text_encoder"]["lr"] if config["text_encoder"]["train"] else None,
        "ss_optimizer": config["optimizer"]["name"],
        "ss_lr_scheduler": config["lr_schedule"]["name"],
        "ss_clip_skip": config["text_encoder"]["clip_skip"] + 1,  # theirs counts from the last layer as 1
        "ss_noise_offset": config["loss"]["offset_noise"] or None,
    }


def provenance_in(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file of ours says of how it was made, {} for any other.

    `metadata`: what stands beside its tensors.
    """
    found = metadata.get(METADATA_KEY)
    for _ in range(2):  # in .safetensors and .pt all of it is JSON, in last.ckpt this part alone
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except (ValueError, RecursionError):
                return {}
        if isinstance(found, Mapping) and PROVENANCE in found:
            found = found[PROVENANCE]
    return about_in(found)


def about_in(found: object) -> dict[str, Any]:
    """Return plain data if it has the parts of an About, {} for anything else: files come from strangers."""
    if not isinstance(found, Mapping) or not _has(found, _ABOUT):
        return {}
    base, data = found["base"], found["data"]
    whole = _has(base, _BASE) and _has(data, _DATA) and all(_has(one, _SOURCE) for one in data["sources"])
    return dict(found) if whole else {}


def _has(found: object, parts: Mapping[str, type]) -> bool:
    return isinstance(found, Mapping) and all(
        name in found and isinstance(found[name], kind) for name, kind in parts.items()
    )
