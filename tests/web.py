"""A web server on this machine that serves a folder as object stores do: byte ranges, ETags, and faults on demand."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves `folder`; counts what is asked of it."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: Counter[str] = Counter()
        """By method and name, e.g. "GET 000.tar"."""
        self.statuses: dict[str, list[int]] = {}
        """Name -> statuses that its next requests are answered with; the last one stays."""
        self.redirects: dict[str, str] = {}
        self.ranges = True
        self.marks = True
        """Whether it says what tells a file from another one of the same name."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        server, name = self.server, self.path.lstrip("/")
        server.asked[f"{self.command} {name}"] += 1
        statuses = server.statuses.get(name, [])
        status = (statuses.pop(0) if len(statuses) > 1 else statuses[0]) if statuses else 200
        path = server.folder / name
        if name in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if status != 200 or not path.is_file():
            self.send_error(status if status != 200 else 404)
            return
        content = path.read_bytes()
        mark = md5(content).hexdigest()
        total, wanted = len(content), self.headers.get("Range") if server.ranges else None
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(content) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if server.marks:
            self.send_header("ETag", f'"{mark}"')
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body:
            with contextlib.suppress(OSError):
                self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Serve a folder inside the block."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
