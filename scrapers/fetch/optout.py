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
    token, parts = _addressee(value)
    if token not in ("", "*", TOKEN):
        return False
    for part in parts:
        word, _, rest = part.partition(":")
        if word.strip().lower() in _NO:
            return True
        if word.strip().lower() == "unavailable_after" and _is_past(rest.strip(), now):
            return True
    return False


def _addressee(value: str) -> tuple[str, list[str]]:
    """Split into whom the tag is for ("" is everyone) and its directives; dates hold commas of their own."""
    token, colon, rest = value.partition(":")
    if not colon or "," in token or token.strip().lower() in _WITH_VALUE:
        token, rest = "", value
    parts: list[str] = []
    for piece in rest.split(","):
        if parts and parts[-1].strip().lower().startswith("unavailable_after") and not piece.strip().isalpha():
            parts[-1] += "," + piece
        else:
            parts.append(piece)
    return token.strip().lower(), parts


def _is_past(text: str, now: datetime) -> bool:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        try:
            date = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            return False
    return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)) < now
