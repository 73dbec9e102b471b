"""Which colours and backgrounds recur in a source: what many images have in common is learned with the subject."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everydream.data.likeness import border_of
from everydream.data.looking import SIDE, Look

NAMES = {
    "black": (0, 0, 0), "dark grey": (64, 64, 64), "grey": (128, 128, 128), "light grey": (200, 200, 200),
    "white": (255, 255, 255), "red": (220, 30, 30), "dark red": (120, 10, 10), "orange": (240, 140, 30),
    "brown": (120, 75, 35), "beige": (225, 205, 165), "yellow": (245, 225, 50), "olive": (120, 120, 40),
    "green": (40, 160, 50), "dark green": (15, 75, 30), "light green": (160, 225, 140), "cyan": (60, 215, 220),
    "light blue": (160, 205, 240), "blue": (40, 80, 220), "dark blue": (15, 25, 95), "purple": (130, 50, 170),
    "pink": (245, 160, 195),
}  # fmt: skip
"""Names of colours and the RGB values that stand for them."""

_PALETTE = np.array(list(NAMES.values()), np.int32)
_ONE_COLOUR_LEVELS, _ONE_COLOUR_SHARE = 20, 0.8
_LISTED = 6
RECURRING = 0.3
"""From this share of a source's images on a background recurs."""


def nearest_names(colours_KC: NDArray[Any]) -> NDArray[np.int64]:
    """Return for RGB colours (0 .. 255) the number of the nearest name."""
    off = (colours_KC[:, None].astype(np.int32) - _PALETTE) ** 2
    return np.asarray((off * np.array([2, 4, 3])).sum(2).argmin(1), np.int64)


def backgrounds(looks: Sequence[Look | None]) -> list[str | None]:
    """Return the name of each image's background: the colour of its border, None where that has no single one."""
    names: list[str | None] = [None] * len(looks)
    for places, small_NHWC in _seen(looks):
        border_NPC = border_of(small_NHWC).astype(np.int16)
        middle_NC = np.median(border_NPC, axis=1)
        one_N = (np.abs(border_NPC - middle_NC[:, None]).max(2) < _ONE_COLOUR_LEVELS).mean(1) >= _ONE_COLOUR_SHARE
        for place, is_one, number in zip(places, one_N, nearest_names(middle_NC), strict=True):
            names[place] = list(NAMES)[number] if is_one else None
    return names


def recurring_backgrounds(names: Sequence[str | None]) -> list[list[Any]]:
    """Return the backgrounds of at least 30 % of the images, as [colour, images], most first."""
    ranked = Counter(name for name in names if name is not None).most_common()
    return [[name, count] for name, count in ranked if count >= RECURRING * len(names)]


def dominant_colours(looks: Sequence[Look | None]) -> list[dict[str, Any]]:
    """Return the colours that fill most of the images: name, mean RGB as #rrggbb, share of all pixels."""
    count = np.zeros(len(NAMES))
    total = np.zeros((len(NAMES), 3))
    for _, small_NHWC in _seen(looks):
        pixels_KC = small_NHWC[:, 1::2, 1::2].reshape(-1, 3)
        number_K = nearest_names(pixels_KC)
        count += np.bincount(number_K, minlength=len(NAMES))
        total += np.stack([np.bincount(number_K, pixels_KC[:, c], len(NAMES)) for c in range(3)], axis=1)
    order = [int(number) for number in np.argsort(-count, kind="stable")[:_LISTED] if count[number]]
    mean = {number: np.rint(total[number] / count[number]).astype(int).tolist() for number in order}
    share = count / max(count.sum(), 1)
    return [
        {"name": list(NAMES)[n], "rgb": "#{:02x}{:02x}{:02x}".format(*mean[n]), "share": round(float(share[n]), 3)}
        for n in order
    ]


def _seen(looks: Sequence[Look | None], at_once: int = 512) -> list[tuple[list[int], NDArray[np.uint8]]]:
    places = [place for place, look in enumerate(looks) if look is not None]
    portions = [places[start : start + at_once] for start in range(0, len(places), at_once)]
    found = []
    for portion in portions:
        content = b"".join(look.small for look in (looks[place] for place in portion) if look is not None)
        found.append((portion, np.frombuffer(content, np.uint8).reshape(-1, SIDE, SIDE, 3)))
    return found
