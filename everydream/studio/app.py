"""The addresses of the studio. What a page sends are names of images, which are looked up; never paths."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from PIL import Image as Pillow

from everydream.data.excluding import can_be_listed, switched
from everydream.data.looks import Looks
from everydream.data.shards import picture_at
from everydream.data.texts import decode_text
from everydream.errors import ConfigError
from everydream.studio.edits import Edits, plan_edits, rewording
from everydream.studio.guard import MOST_BYTES, WRITE_HEADER, Refused, Tokens, body_of, entrance, guarded
from everydream.studio.journal import Conflict, Entry, FileChange, Journal, content
from everydream.studio.library import Library
from everydream.studio.page import Snapshot, page, states_of, take_snapshot
from everydream.studio.runs import Watch
from everydream.studio.sidecars import Fixed, Sidecar, content_of, sidecar_of
from everydream.tools.files import write_bytes
from pictures.decode import BadImage, opened, upright_rgb

T = TypeVar("T")

_STATIC = {
    "page.css": ("everydream.report", "page.css", "text/css"),
    "page.js": ("everydream.report", "page.js", "text/javascript"),
    "review.css": ("everydream.review", "page.css", "text/css"),
    "studio.css": ("everydream.studio", "studio.css", "text/css"),
    "studio.js": ("everydream.studio", "studio.js", "text/javascript"),
    "changes.js": ("everydream.studio", "changes.js", "text/javascript"),
    "run.js": ("everydream.studio", "run.js", "text/javascript"),
}
"""Name -> room, file, type: all that is served besides pages and pictures."""
_LARGE_SIDE = 1280
_AT_ONCE = 2
"""Large pictures that are decoded at a time, for each may take half a gigabyte."""


class Studio:
    """One project, served."""

    def __init__(
        self, library: Library, journal: Journal, watch: Watch, cache: Path | None, snapshot: Snapshot | None = None
    ) -> None:
        self.library, self.journal, self.watch, self._cache = library, journal, watch, cache
        self._snapshot = snapshot
        self._lock = asyncio.Lock()
        self._decoding = asyncio.Semaphore(_AT_ONCE)
        self._num_changes = 0
        """Since the snapshot."""

    async def _alone(self, act: Callable[..., T], *arguments: Any) -> T:
        """Do something with the library in a thread, one thing after the other."""
        async with self._lock:
            return await asyncio.to_thread(act, *arguments)

    def _now(self) -> Snapshot:
        """Return the latest snapshot, which may be of before the last changes."""
        if self._snapshot is None:
            self._snapshot, self._num_changes = take_snapshot(self.library, self._cache), 0
        return self._snapshot

    # Pages and pictures

    def render(self, token: str) -> str:
        """Return the page as of now."""
        if self._num_changes:
            self._snapshot = None
        snapshot = self._now()
        return page(self.library, snapshot, token=token, header=WRITE_HEADER, status=self._status())

    def _status(self) -> dict[str, Any]:
        return {"undo": self.journal.next_undo, "redo": self.journal.next_redo, "changes": self._num_changes}

    async def picture(self, request: web.Request) -> web.Response:
        """Answer with a JPEG of an image: the small one of the page, or a large one."""
        name = request.query.get("id", "")
        if (item := self.library.found.get(name)) is None:
            raise Refused(404, "There is no such image.")
        file = self.library.file(item)
        if request.query.get("size") == "large":
            async with self._decoding:
                jpeg = await asyncio.to_thread(self._large, file)
        else:
            jpeg = await asyncio.to_thread(self._small, file)
        if jpeg is None:
            raise Refused(404, "The image cannot be decoded.")
        return web.Response(body=jpeg, content_type="image/jpeg")

    def _small(self, file: Path) -> bytes | None:
        with Looks(self._cache) as looks:
            looks.see([file], self.library.config.data.background)
            return looks.page(file)

    def _large(self, file: Path) -> bytes | None:
        data = self.library.config.data
        try:
            with opened(picture_at(file), data.max_megapixels) as image:
                image.draft(None, (_LARGE_SIDE, _LARGE_SIDE))
                picture = upright_rgb(image, data.background)
        except (BadImage, OSError):
            return None
        picture.thumbnail((_LARGE_SIDE, _LARGE_SIDE), Pillow.Resampling.BICUBIC, reducing_gap=2.0)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    # Captions

    async def caption(self, request: web.Request) -> web.Response:
        """Answer with what is to be edited of an image's caption, or why it cannot be."""
        found = await self._alone(self._sidecar, request.query.get("id", ""))
        if isinstance(found, Fixed):
            return web.json_response({"reason": found.reason})
        return web.json_response({"text": found.text, "stamp": found.stamp, "lines": found.lines, "note": found.note,
                                  "file": found.file.name})  # fmt: skip

    def _sidecar(self, name: str) -> Sidecar | Fixed:
        return sidecar_of(self.library.image(name))

    def edit(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Write one caption."""
        name, text = _text_in(body, "id"), _text_in(body, "text")
        found = self._sidecar(name)
        if isinstance(found, Fixed):
            raise ConfigError(f"The caption of {name} cannot be edited here: {found.reason}.")
        if found.stamp != body.get("stamp"):
            raise Conflict(
                f"The caption of {name} was changed by another program since this page showed it; it is now: "
                f"{found.text!r}. Nothing was written."
            )
        change = FileChange(found.file, found.before, content_of(text, found.file.name))
        return self._do(Entry(f"the caption of {name}", self.library.twins([name]), [change]))

    def preview(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Show what a change of many captions would do."""
        _, edits = self._edits(body)
        return {
            "digest": edits.digest, "same": edits.num_same, "refused": edits.refused,
            "edits": [[edit.name, edit.before, edit.after] for edit in edits.edits],
        }  # fmt: skip

    def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Do what was shown."""
        label, edits = self._edits(body)
        if edits.digest != body.get("digest"):
            raise Conflict("The captions are not those of the preview any more; nothing was written. Look once more.")
        if not edits.edits:
            raise ConfigError("No caption would change.")
        names = [edit.name for edit in edits.edits]
        return self._do(Entry(f"{label} in {len(names):,} captions", self.library.twins(names), edits.changes))

    def _edits(self, body: Mapping[str, Any]) -> tuple[str, Edits]:
        label, reword = rewording(body)
        names = self.library.records(_names_in(body) if body.get("ids") is not None else None)
        return label, plan_edits([self.library.image(name) for name in names], reword)

    # Switching off, undo

    def switch(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Switch images off or on."""
        off, names = body.get("off") is True, list(self.library.records(_names_in(body)))
        if bad := [name for name in names if not can_be_listed(name)]:
            raise ConfigError(f"{bad[0]!r} cannot stand in a list, one name a line; rename it to switch it off.")
        file = self.library.excluded
        if (before := content(file)) is None:
            # An empty list comes first, so that undo leaves that: a run begun meanwhile names the file.
            write_bytes(file, before := switched(None, [], off).encode("utf-8"))
        after = switched(decode_text(before, file.name), names, off).encode("utf-8")
        what = names[0] if len(names) == 1 else f"{len(names):,} images"
        return self._do(Entry(f"switching {what} {'off' if off else 'on'}", names, [FileChange(file, before, after)]))

    def undo(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take the last change back; with `drop`, forget it if that cannot be: the files stay as they are."""
        try:
            return self._after(self.journal.undo(), "Taken back: {}.")
        except Conflict:
            if body.get("drop") is not True:
                raise
            return self._after(self.journal.drop(), "Forgotten, files stay as they are: {}.")

    def redo(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Do again what was taken back."""
        return self._after(self.journal.redo(), "Done again: {}.")

    def look(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Look at all files again."""
        self.library.look()
        self._snapshot = None
        return {"said": "Looked again.", "images": [], **self._status()}

    def _do(self, entry: Entry) -> dict[str, Any]:
        self.journal.do(entry)
        return self._after(entry, "Done: {}.")

    def _after(self, entry: Entry | None, said: str) -> dict[str, Any]:
        """Look again at what changed, and return what a page shows of it."""
        if entry is None:
            return {"said": "There is nothing to take back or do again.", "images": [], **self._status()}
        if any(change.file != self.library.excluded for change in entry.changes):
            self.library.look_at(entry.names)
        self.library.read_off()
        images = states_of(self.library, self._now(), entry.names)
        self._num_changes += 1
        return {"said": said.format(entry.label), "images": images, **self._status()}

    # Addresses

    def application(self, tokens: Tokens, port: int) -> web.Application:
        """Return the server's addresses."""
        app = web.Application(client_max_size=MOST_BYTES, middlewares=[guarded(tokens, port)])

        async def home(request: web.Request) -> web.Response:
            if "token" in request.query:
                return entrance(tokens, port)
            return web.Response(text=await self._alone(self.render, tokens.write), content_type="text/html")

        async def run_page(_: web.Request) -> web.Response:
            return web.Response(text=self.watch.page(), content_type="text/html")

        async def run_now(request: web.Request) -> web.Response:
            return web.json_response(await asyncio.to_thread(self.watch.now, request.query.get("have", "")))

        def changing(act: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[web.Request], Awaitable[Any]]:
            async def handle(request: web.Request) -> web.Response:
                return web.json_response(await self._alone(act, await body_of(request)))

            return handle

        app.router.add_get("/", home)
        app.router.add_get("/picture", self.picture)
        app.router.add_get("/static/{name}", _static)
        app.router.add_get("/caption", self.caption)
        app.router.add_get("/run", run_page)
        app.router.add_get("/run/now", run_now)
        changes = (self.edit, self.preview, self.apply, self.switch, self.undo, self.redo, self.look)
        for act in changes:
            app.router.add_post(f"/{act.__name__}", changing(act))
        return app


async def _static(request: web.Request) -> web.Response:
    found = _STATIC.get(request.match_info["name"])
    if found is None:
        raise Refused(404, "There is no such file.")
    room, name, kind = found
    return web.Response(text=(files(room) / name).read_text(encoding="utf-8"), content_type=kind)


def _text_in(body: Mapping[str, Any], key: str) -> str:
    if not isinstance(text := body.get(key), str):
        raise Refused(400, f"`{key}` is missing.")
    return text


def _names_in(body: Mapping[str, Any]) -> Sequence[str]:
    names = body.get("ids")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise Refused(400, "`ids` is no list of images.")
    return list(dict.fromkeys(names))
