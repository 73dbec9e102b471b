"""Any mode, depth and profile that Pillow reads, as 8-bit sRGB on an opaque background."""

import io

import numpy as np
from PIL import Image, ImageCms


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale depths beyond 8 bits instead of clipping them.

    `I;16*`: 65535 is white. `I` and `F` say no range, so the largest value tells: up to 255 (for `F` up to 1) the
    range is 255 (1), up to 65535 it is 65535, beyond that the largest value is white. Negative and NaN are black.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values_HW = np.nan_to_num(np.asarray(image).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:
        largest = float(values_HW.max())
        steps = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((step for step in steps if largest <= step), largest)
    scaled = Image.fromarray((np.clip(values_HW / white, 0, 1) * 255 + 0.5).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(values_HW == transparent, 0, 255).astype(np.uint8)))
    return scaled


def flatten(image: Image.Image, background: str) -> Image.Image:
    """Bring the colours to sRGB and composite what is transparent on the background."""
    if not image.has_transparency_data:
        return _to_srgb(image, image.info.get("icc_profile"))
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    profile = image.info.get("icc_profile") if _profile_space(image) == "RGB" else None
    canvas.paste(_to_srgb(rgba.convert("RGB"), profile), mask=rgba.getchannel("A"))
    return canvas


def opacity(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel of an image of any mode and depth, None where it knows no transparency."""
    scaled = to_8_bits(image)
    return scaled.convert("RGBA").getchannel("A") if scaled.has_transparency_data else None


def _profile_space(image: Image.Image) -> str:
    return "GRAY" if image.mode in ("L", "LA", "La", "1") else "CMYK" if image.mode == "CMYK" else "RGB"


_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to RGB by the embedded profile, if there is a sound one for this mode, else as Pillow does."""
    if image.mode == "P":
        image = image.convert("RGB")
    try:
        if image.mode == "LAB":
            return _through_profile(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")))
        if profile:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = embedded.profile.xcolor_space.strip()
            if space == _SPACES.get(image.mode) and not is_srgb(profile):
                return _through_profile(image, embedded)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        pass  # a broken profile is no reason to lose the image
    return image.convert("RGB")


def is_srgb(profile: bytes) -> bool:
    """Whether an embedded profile is sRGB by its own description; a broken profile counts as none, which is sRGB.

    Its beginning, not a mention: "Display P3 Gamut with sRGB Transfer" is another space.
    """
    try:
        description = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.profile_description
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        return True
    return (description or "").strip().startswith("sRGB")


def _through_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    srgb = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert converted is not None, "only in-place conversion returns None"
    return converted
