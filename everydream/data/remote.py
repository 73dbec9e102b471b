"""Files on other machines, through fsspec: HTTP, S3, GCS, the hub and whatever else it knows.

A remote place travels through the code as a Path whose first part is a scheme (`https:/host/set/000.tar`), for paths of
sources are put together and taken apart everywhere; `url_of` gives its URL back. Credentials are fsspec's business
(environment, configuration files). What goes wrong is an OSError whose text says which server said what.

A redirect may lead anywhere, so of private addresses only those of the host that the source itself names are connected
to, and those that EVERYDREAM_ALLOW_PRIVATE opens (addresses or networks, with commas).
"""

import asyncio
import errno
import http
import ipaddress
import os
import re
import socket
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from everydream.errors import ConfigError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
_TRIES = 4
_FIRST_WAIT_S = 0.5
_CONNECT_S, _SILENCE_S = 15.0, 30.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
ALLOW_PRIVATE = "EVERYDREAM_ALLOW_PRIVATE"


class Stamp(NamedTuple):
    """What tells a remote file from another one of the same name."""

    size: int
    mark: str
    """Its ETag, else its date; "" where the server gives neither."""


def is_url(text: str) -> bool:
    """Tell whether the path of a source is a URL. A letter and a colon is a drive."""
    return _SCHEME.match(text) is not None


def url_of(path: Path) -> str | None:
    """Return the URL of a remote place, None for one on this machine."""
    text = path.as_posix()
    match = _SCHEME.match(text)
    return f"{match[1]}://{text[match.end() :]}" if match else None


def stamp_of(url: str) -> Stamp:
    """Return size and mark of a remote file. Raises OSError."""
    found = _asked(url, lambda system, path: system.info(path))
    if not found.get("size"):
        raise OSError(errno.EIO, "the server does not say how large it is", url)
    marks = (found.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "Last-Modified", "mtime", "updated"))
    return Stamp(int(found["size"]), str(next((mark for mark in marks if mark), "")))


def read_range(url: str, start: int, end: int) -> bytes:
    """Return the bytes from `start` up to `end`. Raises OSError."""
    content: bytes = _asked(url, lambda system, path: system.cat_file(path, start=start, end=end))
    if len(content) != end - start:
        said = "the server ignores byte ranges" if len(content) > end - start else "it is shorter than it was"
        raise OSError(errno.EIO, said, url)
    return content


def read_all(url: str) -> bytes:
    """Return a remote file's content. Raises OSError."""
    content: bytes = _asked(url, lambda system, path: system.cat_file(path))
    return content


def files_below(url: str) -> Iterator[tuple[str, Stamp]]:
    """Yield the files below a folder of an object store by their paths in it, sorted. Raises OSError."""
    found: dict[str, dict[str, Any]] = _asked(url, lambda system, path: system.find(path, detail=True))
    _, folder = _system(url)
    for name in sorted(found):
        below = name.removeprefix(folder.rstrip("/")).lstrip("/")
        marks = (found[name].get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated"))
        yield below, Stamp(int(found[name].get("size") or 0), str(next((mark for mark in marks if mark), "")))


def names_in(url: str) -> list[str]:
    """Return the names of the files right in a folder of an object store; web servers list none. Raises OSError."""
    if url.lower().startswith("http"):
        return []
    found: list[str] = _asked(url, lambda system, path: system.ls(path, detail=False))
    return [name.rstrip("/").rpartition("/")[2] for name in found]


def _asked(url: str, ask: Any) -> Any:
    """Return what a file system answers; what may pass is asked again, with growing pauses."""
    for left in reversed(range(_TRIES)):
        try:
            return ask(*_system(url))
        except ConfigError:
            raise
        except Exception as error:
            # fsspec's systems raise what their libraries do: aiohttp's, botocore's, OSError, their own.
            cause = _cause(error)
            reason = _refusal(cause)
            if reason is not None:
                raise OSError(_errno(cause), reason, url) from error
            if not left:
                raise OSError(errno.EIO, f"no answer after {_TRIES} tries ({_words(cause)})", url) from error
            time.sleep(_FIRST_WAIT_S * 2 ** (_TRIES - 1 - left))
    raise AssertionError("the last try returns or raises")


def _cause(error: BaseException) -> BaseException:
    """Return what is behind an error: asked about a file, fsspec calls everything a file that is not there."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _refusal(error: BaseException) -> str | None:
    """Return why asking again is no use, None where it may be of some."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status == http.HTTPStatus.NOT_FOUND:
        return "there is no such file on the server"
    if isinstance(status, int):
        return None if status in _PASSING else f"the server answered {status} {getattr(error, 'message', '')}".strip()
    if isinstance(error, PermissionError):
        return f"no permission ({_words(error)})"
    lasting = isinstance(error, ImportError | ValueError | TypeError | AttributeError | NotImplementedError)
    return _words(error) if lasting or "private address" in str(error) else None


def _errno(error: BaseException) -> int:
    return errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@lru_cache(64)
def _options(scheme: str, host: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    return {"get_client": _Clients(frozenset(_addresses(host)))}


def _system(url: str) -> tuple[Any, str]:
    import fsspec  # noqa: PLC0415 - few runs need it

    parts = urlsplit(url)
    try:
        system, path = fsspec.core.url_to_fs(url, **_options(parts.scheme.lower(), parts.hostname or ""))
    except ImportError as error:
        raise ConfigError(f"{url}: reading this needs another package: {error}") from error
    # What a listing said before may have changed since.
    system.invalidate_cache()
    return system, str(path)


class _Clients:
    """Makes the HTTP sessions; compares equal, so that fsspec keeps one system for a host."""

    def __init__(self, own: frozenset[str]) -> None:
        self._own = own

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Clients) and other._own == self._own

    def __hash__(self) -> int:
        return hash(self._own)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Clients, (self._own,)

    def __repr__(self) -> str:
        return f"_Clients({sorted(self._own)})"

    async def __call__(self, loop: Any = None, **options: Any) -> Any:
        import aiohttp  # noqa: PLC0415

        connector = aiohttp.TCPConnector(loop=loop or asyncio.get_running_loop(), socket_factory=self._socket)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, **options)

    def _socket(self, address_info: Any) -> socket.socket:
        """Open a socket to an address, which is asked about here, where names and redirects are behind us."""
        family, kind, protocol, _, address = address_info
        if address[0] not in self._own and not _is_open(address[0]):
            raise OSError(errno.EACCES, f"it leads to {address[0]}, a private address; {ALLOW_PRIVATE} can open it")
        return socket.socket(family, kind, protocol)


def _addresses(host: str) -> Iterator[str]:
    try:
        yield from (str(found[4][0]) for found in socket.getaddrinfo(host, None))
    except OSError:
        return  # the request will say so


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_METADATA = ipaddress.ip_address("168.63.129.16")
"""A cloud's own service at an address that looks public (Azure); the others' are link-local or private."""


def _inner(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address; of an IPv6 one that stands for an IPv4 one (mapped, NAT64, 6to4) the latter."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_open(text: str) -> bool:
    inner = _inner(text)
    opened = filter(None, map(str.strip, os.environ.get(ALLOW_PRIVATE, "").split(",")))
    try:
        networks = [ipaddress.ip_network(part) for part in opened]
    except ValueError as error:
        raise ConfigError(f"{ALLOW_PRIVATE}: {error}; write addresses or networks, such as 10.1.0.0/16") from error
    is_public = inner.is_global and not inner.is_multicast and inner != _METADATA
    return is_public or any(inner in network for network in networks)
