"""Validation of other trainers as a number of held-out images of ours, where the images are there to be counted.

EveryDream2trainer   a file of its own: a share of all images, or folders
kohya                validation_split of a run, a data set or a subset
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everydream.tools.importing.draft import Draft, find
from everydream.tools.importing.keys import Keys, Levels
from everydream.tools.importing.reading import read_json
from pictures.decode import image_extensions

_NEEDLESS = {
    "documentation": "explains the file.",
    "batch_size": "images are measured one by one.",
    "seed": "which images are held out, and their noise, follow from seed.",
    "stabilize_training_loss": "as many training images are always measured beside those held out.",
    "stabilize_split_proportion": "as many training images are always measured beside those held out.",
    "use_relative_loss": "all is compared with the model before the first step.",
}


def put_everydream2_validation(keys: Keys, draft: Draft, file: Path) -> None:
    """Set what the file under validation_config asks for. Raises ConfigError where that cannot be read."""
    name = keys.text("validation_config", None)
    if name is None:
        return
    path = find(name, file)
    if path is None:
        draft.tell("missing", f"validation_config: {name} is not there; see the section validation.")
        return
    own = Keys(read_json(path), draft, f"{path.name}: ")
    _put_file(own, draft, file)
    own.tell_rest(_NEEDLESS, {}, {})


def _put_file(own: Keys, draft: Draft, file: Path) -> None:
    share = own.number("auto_split_proportion", own.number("val_split_proportion", 0.15))
    mode, often = own.text("val_split_mode", "automatic"), own.number("every_n_epochs", 1.0)
    extra = own.any("extra_manual_datasets")
    named = list(extra.values()) if isinstance(extra, dict) else []
    folders = [folder for folder in (own.text("val_data_root", None), *named) if isinstance(folder, str)]
    if not own.flag("validate_training", True):
        return
    if mode == "automatic":
        is_set = _put_share(draft, own.name("auto_split_proportion"), share, file)
    else:
        is_set = bool(folders) and _put_folder(draft, own.name("val_data_root"), folders.pop(0), file)
    for folder in folders:
        draft.tell("missing", f"{own.name('extra_manual_datasets')}: {folder}; one set of images is validated.")
    if is_set:
        draft.put("validation.every_epochs", max(1, round(often)), "every_n_epochs")
        if often < 1:
            draft.tell(
                "changed", f"{own.name('every_n_epochs')}: {often:g}; for more often set validation.every_steps."
            )


def put_kohya_validation(keys: Keys, draft: Draft, subsets: Sequence[Levels], file: Path) -> None:
    """Set what validation_split asks for; `subsets`: the tables that count for each."""
    shares = {levels.number("validation_split", 0.0) for levels in subsets}
    if not any(shares):
        return
    if len(shares) > 1:
        told = ", ".join(f"{share:g}" for share in sorted(shares))
        draft.tell("missing", f"validation_split: {told} of different images; set validation.images to a number.")
    elif _put_share(draft, "validation_split", shares.pop(), file):
        _put_cadence(keys, draft)


def _put_cadence(keys: Keys, draft: Draft) -> None:
    if steps := keys.whole("validate_every_n_steps", None):
        draft.put("validation.every_steps", steps, "validate_every_n_steps")
        if keys.whole("validate_every_n_epochs", None):
            draft.tell("changed", "validate_every_n_epochs: every so many steps, which validate_every_n_steps says.")
    else:
        draft.put("validation.every_epochs", keys.whole("validate_every_n_epochs", 1) or 1, "validate_every_n_epochs")
    if (most := keys.whole("max_validation_steps", None)) is not None:
        draft.tell("missing", f"max_validation_steps: {most}; lower validation.images to measure fewer.")


def _put_share(draft: Draft, key: str, share: float, file: Path) -> bool:
    """Set how many images a share of all is; return whether that could be counted."""
    counts = [_count(source, file) for source in draft.training_sources()]
    known = [num for num in counts if num]
    total, most = sum(known), sum(num // 2 for num in known)
    if len(known) < len(counts) or not most:
        draft.tell(
            "missing", f"{key}: {share:g}; the images are not there to be counted: set validation.images to a number."
        )
        return False
    images = min(max(round(share * total), 1), most)
    draft.put("validation.images", images, f"{key.rpartition(' ')[2]}: {share:g} of {total}")
    draft.tell("changed", f"{key}: {share:g} of {total} images is {images} here, near duplicates held out together.")
    return True


def _put_folder(draft: Draft, key: str, folder: str, file: Path) -> bool:
    """Set a folder of its own, all of whose images are measured; return whether it is there."""
    images = _count({"path": folder}, file)
    if not images:
        draft.tell("missing", f"{key}: {folder}; no images are there: set validation.path and validation.images.")
        return False
    draft.put("validation.path", folder, key.rpartition(" ")[2])
    draft.put("validation.images", images, "all that are there")
    return True


def _count(source: dict[str, Any], file: Path) -> int:
    """Return how many image files a source's folder holds at any depth; 0 where there is none."""
    path = find(source["path"], file)
    if path is None or not path.is_dir():
        return 0
    names = (name for _, _, files in os.walk(path) for name in files)
    return sum(os.path.splitext(name)[1].lower() in image_extensions() for name in names)  # noqa: PTH122
