"""Web servers for tests: real sockets on this machine, and every way to behave badly.

    with Site() as site:
        site["/a.jpg"] = ok(jpeg(1))
        site["/b.jpg"] = in_turn(status(503), ok(jpeg(2)))
        ... fetch site.url("/a.jpg") ...
        assert site.count("/a.jpg") == 1

All servers of a process share one thread and event loop. A behaviour is an async function that writes the answer; it
returns whether the connection may be used again.
"""

import asyncio
import contextlib
import io
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Hit:
    """A request that has come."""

    time: float
    """By the monotonic clock."""
    path: str
    """As it was sent, query included."""
    headers: Mapping[str, str]
    """By lower-case names."""


Headers = Mapping[str, object] | Sequence[tuple[str, object]]
Behaviour = Callable[[Hit, asyncio.StreamWriter], Awaitable[bool]]


@lru_cache(None)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="servers").start()
    return loop


@dataclass
class Site:
    """One server: `address` and a port of the system's choice."""

    address: str = "127.0.0.1"
    context: ssl.SSLContext | None = None
    routes: dict[str, Behaviour] = field(default_factory=dict)
    hits: list[Hit] = field(default_factory=list)
    num_bytes: int = 0
    """Bytes of bodies that endless answers could hand over."""
    most_at_once: int = 0
    """Answers in the making at the same time, robots.txt not counted."""
    _at_once: int = 0

    def __enter__(self) -> "Site":
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), _loop()).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), _loop()).result(10)

    def __setitem__(self, path: str, behaviour: Behaviour) -> None:
        self.routes[path] = behaviour

    @property
    def origin(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self.context else 'http'}://{host}:{self.port}"

    def url(self, path: str) -> str:
        return self.origin + path

    def count(self, path: str) -> int:
        return sum(hit.path == path for hit in self.hits)

    def times(self, path: str = "") -> list[float]:
        """Return when a path (without one: everything but robots.txt) was asked for."""
        return [hit.time for hit in self.hits if (hit.path == path if path else hit.path != "/robots.txt")]

    @property
    def asked(self) -> list[str]:
        """Return what was asked for but robots.txt, in order."""
        return [hit.path for hit in self.hits if hit.path != "/robots.txt"]

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, self.address, 0, ssl=self.context, backlog=500)

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while hit := await _request(reader, writer):
                self.hits.append(hit)
                behaviour = self.routes.get(hit.path.partition("?")[0], self.routes.get("*", status(404)))
                counted = hit.path != "/robots.txt"
                self._at_once += counted
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    if not await behaviour(hit, writer):
                        break
                finally:
                    self._at_once -= counted
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort() if getattr(writer, "reset", False) else writer.close()


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hit | None:
    first = await reader.read(1)
    if first == b"\x16":  # TLS, where there is none
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    if first in (b"", b"\x16"):
        return None
    line = first + await reader.readline()
    headers = {}
    while (header := await reader.readline()).strip():
        name, _, value = header.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    return Hit(time.monotonic(), line.decode("latin-1").split(" ")[1], headers)


# Behaviours

_PHRASES = {200: "OK", 302: "Found", 404: "Not Found", 429: "Too Many Requests", 503: "Service Unavailable"}


def head(code: int, headers: Headers) -> bytes:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    lines = [f"HTTP/1.1 {code} {_PHRASES.get(code, 'Whatever')}", *(f"{name}: {value}" for name, value in pairs)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def status(code: int, headers: Headers = (), body: bytes = b"") -> Behaviour:
    """Answer with a status and headers; the body's length is told."""
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)

    async def answer(hit: Hit, writer: asyncio.StreamWriter) -> bool:
        writer.write(head(code, [("Content-Length", len(body)), *pairs]) + body)
        await writer.drain()
        return True

    return answer


def ok(body: bytes, kind: str = "image/jpeg", headers: Headers = ()) -> Behaviour:
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    return status(200, [("Content-Type", kind), *pairs], body)


def redirect(target: str, code: int = 302) -> Behaviour:
    return status(code, {"Location": target})


def raw(*pieces: bytes, pause_s: float = 0.0, then_s: float = 0.0, reset: bool = False) -> Behaviour:
    """Send bytes as they are, with pauses between, and hang up after `then_s`."""

    async def answer(hit: Hit, writer: asyncio.StreamWriter) -> bool:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        await asyncio.sleep(then_s)
        writer.reset = reset  # type: ignore[attr-defined]
        return False

    return answer


def endless(site: Site, first: bytes, more: bytes, headers: Mapping[str, object], pause_s: float = 0.0) -> Behaviour:
    """Send `first` and then `more` again and again until the other side hangs up; count what got through."""

    async def answer(hit: Hit, writer: asyncio.StreamWriter) -> bool:
        writer.write(head(200, headers) + first)
        while True:
            writer.write(more)
            await writer.drain()
            site.num_bytes += len(more)
            if pause_s or writer.is_closing():
                await asyncio.sleep(pause_s)
            if writer.is_closing():
                return False

    return answer


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Behave one way after another; the last one stays."""
    left = list(behaviours)

    async def answer(hit: Hit, writer: asyncio.StreamWriter) -> bool:
        return await (left.pop(0) if len(left) > 1 else left[0])(hit, writer)

    return answer


def after(seconds: float, behaviour: Behaviour) -> Behaviour:
    async def answer(hit: Hit, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(seconds)
        return await behaviour(hit, writer)

    return answer


# Pictures


def pixels(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return a soft picture that no other seed has."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    return encoded(pixels(seed, size), "JPEG", **{"quality": 90, **options})


def png(seed: int, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    return encoded(pixels(seed, size), "PNG", **options)


@contextlib.contextmanager
def closed_port() -> Any:
    """Yield the URL of a port that nobody listens on."""
    with Site() as site:
        url = site.origin
    yield url
