"""Faces that another detector found: a JSON object of boxes per photo."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from everydream.data.texts import BadText, nearest, read_text
from everydream.errors import ConfigError
from everydream.tools.files import Picture
from everydream.tools.prep.frames import Box
from pictures.decode import BadImage, probe

_SHOWN = 20
_BEYOND_PX = 1e9


def read_boxes(file: Path, root: Path, pictures: Sequence[Picture]) -> dict[str, list[Box]]:
    """Read `{"folder/photo.jpg": [[x, y, width, height], ...]}`, in pixels of the upright photo, the largest first.

    Raises ConfigError with everything that is wrong: photos that are not there, boxes that are none or that do not lie
    inside their photo.
    """
    known = {picture.path for picture in pictures}
    problems: list[str] = []
    boxes: dict[str, list[Box]] = {}
    for path, raw in _entries(file).items():
        if path not in known:
            problems.append(f"{path}: no such image in {root}; {_hint(path, known)}")
            continue
        found = list(_checked(path, raw, root, problems))
        boxes[path] = sorted(found, key=lambda box: (-box.area, box))
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(f"--boxes {file} does not fit the photos:" + "".join(f"\n  {p}" for p in problems[:_SHOWN])
                          + more)  # fmt: skip
    return boxes


def _entries(file: Path) -> dict[str, object]:
    try:
        found = json.loads(read_text(file, str(file)))
    except (BadText, ValueError, RecursionError) as error:
        raise ConfigError(f"--boxes {file}: not a JSON file that can be read ({error})") from error
    if not isinstance(found, dict):
        raise ConfigError(f'--boxes {file}: expected {{"folder/photo.jpg": [[x, y, width, height]]}}, '
                          f"found a {type(found).__name__}")  # fmt: skip
    return found


def _hint(path: str, known: set[str]) -> str:
    if path.replace("\\", "/").removeprefix("./") in known:
        return "write paths with forward slashes, relative to that folder"
    close = nearest(path, known)
    return close if close.startswith("did you mean") else "paths are relative to that folder"


def _checked(path: str, raw: object, root: Path, problems: list[str]) -> Iterator[Box]:
    try:
        size = probe(root / path)[:2]
    except BadImage:
        return  # it is rejected with its reason when its turn comes
    if not isinstance(raw, list):
        problems.append(f"{path}: expected a list of boxes, found {str(raw)[:40]}")
        return
    for box in raw:
        if problem := _problem(box, size):
            problems.append(f"{path}: the box {str(box)[:80]} {problem}")
        else:
            left, width = _whole_pixels(box[0], box[2], size[0])
            top, height = _whole_pixels(box[1], box[3], size[1])
            yield Box(left, top, width, height)


def _whole_pixels(start: float, length: float, edge: int) -> tuple[int, int]:
    first = min(max(round(start), 0), edge - 1)
    return first, max(min(round(start + length), edge) - first, 1)


def _problem(box: object, size: tuple[int, int]) -> str:
    """Return what is wrong with a box, "" if nothing is; a detector's rounding may pass the border by a pixel."""
    if not isinstance(box, list) or len(box) != 4:
        return "is not [x, y, width, height]"
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < _BEYOND_PX for v in box):
        return "holds something that is not a number"
    x, y, width, height = box
    if width < 1 or height < 1:
        return "has no area: the third and fourth number are its width and height"
    if x < -1 or y < -1 or x + width > size[0] + 1 or y + height > size[1] + 1:
        return f"does not lie inside the photo, which is {size[0]} x {size[1]} the right way up"
    return ""
