"""JoePenna's command line as the keys of his JSON config."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from everydream.errors import ConfigError

_NAMES = {
    "training_model": "model_path",
    "actual_resume": "model_path",
    "training_images": "training_images_folder_path",
    "data_root": "training_images_folder_path",
    "regularization_images": "regularization_images_folder_path",
    "reg_data_root": "regularization_images_folder_path",
    "flip_p": "flip_percent",
    "n": "project_name",
    "gpus": "gpu",
    "t": "train",
}
"""Flags whose key has another name, those of his first version among them."""


def parse_flags(text: str, name: str) -> dict[str, Any]:
    """Return {key: value} of a command line; what stands before the first flag (`python main.py`) does not count.

    A flag without a value is true. Raises ConfigError, naming the text `name`, where quotes do not close or there is
    no flag.
    """
    # A backslash joins lines or guards a blank or a quote; anywhere else it is part of a Windows path.
    joined = re.sub(r"[\\^`][ \t]*\r?\n", " ", text)
    try:
        words = shlex.split(re.sub(r"\\{1,2}(?=[^\s\"'\\])", r"\\\\", joined))
    except ValueError as error:
        raise ConfigError(f"{name} is no command line: {error}. Close every quote.") from error
    found = dict(_pairs(words))
    if not found:
        raise ConfigError(f"{name} holds no --flag, e.g. --token effy --class_word person.")
    return found


def _pairs(words: list[str]) -> Iterator[tuple[str, Any]]:
    starts = [n for n, word in enumerate(words) if re.match(r"--?[A-Za-z]", word)]
    for start, end in pairwise([*starts, len(words)]):
        flag, sign, first = words[start].lstrip("-").partition("=")
        values = [first] if sign else words[start + 1 : end]
        yield _NAMES.get(flag, flag.replace("-", "_")), " ".join(values) if values else True
