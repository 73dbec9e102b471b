"""JoePenna's DreamBooth: his JSON config (schema 1) or command line as a draft of ours.

A step there is one image of the subject and, with regularization, one of the class, whose losses are added; UNet
and text encoder train at one constant rate, in fp32.
"""

import math
from typing import Any

from everydream.tools.importing.draft import Draft
from everydream.tools.importing.keys import Keys

_REPEATS = 100
"""How often each image is in an epoch there."""
_NEEDLESS = {
    "schema": "the config's version.",
    "project_config_filename": "the name of the config itself.",
    "config_date_time": "a run's folder is named after the time it begins.",
    "training_images": "all images of the folder are taken; inspect lists them.",
    "training_images_count": "images are counted anew.",
    "debug": "the report and inspect say more; --debug shows tracebacks.",
    "gpu": "choose a GPU with the environment variable CUDA_VISIBLE_DEVICES.",
    "train": "`everydream train` trains.",
    "no_test": "nothing is tested after training.",
    "base": "his model's configuration file; ours is read off the model.",
    "model_repo_id": "model_path says which model.",
}


def joepenna(raw: dict[str, Any]) -> Draft:
    """Return the draft of JoePenna's keys; missing ones have his defaults."""
    draft = Draft("JoePenna's DreamBooth")
    keys = Keys(raw, draft)
    if keys.whole("schema", 1) != 1:
        keys.problem("schema", f"is {raw['schema']!r}, and only schema 1 is known; has the config another trainer's?")
    draft.put_project(keys.text("project_name", None), "project_name")
    draft.put("seed", keys.whole("seed", 23), "seed")
    path = keys.text("model_path", None)
    if path is not None:
        draft.put_model(path, "model_path")
    else:
        draft.put_model(
            keys.text("model_repo_id", None), "model_repo_id" if keys.given("model_repo_id") else "model_path"
        )
    _put_images(keys, draft)
    _put_training(keys, draft)
    keys.tell_rest(_NEEDLESS, {}, {})
    return draft


def _put_images(keys: Keys, draft: Draft) -> None:
    folder, token = keys.text("training_images_folder_path", None), keys.text("token", None)
    class_word, token_only = keys.text("class_word", None), keys.flag("token_only", False)
    for key, value, what in (
        ("training_images_folder_path", folder, "the folder of the subject's images"),
        ("token", token, "what the subject is called"),
    ):
        if value is None:
            keys.problem(key, f"missing; say {what}")
    if class_word is None and not token_only:
        draft.tell("changed", "class_word: none, so captions are the token alone (token_only: true), as there.")
    source: dict[str, Any] = {"path": folder, "repeats": _REPEATS, "captions": "joepenna", "token": token}
    # With token_only too, for templates that ask for it.
    source |= {"class_word": class_word} if class_word else {}
    source |= {"token_only": True} if token_only or not class_word else {}
    draft.sources.append(source)
    _add_class_images(keys, draft, class_word, token_only)
    draft.put("method", "dreambooth" if draft.has_class_images else "full")
    draft.put("data.resolution", 512, "as there; images keep their shape here")
    draft.put("data.flip_p", keys.number("flip_percent", 0.5), "flip_percent")


def _add_class_images(keys: Keys, draft: Draft, class_word: str | None, token_only: bool) -> None:
    name = "regularization_images_folder_path"
    folder = keys.text(name, None)
    if folder is not None and token_only:
        draft.tell("missing", f"{name}: not used with token_only, there as here.")
    elif folder is not None and class_word is None:
        draft.tell("missing", f"{name}: class images are captioned with class_word, and there is none.")
    elif folder is not None:
        draft.sources.append({"path": folder, "role": "class", "captions": "joepenna", "class_word": class_word})


def _put_training(keys: Keys, draft: Draft) -> None:
    steps, save = keys.whole("max_training_steps", 2000), keys.whole("save_every_x_steps", 0)
    if steps < 1:
        keys.problem("max_training_steps", f"should be above 0 (it is {steps})")
    if save < 0:
        keys.problem("save_every_x_steps", f"should be 0 (at the end only) or above (it is {save})")
    draft.put("train.epochs", max(1, math.ceil(steps / _REPEATS)), "enough for max_steps, which ends the run")
    draft.put("train.max_steps", steps, "max_training_steps")
    pair = draft.has_class_images
    draft.put(
        "train.batch_size", 2 if pair else 1, "an image of the subject and one of the class" if pair else "as there"
    )
    if keys.given("batch_size"):  # a flag of his first version, which his data module did not heed
        draft.tell("missing", f"batch_size: {keys.any('batch_size')}; his trainer takes one image of each kind a step.")
    draft.put("train.precision", "fp32", "as there; bf16 takes less memory")
    draft.put("train.max_grad_norm", None, "as there")
    rate = keys.number("learning_rate", 1e-6)
    draft.put("unet.lr", rate, "learning_rate")
    draft.put("text_encoder.lr", rate, "learning_rate, one for both")
    draft.put("lr_schedule.name", "constant", "as there")
    draft.put("captions.dropout", 0.0, "as there")
    draft.put("checkpoints.every_steps", save or None, "save_every_x_steps" if save else "")
    draft.put("checkpoints.every_epochs", None)
    draft.put("checkpoints.every_minutes", None)
    draft.put("checkpoints.keep", None, "all, as there")
    draft.put("checkpoints.formats", ["ckpt"], "as there")
    draft.put("samples.every_steps", save or 500, "as there")
