"""The server of the studio: on this machine alone, until Ctrl-C."""

import asyncio
import socket
import sys
import webbrowser
from hashlib import blake2b
from pathlib import Path

from aiohttp import web

from everydream.config import RunConfig
from everydream.data.base import cache_folder
from everydream.errors import ConfigError
from everydream.studio.app import Studio
from everydream.studio.guard import Tokens
from everydream.studio.journal import Journal
from everydream.studio.library import Library
from everydream.studio.page import take_snapshot
from everydream.studio.runs import Watch
from everydream.tools.progress import counting


def journal_file(config: Path) -> Path:
    """Return where the changes of a project are remembered: in the user's cache."""
    return cache_folder() / "studio" / f"{blake2b(str(config.absolute()).encode(), digest_size=12).hexdigest()}.json"


def serve(config: RunConfig, path: Path, *, port: int, run: Path | None, browser: bool, cache: Path | None) -> None:
    """Serve a project until Ctrl-C; `path` is its YAML, port 0 any that is free. Raises ConfigError, DataError."""
    listening = _listening(port)
    library = Library(config, path)
    library.look()
    with counting("Looking at images", len(library.found)) as show:
        snapshot = take_snapshot(library, cache, lambda done, _: show(done, ""))
    watch = Watch(Path(config.runs_dir), config.project, run, cache)
    studio = Studio(library, Journal(journal_file(path)), watch, cache, snapshot)
    asyncio.run(_serve(studio, config.project, listening, browser))


def _listening(port: int) -> socket.socket:
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(("127.0.0.1", port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"--port {port} cannot be used ({error.strerror}). Choose another, or leave it out for a free one."
        ) from error
    return found


async def _serve(studio: Studio, project: str, listening: socket.socket, browser: bool) -> None:
    port, tokens = int(listening.getsockname()[1]), Tokens.new()
    runner = web.AppRunner(studio.application(tokens, port), access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        address = f"http://127.0.0.1:{port}/?token={tokens.read}"
        print(f"Studio of {project}: {address}\nCtrl-C ends it; every change is on disk already.")
        sys.stdout.flush()
        if browser:
            # By the address itself: a browser in a sandbox of its own (snap) finds no page that leads there.
            await asyncio.to_thread(webbrowser.open, address)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
