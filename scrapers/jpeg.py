"""A JPEG without its metadata, its pixels untouched: ITU T.81 annex B names the segments."""

_SOI, _SOS, _EOI = 0xD8, 0xDA, 0xD9
_APP0, _APP2, _APP14, _APP15, _COM = 0xE0, 0xE2, 0xEE, 0xEF, 0xFE
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a length."""


def without_metadata(content: bytes) -> bytes:
    """Return the JPEG without Exif, XMP, IPTC, comments, thumbnails and what follows its end (MPO's other frames).

    Kept are JFIF, the colour profile, and Adobe's segment, which tells how colours are coded.
    """
    kept = bytearray(content[:2])
    at = 2
    while at + 4 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker in (0x00, 0xFF):  # padding, which decoders skip
            at += 1
            continue
        if marker in _ALONE:
            kept += content[at : at + 2]
            at += 2
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == _SOS:
            return bytes(kept + _scans(content, at))
        segment = content[at : at + 2 + length]
        if _is_kept(marker, segment[4:]):
            kept += segment
        at += 2 + length
    return content


def _is_kept(marker: int, body: bytes) -> bool:
    if marker == _APP0:
        return body.startswith(b"JFIF\0")
    if marker == _APP2:
        return body.startswith(b"ICC_PROFILE\0")
    return marker == _APP14 or not (_APP0 <= marker <= _APP15 or marker == _COM)


def _scans(content: bytes, start: int) -> bytes:
    """Return everything from the first scan to the end of the image, which MPO follows up with other images."""
    at = start
    while (at := content.find(b"\xff", at)) >= 0 and at + 1 < len(content):
        marker = content[at + 1]
        if marker == _EOI:
            return content[start : at + 2]
        if marker in (0x00, 0xFF, *_ALONE):
            at += 1 if marker == 0xFF else 2
            continue
        # Between scans of a progressive image: tables, the next scan's header.
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return content[start:]
