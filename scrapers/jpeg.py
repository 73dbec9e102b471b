"""A JPEG without its metadata, its pixels untouched: ITU T.81 annex B names the segments."""

_SOS, _EOI = 0xDA, 0xD9
_APP0, _APP2, _APP14, _APP15, _COM = 0xE0, 0xE2, 0xEE, 0xEF, 0xFE
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a length."""
_STUFFED = 0x00
"""After 0xFF: the byte 0xFF of the stream itself."""


def num_scans(content: bytes) -> int:
    """Return about how many scans a JPEG has; a photograph has a dozen, and each costs a pass over all its pixels."""
    return content.count(b"\xff\xda")


def without_metadata(content: bytes, *, profile: bool = True) -> bytes:
    """Return the JPEG without Exif, XMP, IPTC, comments, thumbnails, padding, and what follows its end (MPO).

    Kept are JFIF, Adobe's segment, which tells how colours are coded, and, unless it is unwanted, the colour profile.
    """
    kept = bytearray(content[:2])
    at, in_scans = 2, False
    while at + 2 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0xFF:
            following = content.find(b"\xff", at + 1)
            end = following if following >= 0 else len(content)
            if in_scans:
                kept += content[at:end]
            at = end
        elif marker == _EOI:
            return bytes(kept + content[at : at + 2])
        elif marker == _STUFFED or marker in _ALONE:
            kept += content[at : at + 2] if in_scans or marker != _STUFFED else b""
            at += 2
        else:
            length = int.from_bytes(content[at + 2 : at + 4], "big")
            kept += _segment(marker, content[at : at + 2 + length], profile)
            at += 2 + max(length, 2)
            in_scans = in_scans or marker == _SOS
    return bytes(kept)


def without_zeros_at_end(content: bytes, number: int) -> bytes:
    """Return a JPEG without so many zeros before its last end marker; as it is, if something else is there."""
    end = content.rfind(b"\xff\xd9")
    padding = content[max(0, end - number) : end]
    return content if end < 0 or padding.strip(b"\0") else content[: end - number] + content[end:]


def _segment(marker: int, segment: bytes, profile: bool) -> bytes:
    """Return what is kept of a segment, its marker included."""
    body = segment[4:]
    if marker == _APP0 and body.startswith(b"JFIF\0"):
        # Version, density; the thumbnail that may follow is none of 0 by 0.
        return b"\xff\xe0\x00\x10" + body[:12].ljust(12, b"\0") + b"\0\0"
    if marker == _APP2 and body.startswith(b"ICC_PROFILE\0") and profile:
        return segment
    if marker == _APP14 and body.startswith(b"Adobe"):
        return segment
    return b"" if _APP0 <= marker <= _APP15 or marker == _COM else segment
