"""Where the faces are: MTCNN where facenet-pytorch is installed, else the Haar cascades that come with OpenCV 4."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from everydream.errors import ConfigError
from everydream.tools.prep.frames import Box, distinct

Detector = Callable[[Image.Image], list[Box]]
"""Upright RGB image -> its faces, the largest first."""

_SEARCHED_PX = 1000
"""Longer side of the picture that is searched: finds what a training image can use, and takes well under a second."""
_MIN_SHARE = 0.08
"""Least face over the shorter side. Below it, cascades find windows and flowers more often than faces."""
_MIN_FACE_PX = 24
_MIN_NEIGHBOURS = 6
"""Hits that must agree on a face; with fewer, flowers and house fronts become faces."""
_MIN_CONFIDENCE = 0.9
_FRONTAL, _PROFILE = "haarcascade_frontalface_alt2.xml", "haarcascade_profileface.xml"


def find_detector() -> Detector:
    """Return the best detector that is installed. Raises ConfigError if there is none."""
    find = _mtcnn() or _cascades()
    if find is None:
        raise ConfigError(
            "--person looks for faces, and no detector is installed: neither facenet-pytorch, nor an OpenCV below 5 "
            'with its Haar cascades. Run: pip install -c constraints.txt "opencv-python-headless<5"\n'
            "Or give the faces that another detector found, by --boxes faces.json."
        )
    return lambda image: _searched(image, find)


def _searched(image: Image.Image, find: Callable[[Image.Image], list[Box]]) -> list[Box]:
    """Search a smaller copy, and bring the boxes back to the image's pixels."""
    scale = min(1.0, _SEARCHED_PX / max(image.size))
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale)))) \
        if scale < 1 else image  # fmt: skip
    boxes = [_inside([value / scale for value in box], image.size) for box in find(small)]
    return sorted(distinct([box for box in boxes if box.area]), key=lambda box: (-box.area, box))


def _inside(box: Sequence[float], size: tuple[int, int]) -> Box:
    """Round a box to whole pixels and clip what hangs over the image."""
    left, top = max(0, round(box[0])), max(0, round(box[1]))
    right, bottom = min(size[0], round(box[0] + box[2])), min(size[1], round(box[1] + box[3]))
    return Box(left, top, max(0, right - left), max(0, bottom - top))


def _mtcnn() -> Detector | None:
    try:
        import facenet_pytorch  # noqa: PLC0415 - not one of ours: used where the user has it
        import torch  # noqa: PLC0415
    except ImportError:
        return None
    network = facenet_pytorch.MTCNN(keep_all=True, device="cuda" if torch.cuda.is_available() else "cpu")

    def find(image: Image.Image) -> list[Box]:
        corners, confidences = network.detect(image)
        if corners is None:
            return []
        sure = [box for box, sureness in zip(corners, confidences, strict=True) if sureness >= _MIN_CONFIDENCE]
        return [Box(*(round(float(value)) for value in (x, y, right - x, bottom - y))) for x, y, right, bottom in sure]

    return find


def _cascades() -> Detector | None:
    try:
        import cv2  # noqa: PLC0415 - takes a while to load
    except ImportError:
        return None
    folder = getattr(getattr(cv2, "data", None), "haarcascades", None)
    if folder is None or not hasattr(cv2, "CascadeClassifier"):
        return None  # OpenCV 5 has moved them out
    if not all((Path(folder) / name).is_file() for name in (_FRONTAL, _PROFILE)):
        return None
    frontal, profile = (cv2.CascadeClassifier(str(Path(folder) / name)) for name in (_FRONTAL, _PROFILE))

    def find(image: Image.Image) -> list[Box]:
        grey = cv2.equalizeHist(np.asarray(image.convert("L")))
        # Profiles only where no face looks at you: what the profile cascade finds beside one is mostly none.
        return _both_ways(frontal, grey) or _both_ways(profile, grey)

    return find


def _both_ways(cascade: Any, grey_HW: NDArray[Any]) -> list[Box]:
    """Search the picture and its mirror image: profiles look to one side, and of other faces too it finds more."""
    mirrored = _hits(cascade, np.ascontiguousarray(grey_HW[:, ::-1]))
    width = grey_HW.shape[1]
    return _hits(cascade, grey_HW) + [box._replace(x=width - box.x - box.width) for box in mirrored]


def _hits(cascade: Any, grey_HW: NDArray[Any]) -> list[Box]:
    least = max(_MIN_FACE_PX, round(_MIN_SHARE * min(grey_HW.shape)))
    if least > min(grey_HW.shape):
        return []
    found = cascade.detectMultiScale(grey_HW, scaleFactor=1.1, minNeighbors=_MIN_NEIGHBOURS, minSize=(least, least))
    return [Box(*(int(value) for value in box)) for box in found]
