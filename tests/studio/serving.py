"""A studio that is served by a thread of this process, asked as a browser asks."""

import asyncio
import hashlib
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from conftest import make_images

from everydream.config import RunConfig, load_config
from everydream.studio.app import Studio
from everydream.studio.guard import WRITE_HEADER, Tokens
from everydream.studio.journal import Journal
from everydream.studio.library import Library
from everydream.studio.runs import Watch
from everydream.studio.server import _listening


class Served:
    """A studio, and its address."""

    def __init__(self, studio: Studio, port: int) -> None:
        self.studio, self.port, self.tokens = studio, port, Tokens.new()
        self.address = f"http://127.0.0.1:{port}/?token={self.tokens.read}"

    def raw(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, bytes, Any]:
        """Ask as the page would; a header given as None is left out."""
        sent = {
            "Host": f"127.0.0.1:{self.port}", "Cookie": f"studio_{self.port}={self.tokens.read}",
            "Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json",
            WRITE_HEADER: self.tokens.write,
        } | {name.replace("_", "-"): value for name, value in headers.items()}  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with closing(connection):
            connection.putrequest(method, path, skip_host=True)
            for name, value in sent.items():
                if value is not None:
                    connection.putheader(name, value)
            if content is not None:
                connection.putheader("Content-Length", str(len(content)))
            connection.endheaders(content)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

    def ask(self, path: str, **headers: str | None) -> Any:
        """Return what the server says, which must be good."""
        status, content, _ = self.raw("GET", path, **headers)
        assert status == 200, content
        return json.loads(content)

    def tell(self, path: str, check: int = 200, **body: Any) -> Any:
        """Change something."""
        status, content, _ = self.raw("POST", path, body)
        assert status == check, content
        return json.loads(content)


@contextmanager
def served(config: Path, journal: Path | None = None, body_s: float = 0.0) -> Iterator[Served]:
    """Serve a project."""
    settings: RunConfig = load_config(config)
    library = Library(settings, config)
    library.look()
    watch = Watch(Path(settings.runs_dir), settings.project, None, None, body_s)
    socket, loop, done = _listening(0), asyncio.new_event_loop(), threading.Event()
    made: list[Served] = []

    async def start() -> web.AppRunner:
        studio = Studio(library, Journal(journal), watch, None)
        made.append(Served(studio, socket.getsockname()[1]))
        runner = web.AppRunner(studio.application(made[0].tokens, made[0].port), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, socket).start()
        return runner

    def live() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        done.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    assert done.wait(30)
    try:
        yield made[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


def small_project(folder: Path, **data: Any) -> Path:
    """Write a project of two folders, with sidecars of several kinds; return its YAML."""
    mine = make_images(folder / "mine", 6, seed=1)
    make_images(folder / "real", 4, sizes=((96, 96),), seed=2)
    (mine / "a picture of thing 1_(1).txt").write_bytes(b"\xef\xbb\xbfred ball,  on grass\r\n")
    (mine / "a picture of thing 2_(1).caption").write_text("a red ball and a redder one\n")
    (mine / "a picture of thing 3_(1).yaml").write_text("main_prompt: a red ball # mine\nmultiply: 2\n")
    (mine / "a picture of thing 4_(1).json").write_text('{"caption": "a red ball of json"}')
    raw = {
        "project": "trial", "model": {"path": "none"}, "runs_dir": str(folder / "runs"),
        "data": {"resolution": 64, "bucket_step": 16, "sources": [
            {"path": str(mine)},
            {"path": str(folder / "real"), "label": "a real thing", "role": "ground_truth"}], **data},
        "train": {"batch_size": 3},
    }  # fmt: skip
    config = folder / "project.yaml"
    config.write_text(json.dumps(raw))  # JSON is YAML
    return config


def tree(folder: Path) -> dict[str, str]:
    """Return what a folder holds, file by file, without runs."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def thing(number: int) -> str:
    """Return the name of an image of the small project."""
    return f"mine/a picture of thing {number}_(1).png"
