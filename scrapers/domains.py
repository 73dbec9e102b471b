"""Hosts of URLs and the domains they lie below, as a resolver sees them."""

import re
import zlib
from collections.abc import Collection
from urllib.parse import urlsplit

# A host that nothing can be hidden in: no user, no port, no escapes. Everything else takes the slow way.
_PLAIN = re.compile(r"https?://([a-z0-9.-]+)(?=[/?#]|$)")
_DOMAIN = re.compile(r"[^\s/@:]+")


def host_of(url: str) -> str | None:
    """Return the host of a URL in lower case and ASCII (IDNA); None where it has none."""
    found = _PLAIN.match(url)
    if found:
        return found[1].rstrip(".") or None
    try:
        host = urlsplit(url.strip()).hostname
    except ValueError:
        return None
    return _ascii(host) if host else None


def group_of(url: str, groups: int) -> int:
    """Return which of so many groups a URL's host belongs to; a URL without one too belongs to some group."""
    return zlib.crc32((host_of(url) or "").encode("utf-8", "replace")) % groups


def domain_of(text: str) -> str | None:
    """Return a domain of a recipe ("Example.org", "*.example.org", "https://example.org/") in the form of `host_of`."""
    text = text.strip().removeprefix("*.").lstrip(".")
    if "://" in text:
        return host_of(text)
    return _ascii(text) if _DOMAIN.fullmatch(text) else None


def is_below(host: str, domains: Collection[str]) -> bool:
    """Tell whether a host is one of the domains or lies below one: never "notexample.org" below "example.org"."""
    while host:
        if host in domains:
            return True
        _, _, host = host.partition(".")
    return False


def _ascii(host: str) -> str | None:
    host = host.rstrip(".")
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError:
            host = host.casefold()
    return host.lower() or None
