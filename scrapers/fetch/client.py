"""One request, one hop: the response's body in a file, or where it redirects to, or why neither."""

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from typing_extensions import Self
from yarl import URL

from pictures.sniff import HEAD_BYTES, content
from scrapers.errors import WriteError
from scrapers.fetch.addresses import Network, is_opened, parse_opened, refusal
from scrapers.fetch.optout import opted_out
from scrapers.fetch.verdicts import NO_SUCH_NAME, REFUSED_ADDRESS, status_verdict, verdict_of
from scrapers.settings import FetchSettings
from scrapers.types import Reason, Verdict

FORMATS = frozenset({"JPEG", "PNG", "GIF", "BMP", "WebP", "AVIF"})
"""Contents that are fetched to the end, by the names of `pictures.sniff`."""

PROJECT = "https://github.com/victorchall/EveryDream"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BLOCK_BYTES = 1 << 18
"""How much of a body is held in memory before it goes to the file."""
_LOOKUPS = 64
_NEGATIVE_TTL_S = {socket.EAI_NONAME: 3600.0, socket.EAI_AGAIN: 30.0}
_NEGATIVE_MAX = 20_000


@dataclass(frozen=True, slots=True)
class Redirect:
    """Another address has it."""

    url: URL


@dataclass(frozen=True, slots=True)
class Body:
    """The body is in the file."""

    num_bytes: int


def user_agent(contact: str) -> str:
    """Return what we call ourselves: the project, and who runs it if that is told."""
    from scrapers import __version__  # noqa: PLC0415 - the package's own docstring comes first

    operator = f"; operator: {' '.join(contact.split())}" if contact.strip() else ""
    return f"EveryDream/{__version__} (collects images for training; +{PROJECT}{operator})"


def parse_url(text: str) -> URL | None:
    """Return an http(s) URL without fragment and credentials, its odd characters quoted; None if it is none."""
    try:
        url = URL(text.strip())
        if url.scheme not in ("http", "https") or not url.host or url.port is None:
            return None
        # The name as DNS takes it: too long a label is found here and not by a thread of the resolver.
        url.host.encode("idna")
        return url.with_user(None).with_fragment(None)
    except (ValueError, UnicodeError):
        return None


