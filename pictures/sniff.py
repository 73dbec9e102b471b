"""Why a file is not a usable image, in words: from its first bytes and from what Pillow said."""

from pathlib import Path

HEAD_BYTES = 512
"""How much of a file is looked at."""

# Contents by their first bytes: (offset, bytes, what it is, whether it is a format that we open).
_MAGIC = (
    (0, b"version https://git-lfs", "a Git LFS pointer (fetch the real file with `git lfs pull`)", False),
    (0, b"\xff\xd8\xff", "JPEG", True),
    (0, b"\x89PNG", "PNG", True),
    (0, b"GIF8", "GIF", True),
    (0, b"BM", "BMP", True),
    (0, b"II*\0", "TIFF", True),
    (0, b"MM\0*", "TIFF", True),
    (8, b"WEBP", "WebP", True),
    (4, b"ftypavif", "AVIF", True),
    (4, b"ftypavis", "AVIF", True),
    (0, b"\0\x05\x16\x07", "an AppleDouble file (metadata of macOS)", False),
    (4, b"ftyphei", "HEIC (install the plug-in: pip install pillow-heif)", False),
    (4, b"ftypmif1", "HEIF (install the plug-in: pip install pillow-heif)", False),
    (4, b"ftyp", "a video (MP4)", False),
    (4, b"jP  ", "JPEG 2000", False),
    (0, b"\xffO\xffQ", "JPEG 2000", False),
    (0, b"\xff\n", "JPEG XL", False),
    (4, b"JXL ", "JPEG XL", False),
    (0, b"8BPS", "Photoshop", False),
    (0, b"%PDF", "PDF", False),
    (0, b"%!PS", "PostScript", False),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript", False),
    (0, b"PK\x03\x04", "a ZIP archive", False),
    (0, b"PK\x05\x06", "a ZIP archive", False),
    (0, b"\x1f\x8b", "gzip", False),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska or WebM)", False),
    (0, b"BPG\xfb", "BPG", False),
    (0, b"II+\0", "BigTIFF", True),
    (0, b"MM\0+", "BigTIFF", True),
    (0, b"DDS ", "DDS", False),
    (0, b"qoif", "QOI", False),
    (0, b"SIMPLE  =", "FITS", False),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)", False),
)


def describe(head: bytes, error: Exception, path: Path | None = None) -> str:
    """Return the reason why a file could not be opened or decoded, given its first bytes and what was raised."""
    if isinstance(error, MemoryError):
        return "cannot be read: not enough memory to decode it; make it smaller or lower max_megapixels"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror or error}"  # a disk or a network; Pillow's own have no number
    what, is_ours = content(head)
    if not is_ours:
        return f"not an image: {what}" if what.startswith(("a ", "an ")) else f"content is {what}"
    return _damage(what, " ".join(str(error).split()).replace(str(path or ""), path.name if path else ""), error)


def _damage(what: str, message: str, error: Exception) -> str:
    if "truncated" in message.lower() or "buffer overrun" in message or isinstance(error, EOFError):
        return f"truncated: the {what} ends before its pixels do"
    if not message or message.startswith("cannot identify image file"):
        return f"damaged: the header of the {what} cannot be read"
    return f"damaged {what}: {message[:200]}"


def content(head: bytes) -> tuple[str, bool]:
    """Name what a file holds by its first bytes, and tell whether that is a format we open."""
    for offset, magic, name, is_ours in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name, is_ours
    return _content_without_magic(head), False


def _content_without_magic(head: bytes) -> str:
    if not any(head):
        return "a file of zeros" if head else "an empty file (0 bytes)"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if b"<svg" in text:
        return "an SVG drawing"
    return "a text file" if _is_text(head) else "of no known format"


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(char.isprintable() or char.isspace() for char in text)
