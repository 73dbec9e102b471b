"""Who may ask: the browser of this machine that was given the token, and no other page in it.

- The server listens on 127.0.0.1. The Host of each request must be that address or localhost: a foreign name that leads
  here (DNS rebinding) is refused.
- The printed address has a random token, for which the browser gets a cookie: pages and pictures are asked for by the
  browser itself, which sends no other header. Scripts cannot read it (HttpOnly), and no other site's page sends it
  (SameSite=Strict).
- Cookies do not know ports, so another server of this machine may see it. What changes anything must therefore also
  come from our own page by its Origin, and carry a second token, which stands in that page alone, in a header.
- There are no CORS headers, so no other page reads an answer.
"""

import secrets
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from everydream.errors import EveryDreamError
from everydream.studio.journal import Conflict

WRITE_HEADER = "X-Studio-Token"
MOST_BYTES = 8 * 2**20
"""Of a request's body: the names of 100,000 images."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_STYLED = POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
"""For the page of a run: matplotlib writes style attributes into its charts."""
STYLED_PATHS = ("/run",)


class Tokens(NamedTuple):
    """The secrets of one session."""

    read: str
    write: str

    @staticmethod
    def new() -> "Tokens":
        """Return two random ones."""
        return Tokens(secrets.token_urlsafe(32), secrets.token_urlsafe(32))


class Refused(Exception):  # noqa: N818 - an answer
    """A request that is not answered, with its status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def guarded(tokens: Tokens, port: int) -> Middleware:
    """Return the middleware that answers only who may ask, and says errors as JSON."""
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _require(request, tokens, hosts, f"studio_{port}")
            response = await handler(request)
        except Refused as error:
            response = said(error.status, str(error))
        except Conflict as error:
            response = said(409, str(error))
        except EveryDreamError as error:
            response = said(400, str(error))
        except web.HTTPException as error:
            response = said(error.status, error.reason)
        response.headers.update(_HEADERS)
        response.headers["Content-Security-Policy"] = _STYLED if request.path in STYLED_PATHS else POLICY
        return response

    return guard


def said(status: int, error: str) -> web.Response:
    """Return an error in words that a page can show."""
    return web.json_response({"error": error}, status=status)


def _require(request: web.Request, tokens: Tokens, hosts: set[str], cookie: str) -> None:
    """Raise Refused unless the request may be answered."""
    if request.host not in hosts:
        raise Refused(403, f"This server is called {' or '.join(sorted(hosts))}, not {request.host[:200]!r}.")
    if request.path == "/" and "token" in request.query:
        if not _same(request.query["token"], tokens.read):
            raise Refused(403, "The token is not that of this session. Open the address that the command printed.")
        return
    if not _same(request.cookies.get(cookie, ""), tokens.read):
        raise Refused(403, "Open the address that the command printed: it holds the token of this session.")
    if request.method in ("GET", "HEAD"):
        return
    if request.headers.get("Origin") not in {f"http://{host}" for host in hosts}:
        raise Refused(403, "Changes are taken from the studio's own page alone.")
    if not _same(request.headers.get(WRITE_HEADER, ""), tokens.write):
        raise Refused(403, "The page is of an earlier session. Load it again.")
    if request.content_type != "application/json":
        raise Refused(415, "Changes are sent as application/json.")


def _same(given: str, wanted: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def entrance(tokens: Tokens, port: int) -> web.Response:
    """Return the answer to the printed address: the cookie, and the way on.

    Not a redirect: after one from another site's link a browser withholds the cookie.
    """
    text = (
        '<!doctype html><meta http-equiv="refresh" content="0;url=/"><link rel="icon" href="data:,">'
        '<title>studio</title><a href="/">Go on</a>'
    )
    response = web.Response(text=text, content_type="text/html")
    response.set_cookie(f"studio_{port}", tokens.read, httponly=True, samesite="Strict", path="/")
    return response


async def body_of(request: web.Request) -> Mapping[str, Any]:
    """Return the object that a page sent. Raises Refused."""
    try:
        found = await request.json()
    except (ValueError, RecursionError) as error:
        raise Refused(400, "The request is no JSON.") from error
    if not isinstance(found, dict):
        raise Refused(400, "The request is no JSON object.")
    return found
