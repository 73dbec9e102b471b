"""Pictures that say how they were drawn: in a PNG's text, for us as JSON and for web UIs in their own words."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from everydream.errors import FormatError
from everydream.formats.atomic import atomic_file
from everydream.formats.files import METADATA_KEY

PARAMETERS = "parameters"
"""Where AUTOMATIC1111 keeps what it says of a picture, and other tools look for it."""


def write_png(path: Path, picture_HWC: NDArray[np.uint8], settings: Mapping[str, Any], parameters: str = "") -> None:
    """Write a picture whole or not at all, with plain data on how it was drawn; the same gives the same bytes."""
    text = PngInfo()
    if parameters:
        text.add_itxt(PARAMETERS, parameters)
    text.add_itxt(METADATA_KEY, json.dumps(settings, sort_keys=True, ensure_ascii=False))
    with atomic_file(path) as partial:
        Image.fromarray(picture_HWC).save(partial, format="PNG", pnginfo=text)


def texts_in(path: Path) -> dict[str, str]:
    """Return the texts in a picture by their keywords. Raises FormatError if it is no picture."""
    try:
        with Image.open(path) as image:
            image.load()  # texts may stand behind the pixels
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise FormatError(f"{path} cannot be read as a picture: {error}.") from error


def settings_in(path: Path) -> dict[str, Any]:
    """Return how a picture of ours was drawn, {} for others. Raises FormatError if it is no picture."""
    try:
        settings = json.loads(texts_in(path).get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return settings if isinstance(settings, dict) else {}


def parameters(prompt: str, negative: str, **facts: object) -> str:
    """Return what web UIs show of a picture; `facts`: by their names for them, None is left out."""
    said = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items() if value is not None)
    return "\n".join(filter(None, [prompt, f"Negative prompt: {negative}" if negative else "", said]))
