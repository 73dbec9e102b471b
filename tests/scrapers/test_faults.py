"""What servers do wrong, each with the reason that the ledger must have; one run for most of them."""

import asyncio
import gzip
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scrapes import Ran, partial_files, scrape, write_list
from servers import (
    Behaviour,
    Hit,
    Site,
    after,
    closed_port,
    encoded,
    endless,
    head,
    in_turn,
    jpeg,
    ok,
    pixels,
    png,
    raw,
    redirect,
    status,
)

HTML = b"<!DOCTYPE html><html><body>not here any more, and a long text beside it</body></html>"
GOOD = "stored"


def cut(body: bytes, told: int, sent: int) -> Behaviour:
    return raw(head(200, {"Content-Type": "image/jpeg", "Content-Length": told}) + body[:sent])


def chunked(body: bytes) -> bytes:
    return b"%x\r\n" % len(body) + body + b"\r\n"


CHUNKED = head(200, {"Transfer-Encoding": "chunked"})
NUMBER = iter(range(10_000))


def new() -> bytes:
    return jpeg(next(NUMBER))


def faults() -> dict[str, tuple[Behaviour, str, int]]:
    """Path -> behaviour, how the row must end, and how often the path must be asked for."""
    short, whole = new(), new()
    return {
        "404": (status(404), "http_404", 1),
        "403": (status(403), "http_403", 1),
        "410": (status(410), "http_410", 1),
        "401": (status(401), "http_4xx", 1),
        "451": (status(451), "http_4xx", 1),
        "408": (status(408), "http_408", 3),
        "425-then-fine": (in_turn(status(425), ok(new())), GOOD, 2),
        "429": (status(429), "http_429", 3),
        "500": (status(500), "http_5xx", 3),
        "502-then-fine": (in_turn(status(502), ok(new())), GOOD, 2),
        "503-then-fine": (in_turn(status(503, {"Retry-After": "0"}), ok(new())), GOOD, 2),
        "599": (status(599), "http_5xx", 3),
        "204": (status(204), "http_other", 1),
        "206": (status(206, body=new()), "http_other", 1),
        "304": (status(304), "http_other", 1),
        "300": (status(300, {"Location": "/good"}), "http_other", 1),
        "999": (status(999), "http_other", 1),
        "stalled-body": (raw(head(200, {"Content-Length": 5000}) + new()[:700], then_s=30), "read_timeout", 3),
        "stalled-head": (raw(b"HTTP/1.1 200 OK\r\nContent-", then_s=30), "read_timeout", 3),
        "no-answer": (raw(then_s=30), "read_timeout", 3),
        "truncated": (cut(new(), 5000, 900), "incomplete", 3),
        "truncated-then-fine": (in_turn(cut(new(), 5000, 900), ok(new())), GOOD, 2),
        "length-too-long": (cut(short, len(short) + 1, len(short)), "incomplete", 3),
        "length-too-short": (cut(short, len(short) - 300, len(short)), "bad_response", 3),
        "no-length-truncated": (raw(head(200, {"Connection": "close"}) + short[:-300]), "decode_error", 1),
        "no-length": (raw(head(200, {"Connection": "close"}) + new()), GOOD, 1),
        "http-1.0": (raw(b"HTTP/1.0 200 OK\r\n\r\n" + new()), GOOD, 1),
        "length-twice": (raw(head(200, [("Content-Length", 10), ("Content-Length", 900)]) + new()), "bad_response", 3),
        "length-negative": (raw(head(200, {"Content-Length": -5}) + new()), "bad_response", 3),
        "length-text": (raw(head(200, {"Content-Length": "many"}) + new()), "bad_response", 3),
        "chunked": (raw(CHUNKED, chunked(new()[:800]), chunked(new()[:800]) + b"0\r\n\r\n"), "decode_error", 1),
        "chunked-fine": (raw(CHUNKED, *map(chunked, (whole[:500], whole[500:])), b"0\r\n\r\n"), GOOD, 1),
        "chunked-garbage": (raw(CHUNKED + chunked(new()[:500]) + b"zzz\r\n" + short), "bad_response", 3),
        # aiohttp closes the connection and tells nobody: the last of our own time-outs ends it, once.
        "chunked-garbage-later": (raw(CHUNKED, chunked(new()[:500]), b"zzz\r\n" + short, pause_s=0.1),
                                  "total_timeout", 1),
        "chunked-cut": (raw(CHUNKED, b"7d0\r\n" + short[:700]), "incomplete", 3),
        "not-http": (raw(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "bad_response", 3),
        "binary": (raw(bytes(range(256)) * 4), "bad_response", 3),
        "long-header": (raw(head(200, {"X-Long": "x" * 100_000}) + new()), "bad_response", 3),
        "bad-header": (raw(b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n" + new()), "bad_response", 3),
        "closed-at-once": (raw(), "reset", 3),
        "reset": (raw(reset=True), "reset", 3),
        "reset-in-body": (raw(head(200, {"Content-Length": 5000}) + short[:700], reset=True, pause_s=0.05),
                          "incomplete", 3),
        "reset-then-fine": (in_turn(raw(reset=True), ok(new())), GOOD, 2),
        "html": (ok(HTML, "image/jpeg"), "not_image", 1),
        "json": (ok(b'{"error": "no such picture", "code": 17, "more": ""}', "image/png"), "not_image", 1),
        "svg": (ok(b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml"), "not_image", 1),
        "pdf": (ok(b"%PDF-1.7\n" + b"x" * 100), "not_image", 1),
        "tiff": (ok(encoded(pixels(1), "TIFF")), "not_image", 1),
        "tiny-text": (ok(b"nope"), "not_image", 1),
        "zero-bytes": (ok(b""), "not_image", 1),
        "zeros": (ok(bytes(5000)), "not_image", 1),
        "wrong-type": (ok(new(), "text/html; charset=utf-8"), GOOD, 1),
        "no-type": (status(200, body=new()), GOOD, 1),
        "gzip-unasked": (ok(gzip.compress(new()), headers={"Content-Encoding": "gzip"}), GOOD, 1),
        "deflate-unasked": (ok(zlib.compress(new()), headers={"Content-Encoding": "deflate"}), GOOD, 1),
        "gzip-cut": (ok(gzip.compress(short)[:-400], headers={"Content-Encoding": "gzip"}), "decode_error", 1),
        "gzip-false": (ok(short, headers={"Content-Encoding": "gzip"}), "incomplete", 3),
        "gzip-of-html": (ok(gzip.compress(HTML), headers={"Content-Encoding": "gzip"}), "not_image", 1),
        "redirect": (redirect("/good-1"), GOOD, 1),
        "redirect-relative": (redirect("there/good-2"), GOOD, 1),
        "redirect-query": (redirect("?now=1"), "redirect_limit", 6),
        "redirect-loop": (redirect("/f/redirect-loop"), "redirect_limit", 6),
        "redirect-nowhere": (status(302), "redirect_refused", 1),
        "redirect-file": (redirect("file:///etc/passwd"), "redirect_refused", 1),
        "redirect-ftp": (redirect("ftp://127.0.0.1/x.jpg"), "redirect_refused", 1),
        "redirect-data": (redirect("data:image/png;base64,AAAA"), "redirect_refused", 1),
        "redirect-script": (redirect("javascript:alert(1)"), "redirect_refused", 1),
        "redirect-broken": (redirect("http://[::1/x.jpg"), "redirect_refused", 1),
        "redirect-port": (redirect("http://127.0.0.1:99999/"), "redirect_refused", 1),
        "redirect-bytes": (redirect("http://exa\udcffmple\udcfe/"), "redirect_refused", 1),
        "redirect-private": (redirect("http://10.0.0.1/x.jpg"), "ssrf", 1),
        "redirect-metadata": (redirect("http://169.254.169.254/latest/meta-data/"), "ssrf", 1),
        "redirect-ipv6": (redirect("http://[::1]/x.jpg"), "ssrf", 1),
        "redirect-decimal": (redirect("http://167772161/x.jpg"), "bad_url", 1),
        "space in name": (ok(new()), GOOD, 0),
        "bild-äöü-写真": (ok(new()), GOOD, 0),
        "100%": (ok(new()), GOOD, 0),
        "gone-in-a-moment": (after(0.2, status(404)), "http_404", 1),
    }  # fmt: skip


BAD_URLS = {
    "": "bad_url", "not a url": "bad_url", "/etc/passwd": "bad_url", "file:///etc/passwd": "bad_url",
    "ftp://127.0.0.1/a.jpg": "bad_url", "data:image/png;base64,AAAA": "bad_url", "http://": "bad_url",
    "http:///a.jpg": "bad_url", "http://[::1/a.jpg": "bad_url", "http://127.0.0.1:99999/a.jpg": "bad_url",
    "http://127.0.0.1:x/a.jpg": "bad_url", f"http://{'a' * 64}.org/": "bad_url", "http://a..b/": "bad_url",
    "javascript:alert(1)": "bad_url", "gopher://127.0.0.1/": "bad_url", "HTTPS:/one.slash": "bad_url",
    "http://10.0.0.1/a.jpg": "ssrf", "http://192.168.1.1/a.jpg": "ssrf", "http://169.254.169.254/a.jpg": "ssrf",
    "http://[::1]/a.jpg": "ssrf", "http://0.0.0.0/a.jpg": "ssrf", "http://[::ffff:10.0.0.1]/a.jpg": "ssrf",
    "http://[64:ff9b::a00:1]/a.jpg": "ssrf", "http://[2002:a00:1::]/a.jpg": "ssrf", "http://0x0a000001/a.jpg": "ssrf",
    "http://012.0.0.1/a.jpg": "bad_url", "http://10.1/a.jpg": "bad_url", "http://100.64.0.1/a.jpg": "ssrf",
    "http://168.63.129.16/a.jpg": "ssrf", "http://224.0.0.1/a.jpg": "ssrf", "http://8.8.8.8:22/a.jpg": "ssrf",
}  # fmt: skip


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ran, list[Site], dict[str, tuple[str, str, int]]]]:
    """One run over all faults, spread over nine hosts, with good rows between and a file to cut short at the end."""
    folder = tmp_path_factory.mktemp("mix")
    sites = [Site(f"127.0.0.{n}") for n in range(1, 10)]
    try:
        wanted: dict[str, tuple[str, str, int]] = {}
        rows: list[tuple[str, str]] = []
        for site in sites:
            site.__enter__()
            site["/good-1"] = site["/f/there/good-2"] = ok(new())
        for n, (name, (behaviour, end, times)) in enumerate(faults().items()):
            site = sites[n % len(sites)]
            for path in (f"/f/{name}", *(["/f/space%20in%20name"] if " " in name else [])):
                site[path] = behaviour
            if not name.isascii() or "%" in name:
                site["*"] = behaviour
            wanted[name] = (site.url(f"/f/{name}"), end, times)
            rows.append((wanted[name][0], f"a picture of {name}"))
            if n % 2:
                good = f"/good/{n}.jpg"
                site[good] = ok(new())
                wanted[good] = (site.url(good), GOOD, 1)
                rows.append((site.url(good), f"a good picture {n}"))
        first, second = sites[0], sites[1]
        second["/far.jpg"] = ok(new())
        first["/f/redirect-far"] = redirect(second.url("/far.jpg"))
        wanted["redirect-far"] = (first.url("/f/redirect-far"), GOOD, 1)
        with closed_port() as nobody, closed_port() as nobody_else:
            first["/f/redirect-refused"] = redirect(f"{nobody}/x.jpg")
            wanted["redirect-refused"] = (first.url("/f/redirect-refused"), "connect_refused", 1)
            wanted["refused"] = (f"{nobody_else}/y.jpg", "connect_refused", 0)
            first["/f/drip"] = endless(first, new()[:100], b"\0", {"Content-Length": 9_000_000}, pause_s=0.05)
            wanted["drip"] = (first.url("/f/drip"), "too_slow", 3)
            first["/f/user"] = ok(new())
            with_user = first.url("/f/user#top").replace("://", "://me:secret@")
            wanted["user"] = (with_user, GOOD, 1)
            rows += [(wanted[name][0], f"about {name}")
                     for name in ("redirect-far", "redirect-refused", "refused", "drip", "user")]  # fmt: skip
            for url, end in BAD_URLS.items():
                wanted[f"<{url}>"] = (url, end, 0)
                rows.append((url, "a caption"))
            began = time.monotonic()
            ran = scrape(write_list(folder / "list.jsonl", rows), folder / "set")
            assert time.monotonic() - began < 60
        yield ran, sites, wanted
    finally:
        for site in sites:
            site.__exit__()


def test_every_row_ends_as_it_should(mix: tuple[Ran, list[Site], dict[str, tuple[str, str, int]]]) -> None:
    ran, _, wanted = mix
    ends = ran.ends
    assert {name: ends.get(url) for name, (url, _, _) in wanted.items()} == {
        name: end for name, (_, end, _) in wanted.items()
    }
    assert len(ran.lines) == len(wanted) > 140
    assert ran.summary["stored"] == ran.counts["stored"] == len(list(ran.out.glob("*.jpg")))
    assert ran.summary["ended"] is True and ran.summary["unfinished"] == 0


def test_what_can_pass_is_asked_again_and_nothing_else(
    mix: tuple[Ran, list[Site], dict[str, tuple[str, str, int]]],
) -> None:
    _, sites, wanted = mix
    asked = {
        name: sum(site.count(url.removeprefix(site.origin)) for site in sites if url.startswith(site.origin + "/"))
        for name, (url, _, times) in wanted.items()
        if times and name not in ("redirect-query", "user")
    }
    # A connection that is closed before an answer may have been an old one: once more on a new one.
    for name in ("closed-at-once", "reset", "reset-then-fine"):
        assert wanted[name][2] <= asked.pop(name) <= 2 * wanted[name][2]
    assert asked == {name: wanted[name][2] for name in asked}
    assert sites[0].count("/f/user") == 1  # without the fragment
    assert not any("authorization" in hit.headers or "cookie" in hit.headers for site in sites for hit in site.hits)


def test_nothing_is_left_half_written(mix: tuple[Ran, list[Site], dict[str, tuple[str, str, int]]]) -> None:
    ran, _, _ = mix
    assert partial_files(ran.out) == []
    assert not (ran.out / ".scrape" / "staging").exists()
    captions = {line["path"] for line in ran.lines if line["path"]}
    for path in ran.out.glob("*.jpg"):
        assert path.name in captions
        with Image.open(path) as image:
            image.load()
            assert image.size == (64, 48)


def test_failures_are_told_in_words(mix: tuple[Ran, list[Site], dict[str, tuple[str, str, int]]]) -> None:
    ran, _, wanted = mix
    details = ran.details
    for name, words in {
        "404": "404 Not Found", "html": "an HTML page", "svg": "an SVG drawing",
        "zero-bytes": "an empty file (0 bytes)", "tiff": "TIFF", "redirect-file": "302 to file:///etc/passwd",
        "redirect-private": "10.0.0.1 is not a public",
        "<http://8.8.8.8:22/a.jpg>": "port 22 is not one of 80, 443, 8080, 8443", "drip": "bytes/s",
        "redirect-loop": "more than 5 redirects", "no-length-truncated": "JPEG",
    }.items():  # fmt: skip
        assert words in details[wanted[name][0]], name


def test_very_large_bodies_are_not_received(tmp_path: Path) -> None:
    """2 GB with its length told, without, and as a gzip bomb of 2 GB: no more than the limit is ever taken in."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = packer.compress(png(1)[:60]) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(300))
    with Site() as site:
        site["/told"] = endless(site, jpeg(1), bytes(65_536), {"Content-Length": 2_000_000_000})
        rows = {site.url("/told"): "one"}
        ran = scrape(write_list(tmp_path / "a.jsonl", rows), tmp_path / "a", "fetch.max_megabytes=2")
        assert ran.ends == {site.url("/told"): "too_large"} and site.count("/told") == 1
        assert site.num_bytes < 30_000_000  # what sockets hold
        site.num_bytes = 0
        site["/untold"] = endless(site, jpeg(1), bytes(65_536), {"Connection": "close"})
        site["/chunked"] = endless(site, b"", chunked(jpeg(1) + bytes(65_536)), {"Transfer-Encoding": "chunked"})
        site["/bomb"] = raw(head(200, {"Content-Encoding": "gzip", "Connection": "close"}) + zeros)
        site["/fits"] = ok(jpeg(3) + bytes(1_000_000))
        rows = {site.url(path): path for path in ("/untold", "/chunked", "/bomb")}
        ran = scrape(write_list(tmp_path / "b.jsonl", rows), tmp_path / "b", "fetch.max_megabytes=2")
        assert ran.ends == dict.fromkeys(rows, "too_large")
        assert site.num_bytes < 2 * 30_000_000
        assert "more than 2,000,000 bytes" in ran.details[site.url("/bomb")]
        assert ran.summary["megabytes"] < 9


def test_an_endless_answer_ends_with_the_total_timeout(tmp_path: Path) -> None:
    """Fast enough not to be too slow, too slow to reach the limit: it may not hold a run three times over."""
    with Site() as site:
        site["/endless"] = endless(site, jpeg(1), bytes(500), {"Connection": "close"}, pause_s=0.05)
        site["/headers"] = endless(site, b"", b"X", {"X-A": "b"}, pause_s=0.05)
        site["/headers"] = raw(b"HTTP/1.1 200 OK\r\n", *[b"X-A: b\r\n"] * 400, pause_s=0.05)
        rows = {site.url("/endless"): "one", site.url("/headers"): "two"}
        began = time.monotonic()
        ran = scrape(write_list(tmp_path / "a.jsonl", rows), tmp_path / "a", "fetch.total_timeout_s=1.5")
        assert ran.ends == dict.fromkeys(rows, "total_timeout")
        assert site.count("/endless") == site.count("/headers") == 1
        assert time.monotonic() - began < 10


def test_a_connection_that_was_left_in_disorder_is_not_used_again(tmp_path: Path) -> None:
    """What follows the told length on a connection would be the head of the next answer."""
    first, second = jpeg(1), jpeg(2)
    with Site() as site:
        site["/short"] = status(200, {}, first)

        async def and_more(hit: Hit, writer: asyncio.StreamWriter) -> bool:
            writer.write(head(200, {"Content-Length": len(first)}) + first + b"HTTP/1.1 404 Gone\r\n\r\n")
            await writer.drain()
            return True

        site["/more"] = and_more
        site["/next"] = after(0.1, ok(second))
        rows = {site.url("/more"): "one", site.url("/next"): "two"}
        ran = scrape(write_list(tmp_path / "a.jsonl", rows), tmp_path / "a", "fetch.per_host=1")
        assert ran.ends == dict.fromkeys(rows, "stored")
