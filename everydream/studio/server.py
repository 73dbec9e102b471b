"""The server of the studio: on this machine alone, until Ctrl-C."""

import asyncio
import socket
import sys
import webbrowser
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

from aiohttp import web

from everydream.config import RunConfig
from everydream.data.looks import cache_folder
from everydream.errors import ConfigError
from everydream.studio.app import Studio
from everydream.studio.guard import Tokens
from everydream.studio.journal import Journal
from everydream.studio.library import Library
from everydream.studio.runs import Watch


def journal_file(config: Path) -> Path:
    """Return where the changes of a project are remembered: in the user's cache."""
    return cache_folder() / "studio" / f"{blake2b(str(config.absolute()).encode(), digest_size=12).hexdigest()}.json"


def serve(
    config: RunConfig, path: Path, *, port: int, run: Path | None, browser: bool, cache: Path | None,
    progress: Callable[[int, int], None],
) -> None:  # fmt: skip
    """Serve a project until Ctrl-C; `path` is its YAML, port 0 any that is free. Raises ConfigError, DataError."""
    listening = _listening(port)
    library = Library(config, path)
    library.look(progress)
    watch = Watch(Path(config.runs_dir), config.project, run, cache)
    asyncio.run(_serve(library, Journal(journal_file(path)), watch, cache, listening, browser))


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


async def _serve(
    library: Library, journal: Journal, watch: Watch, cache: Path | None, listening: socket.socket, browser: bool
) -> None:
    port, tokens = int(listening.getsockname()[1]), Tokens.new()
    runner = web.AppRunner(
        Studio(library, journal, watch, cache).application(tokens, port), access_log=None, shutdown_timeout=2.0
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        address = f"http://127.0.0.1:{port}/?token={tokens.read}"
        print(f"Studio of {library.config.project}: {address}\nCtrl-C ends it; every change is on disk already.")
        sys.stdout.flush()
        if browser:
            await asyncio.to_thread(webbrowser.open, address)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
