"""From a frame to the pixels of a training image."""

import io

import numpy as np
from PIL import Image

from everydream.tools.prep.frames import Box, centre_square
from everydream.tools.prep.settings import PrepSettings

_JPEG_QUALITY = 95
_ANALYSED_PX = 200
"""Shorter side of the copy in which the subject is looked for."""
_LEAST_PX = 16
"""Shorter side from which there is something to tell apart."""


def subject_square(image: Image.Image) -> Box:
    """Return the largest square of an image that holds most of its subject: detail, skin and strong colours."""
    if image.width == image.height or min(image.size) < _LEAST_PX:
        return centre_square(image.size)
    from smartcrop import SmartCrop  # noqa: PLC0415 - loaded only where it is asked for

    side = min(image.size)
    scale = min(1.0, _ANALYSED_PX / side)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    found = SmartCrop().crop(small, 100, 100, prescale=False, min_scale=1.0)["top_crop"]
    left, top = (min(round(found[axis] / scale), room - side) for axis, room in zip("xy", image.size, strict=True))
    return Box(left, top, side, side)


def square(image: Image.Image, box: Box, side: int) -> Image.Image:
    """Return the pixels of a square box, resized to `side` x `side`."""
    return image.resize((side, side), Image.Resampling.LANCZOS, box=box.corners)


def scaled(image: Image.Image, side: int, upscale: bool) -> Image.Image:
    """Return the whole image with a shorter side of `side` pixels; a smaller one as it is, unless `upscale`."""
    scale = side / min(image.size)
    if scale == 1 or (scale > 1 and not upscale):
        return image
    return image.resize((max(side, round(image.width * scale)), max(side, round(image.height * scale))),
                        Image.Resampling.LANCZOS)  # fmt: skip


def padded(image: Image.Image, side: int, pad: str) -> Image.Image:
    """Return the whole image in the middle of a square, the rest in a colour (`#RRGGBB`) or by its `edge` pixels."""
    scale = side / max(image.size)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))),
                         Image.Resampling.LANCZOS)  # fmt: skip
    left, top = (side - inner.width) // 2, (side - inner.height) // 2
    if pad == "edge":
        around = ((top, side - inner.height - top), (left, side - inner.width - left), (0, 0))
        return Image.fromarray(np.pad(np.asarray(inner), around, mode="edge"))
    canvas = Image.new("RGB", (side, side), pad)
    canvas.paste(inner, (left, top))
    return canvas


def render(image: Image.Image, box: Box, label: str, settings: PrepSettings) -> Image.Image:
    """Return the training image of one frame; frames with a label are squares around faces."""
    if not label and settings.pad is not None:
        return padded(image, settings.size, settings.pad)
    if not label and settings.crop == "none":
        return scaled(image, settings.size, settings.upscale)
    return square(image, box, settings.size)


def encode(image: Image.Image, kind: str) -> bytes:
    """Return the file's content, without any metadata: a photo's EXIF says where you live."""
    buffer = io.BytesIO()
    if kind == "jpg":
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()
