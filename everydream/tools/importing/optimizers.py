"""Optimizers and schedules by the names that other trainers give them."""

import re

from everydream.tools.importing.draft import Draft

_OPTIMIZERS = {"adamw": "adamw", "adam": "adam", "sgd": "sgd", "sgdnesterov": "sgd", "adafactor": "adafactor"}
_FINDS_ITS_RATE = ("prodigy", "dadapt", "dowg", "coordinate_dowg", "scalar_dowg")
_SHAPES = {
    "constant": "constant",
    "constant_with_warmup": "constant",
    "linear": "linear",
    "cosine": "cosine",
    "polynomial": "polynomial",
}


def put_optimizer(draft: Draft, key: str, name: str) -> bool:
    """Set the optimizer nearest to `name`; return whether learning rates that were meant for it suit ours."""
    plain = re.sub(r"^paged|_?(8|32)bit$", "", name.lower())
    draft.put("optimizer.name", _OPTIMIZERS.get(plain, "adamw"), key)
    if plain.startswith(_FINDS_ITS_RATE):
        draft.tell(
            "changed",
            f"{key}: {name} is adamw here, and the learning rates are our usual ones: {name} finds its "
            "own, so the rates beside it would wreck a run.",
        )
        return False
    if plain not in _OPTIMIZERS:
        draft.tell("changed", f"{key}: {name} is adamw here; the learning rates were chosen for {name}, so check them.")
    elif plain != name.lower():
        draft.tell(
            "changed",
            f"{key}: {name} is {_OPTIMIZERS[plain]} here, whose state takes 32 bits: the same learning, more memory.",
        )
    elif plain == "sgdnesterov":
        draft.tell("changed", f"{key}: {name} is sgd with plain momentum here.")
    return True


def put_schedule(draft: Draft, key: str, name: str) -> str:
    """Set the shape of the learning rate nearest to `name` and return ours."""
    ours = _SHAPES.get(name, "cosine" if name.startswith("cosine") else "constant")
    draft.put("lr_schedule.name", ours, key)
    if name not in _SHAPES:
        draft.tell("changed", f"{key}: {name} is {ours} here.")
    return ours
