"""Only the browser that was given the token reads, and only the studio's own page writes."""

import io
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from studio.serving import Served, served, small_project, thing, tree


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # In a folder of its own: what lies beside it is looked at too.
    with served(small_project(tmp_path_factory.mktemp("guard") / "project")) as found:
        yield found


def folder(studio: Served) -> Path:
    return studio.studio.library.excluded.parent


@pytest.mark.parametrize("path", ["/", "/picture?id=x", "/static/page.js", "/caption?id=x", "/run", "/run/now"])
def test_nothing_is_read_without_the_token(studio: Served, path: str) -> None:
    for cookie in (None, "", f"studio_{studio.port}=wrong", f"studio_1={studio.tokens.read}"):
        assert studio.raw("GET", path, Cookie=cookie)[0] == 403
    assert studio.raw("GET", "/?token=wrong")[0] == 403 and studio.raw("GET", "/run?token=" + studio.tokens.read,
                                                                       Cookie=None)[0] == 403  # fmt: skip


def test_the_printed_address_gives_the_cookie(studio: Served) -> None:
    status, content, headers = studio.raw("GET", f"/?token={studio.tokens.read}", Cookie=None)
    cookie = headers["Set-Cookie"]
    assert status == 200 and "HttpOnly" in cookie and "SameSite=Strict" in cookie and studio.tokens.read in cookie
    assert studio.tokens.write.encode() not in content


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost:1", "127.0.0.1.nip:{port}"]
)
def test_a_foreign_host_is_refused(studio: Served, host: str) -> None:
    """DNS rebinding: a foreign name that leads to this machine."""
    host = host.format(port=studio.port)
    assert studio.raw("GET", "/run", Host=host)[0] == 403
    assert studio.raw("GET", f"/?token={studio.tokens.read}", Host=host)[0] == 403
    assert studio.raw("GET", "/run", Host=f"localhost:{studio.port}")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": None}, 403), ({"Origin": "null"}, 403), ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403), ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"X_Studio_Token": None}, 403), ({"X_Studio_Token": "wrong"}, 403), ({"Cookie": None}, 403),
        ({"Content_Type": "text/plain"}, 415), ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/switch", "/undo"])
def test_no_other_page_writes(studio: Served, headers: dict[str, str | None], status: int, path: str) -> None:
    before = tree(folder(studio))
    filled = {name: value.format(port=studio.port) if value else value for name, value in headers.items()}
    assert studio.raw("POST", path, {"ids": [thing(0)], "off": True}, **filled)[0] == status
    assert tree(folder(studio)) == before


def test_what_is_no_request_is_told(studio: Served) -> None:
    before = tree(folder(studio))
    for body in (b"", b"{", b"[]", b'"x"', b"[" * 100_000, b"\xff"):
        status, content, _ = studio.raw("POST", "/switch", body)
        assert status == 400 and b"no JSON" in content
    for body in ({}, {"ids": []}, {"ids": "x"}, {"ids": [1]}):
        assert studio.raw("POST", "/switch", body)[0] == 400
    assert studio.raw("POST", "/edit", {"id": 5})[0] == 400
    assert studio.raw("POST", "/switch", b" " * (8 * 2**20 + 1))[0] == 413
    assert studio.raw("GET", "/edit")[0] == 405 and studio.raw("POST", "/nothing", {})[0] == 404
    assert tree(folder(studio)) == before


def test_a_name_that_is_no_image_leads_nowhere(studio: Served) -> None:
    before = tree(folder(studio).parent)
    for name in ("../project.yaml", "mine/../../x.png", "/etc/passwd", "mine/", "", "C:\\x", "mine/x\0.png"):
        assert studio.raw("GET", f"/picture?id={quote(name)}")[0] == 404
        assert studio.raw("GET", f"/caption?id={quote(name)}")[0] == 400
        assert studio.raw("POST", "/edit", {"id": name, "text": "x", "stamp": ""})[0] == 400
        assert studio.raw("POST", "/switch", {"ids": [name], "off": True})[0] == 400
        assert studio.raw("POST", "/preview", {"kind": "add", "tag": "x", "ids": [name]})[0] == 400
        assert studio.raw("GET", f"/static/{quote(name, safe='')}")[0] == 404
        assert tree(folder(studio).parent) == before, name


def test_answers_say_what_they_are(studio: Served) -> None:
    for path in ("/", "/run", f"/picture?id={quote(thing(0))}", "/static/page.js", "/nothing"):
        _, _, headers = studio.raw("GET", path)
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        policy = headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert ("'unsafe-inline'" in policy) == (path == "/run"), "charts have styles of their own"
        assert not [name for name in headers if name.lower().startswith("access-control")]
    assert b"<script>" not in studio.raw("GET", "/")[1]


def test_pictures_are_encoded_anew(studio: Served) -> None:
    for size in ("small", "large"):
        _, content, headers = studio.raw("GET", f"/picture?id={quote(thing(0))}&size={size}")
        assert headers["Content-Type"] == "image/jpeg"
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "JPEG" and image.size == (96, 64)
