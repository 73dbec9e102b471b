"""Whether a response says that its image is not for training.

Read from headers alone, before the body: `X-Robots-Tag` (noai, noimageai, noindex ...), TDM-Reservation
(the TDM Reservation Protocol) and `Content-Usage` (IETF AI Preferences, draft).
"""

import re
from collections.abc import Iterable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

TOKEN = "everydream"
"""What this scraper is called in robots.txt and X-Robots-Tag, in lower case."""

_NO = frozenset({"noai", "noimageai", "noindex", "noimageindex", "noml", "none"})
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def opted_out(headers: Iterable[tuple[str, str]], now: datetime | None = None) -> str | None:
    """Return the header that asks us not to use the image, or None."""
    for name, value in headers:
        key = name.lower()
        if (
            (key == "x-robots-tag" and _tag_says_no(value, now or datetime.now(timezone.utc)))
            or (key == "tdm-reservation" and value.strip() == "1")
            or (key == "content-usage" and re.search(r"\btrain-ai\s*=\s*n\b", value.lower()))
        ):
            return f"{name}: {value}"
    return None


def _tag_says_no(value: str, now: datetime) -> bool:
    """Read one X-Robots-Tag: `noai`, `everydream: noai, nofollow`; a name counts for what follows it."""
    is_for_us = True
    for part in _parts(value):
        word, colon, rest = (text.strip() for text in part.lower().partition(":"))
        if colon and word not in _WITH_VALUE:
            is_for_us = word in ("*", TOKEN)
            word, _, rest = (text.strip() for text in rest.partition(":"))
        if is_for_us and (word in _NO or (word == "unavailable_after" and _is_past(rest, now))):
            return True
    return False


def _parts(value: str) -> list[str]:
    """Split at commas, but not within dates."""
    parts: list[str] = []
    for piece in value.split(","):
        if parts and "unavailable_after" in parts[-1].lower() and piece.strip()[:1].isdigit():
            parts[-1] += "," + piece
        else:
            parts.append(piece)
    return parts


def _is_past(text: str, now: datetime) -> bool:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        try:
            date = datetime.fromisoformat(text.upper().replace("Z", "+00:00"))
        except ValueError:
            return False
    return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)) < now