class _Resolver(AbstractResolver):
    """The system's resolver, remembering which names do not exist."""

    def __init__(self) -> None:
        self._inner = ThreadedResolver()
        self._failed: dict[str, tuple[float, OSError]] = {}
        self._slots = asyncio.Semaphore(_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the host's addresses; raise the OSError of last time while it is fresh."""
        until, error = self._failed.get(host, (0.0, OSError()))
        if until > time.monotonic():
            raise error.with_traceback(None)  # or it would grow with every time
        try:
            async with self._slots:
                return await self._inner.resolve(host, port, family)
        except UnicodeError as bad:  # a name that cannot be one
            raise socket.gaierror(socket.EAI_NONAME, str(bad)) from bad
        except OSError as failure:
            if len(self._failed) >= _NEGATIVE_MAX:
                self._failed.clear()
            kept_s = _NEGATIVE_TTL_S[socket.EAI_NONAME if failure.errno in NO_SUCH_NAME else socket.EAI_AGAIN]
            self._failed[host] = (time.monotonic() + kept_s, failure)
            raise

    async def close(self) -> None:
        """Nothing is held open."""


class Client:
    """One session for all sites: no cookies, no redirects of its own, no address that is not allowed."""

    def __init__(self, settings: FetchSettings) -> None:
        self.settings = settings
        self.opened: Sequence[Network] = parse_opened(settings.allow_private)[0]
        self.num_bytes = 0
        """Bytes of bodies received."""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_LOOKUPS, "lookup"))
        settings = self.settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # `schedule` limits; a queue here would count as the site's slowness
                resolver=_Resolver(),
                ttl_dns_cache=600,
                dns_cache_max_size=_NEGATIVE_MAX,
                socket_factory=self._socket,
                keepalive_timeout=10,
            ),
            timeout=aiohttp.ClientTimeout(
                total=settings.total_timeout_s,
                connect=settings.connect_timeout_s,
                sock_connect=settings.connect_timeout_s,
                sock_read=settings.read_timeout_s,
            ),
            headers={
                "User-Agent": user_agent(settings.contact),
                "Accept": "image/avif,image/webp,image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Make the socket for an address, or refuse: every connection of the process passes here."""
        family, kind, protocol, _, target = address
        if problem := refusal(str(target[0]), int(target[1]), self.opened):
            raise OSError(REFUSED_ADDRESS + problem)
        return socket.socket(family=family, type=kind, proto=protocol)

    def is_opened(self, host: str) -> bool:
        """Whether a host is written as an address that the user has opened."""
        try:
            return is_opened(ipaddress.ip_address(host), self.opened)
        except ValueError:
            return False

    async def fetch(
        self, url: URL, target: Path, look: Callable[[bytes], Verdict | None] | None = None
    ) -> Body | Redirect | Verdict:
        """Bring an image's bytes to `target`, which is whole or absent afterwards.

        `look` sees the first bytes of a large body and may end it. Raises WriteError if the disk does not take it.
        """
        try:
            assert self._session is not None
            async with self._session.get(url, allow_redirects=False) as response:
                outcome = self._judge(response) or await self._receive(response, target, look)
                if isinstance(outcome, Body):
                    return outcome
                # What is left of the body is not wanted: close instead of reading it to reuse the connection.
                response.close()
                return outcome
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            return verdict_of(error)

    async def text(self, url: URL, max_bytes: int) -> tuple[int, str, Verdict | None] | Redirect | Verdict:
        """Return (status, text, throttling if any) of a small text such as robots.txt; longer ones are cut."""
        try:
            assert self._session is not None
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    return self._redirect(response)
                held = bytearray()
                if response.status == 200:
                    async for chunk in response.content.iter_any():
                        held += chunk
                        if len(held) >= max_bytes:
                            break
                response.close()
                verdict = status_verdict(response) if response.status >= 400 else None
                return response.status, held[:max_bytes].decode("utf-8-sig", "replace"), verdict
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            return verdict_of(error)

    def _judge(self, response: aiohttp.ClientResponse) -> Redirect | Verdict | None:
        """Return what the head of a response decides, if anything."""
        if response.status in _REDIRECTS:
            return self._redirect(response)
        if response.status != 200:
            return status_verdict(response)
        if self.settings.opt_out and (header := opted_out(response.headers.items())):
            return Verdict(Reason.OPT_OUT, header)
        limit = self._max_bytes
        if response.content_length is not None and response.content_length > limit:
            return Verdict(Reason.TOO_LARGE, f"{response.content_length:,} bytes, the limit is {limit:,}")
        return None

    @property
    def _max_bytes(self) -> int:
        return int(self.settings.max_megabytes * 1e6)

    def _redirect(self, response: aiohttp.ClientResponse) -> Redirect | Verdict:
        location = response.headers.get("Location", "")
        try:
            joined = parse_url(str(response.url.join(URL(location)))) if location else None
        except ValueError:
            joined = None
        if joined is None:
            return Verdict(Reason.REDIRECT_REFUSED, f"{response.status} to {location[:200] or 'nowhere'}")
        return Redirect(joined)

    async def _receive(
        self, response: aiohttp.ClientResponse, target: Path, look: Callable[[bytes], Verdict | None] | None
    ) -> Body | Verdict:
        """Stream the body into the file under another name, then give it its own."""
        partial = target.with_name(target.name + ".part")
        try:
            outcome = await self._stream(response, partial, look)
            if isinstance(outcome, Body):
                _rename(partial, target)
            return outcome
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    async def _stream(
        self, response: aiohttp.ClientResponse, partial: Path, look: Callable[[bytes], Verdict | None] | None
    ) -> Body | Verdict:
        settings, limit = self.settings, self._max_bytes
        held, written, sniffed = bytearray(), 0, False
        window_start, window_bytes = time.monotonic(), 0
        async for chunk in response.content.iter_any():
            held += chunk
            total = written + len(held)
            self.num_bytes += len(chunk)
            if total > limit:
                return Verdict(Reason.TOO_LARGE, f"more than {limit:,} bytes")
            if not sniffed and len(held) >= 32:
                sniffed = True
                if verdict := not_an_image(bytes(held[:HEAD_BYTES])):
                    return verdict
            window_bytes += len(chunk)
            elapsed_s = time.monotonic() - window_start
            if elapsed_s >= settings.read_timeout_s:
                if window_bytes < settings.min_bytes_per_s * elapsed_s:
                    return Verdict(Reason.TOO_SLOW, f"{window_bytes / elapsed_s:.0f} bytes/s")
                window_start, window_bytes = time.monotonic(), 0
            if len(held) >= _BLOCK_BYTES:
                if written == 0 and look is not None and (verdict := look(bytes(held))):
                    return verdict
                _write(partial, held, "ab" if written else "wb")
                written += len(held)
                held.clear()
        if not sniffed and (verdict := not_an_image(bytes(held))):
            return verdict
        _write(partial, held, "ab" if written else "wb")
        return Body(written + len(held))


def not_an_image(head: bytes) -> Verdict | None:
    """Return the verdict over a body that begins so, if it is none of the formats that are collected."""
    what, _ = content(head)
    return None if what in FORMATS else Verdict(Reason.NOT_IMAGE, what)


def _write(path: Path, block: bytearray, mode: Literal["wb", "ab"]) -> None:
    try:
        with path.open(mode) as file:
            file.write(block)
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def _rename(path: Path, target: Path) -> None:
    try:
        path.replace(target)
    except OSError as error:
        raise WriteError(f"{target} cannot be written: {error.strerror or error}") from error
