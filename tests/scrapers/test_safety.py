"""No address is connected to but public ones and those that the user has opened, whatever a list or a site says."""

import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from scrapes import finish, scrape, start, write_list
from servers import Site, jpeg, ok, raw, redirect, status

from scrapers.fetch.addresses import is_public, parse_opened, refusal
from scrapers.fetch.client import parse_url

NOT_PUBLIC = """
127.0.0.1 127.255.255.255 0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1
169.254.169.254 169.254.0.1 100.64.0.1 100.127.255.255 192.0.0.1 192.0.2.1 198.18.0.1 198.19.255.255 198.51.100.1
203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 168.63.129.16 192.88.99.1 :: ::1 ::7f00:1 fe80::1
febf::1 fc00::1 fd00:ec2::254 fec0::1 ff02::1 ff0e::1 100::1 2001::1 2001:db8::1 5f00::1 ::ffff:127.0.0.1
::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:168.63.129.16 ::ffff:0:7f00:1 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1
64:ff9b::169.254.169.254 64:ff9b:1::10.0.0.1 64:ff9b::168.63.129.16 2002:7f00:1:: 2002:a00:1:: 2002:a9fe:a9fe::
2002:c0a8:1::1 2002:a83f:8110:: 2001:0:4136:e378:8000:63bf:3fff:fdd2
"""
PUBLIC = """
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.1 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 169.253.255.255
169.255.0.1 172.15.255.255 172.32.0.1 192.167.255.255 192.169.0.1 198.17.255.255 198.20.0.1 223.255.255.255
168.63.129.15 2600::1 2a00:1450:4001:82a::200e ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1
"""
LOCALS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))
    for port in (80, 443, 8080, 12345):
        assert refusal(address, port, []) == f"{address} is not a public address"
    assert refusal(f"{address}%eth0" if ":" in address else address, 80, []) is not None


@pytest.mark.parametrize("address", PUBLIC.split())
def test_addresses_that_are(address: str) -> None:
    assert refusal(address, 80, []) is None and refusal(address, 443, []) is None
    for port in (0, 22, 25, 3306, 6379, 8081, 65535):
        assert f"port {port} is not one of" in (refusal(address, port, []) or "")


def test_what_is_opened_is_opened_and_nothing_beside_it() -> None:
    opened, problems = parse_opened(["127.0.0.2", " 10.1.0.0/16 ", "fd00::/64", "8.8.8.8"])
    assert problems == []
    may = ("127.0.0.2", "::ffff:127.0.0.2", "10.1.0.0", "10.1.255.255", "fd00::5", "8.8.8.8")
    may_not = ("127.0.0.1", "127.0.0.3", "10.0.255.255", "10.2.0.0", "fd00:0:0:1::", "::1", "169.254.169.254",
               "64:ff9b::127.0.0.2", "2002:7f00:2::", "::127.0.0.2")  # fmt: skip
    assert [refusal(address, 12345, opened) for address in may] == [None] * len(may)
    assert None not in [refusal(address, 80, opened) for address in may_not]
    assert "8.8.4.4" not in (refusal("8.8.4.4", 80, opened) or "")
    for text in ("localhost", "10.1.2.3/16", "", "10.0.0.0/33", "*", "http://127.0.0.1", "0x7f000001"):
        assert f"allow_private {text!r}" in parse_opened([text])[1][0]
    assert refusal("localhost", 80, opened) == "localhost is not an IP address"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://example.org/a b.jpg", "http://example.org/a%20b.jpg"),
        ("http://example.org/a%20b%2Fc.jpg", "http://example.org/a%20b%2Fc.jpg"),
        ("  HTTP://EXAMPLE.org/Ä.jpg \n", "http://example.org/%C3%84.jpg"),
        ("http://bücher.example/x", "http://xn--bcher-kva.example/x"),
        ("http://me:pass@example.org/x#part", "http://example.org/x"),
        ("http://example.org", "http://example.org"),
        ("https://example.org:443/x?a=1&b=ü", "https://example.org/x?a=1&b=%C3%BC"),
        ("http://example.org/100%.jpg", "http://example.org/100%25.jpg"),
        ("http://127.0.0.1@example.org/", "http://example.org/"),
        ("http://example.org@127.0.0.1/", "http://127.0.0.1/"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("file:///etc/passwd", None), ("ftp://example.org/x", None), ("data:image/png;base64,AA", None),
        ("//example.org/x", None), ("example.org/x", None), ("http:example.org", None), ("http://", None),
        ("http://example.org:70000/", None), ("http://example.org:x/", None), ("http://[::1", None),
        ("http://a..b/", None), ("http://" + "a" * 64 + ".org/", None), ("mailto:a@b.c", None), ("", None),
        ("http://example.org\\@127.0.0.1/", None),
        ("http://exa\udcffmple.org/", None),
    ],
)  # fmt: skip
def test_urls(text: str, url: str | None) -> None:
    parsed = parse_url(text)
    assert (None if parsed is None else str(parsed)) == url


def ends(tmp_path: Path, urls: list[str], *options: str, opened: str = "") -> list[str]:
    """Scrape with nothing opened but `opened`; return how each URL ended."""
    folder = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
    listed = write_list(tmp_path / f"{folder.name}.jsonl", dict.fromkeys(urls, "a thing"))
    ran = scrape(listed, folder, f"fetch.allow_private=[{opened}]", *options)
    found = ran.ends
    return [found[url] for url in urls]


def spellings(port: int) -> list[str]:
    """127.0.0.1 in every way that some resolver or library takes."""
    hosts = ("127.0.0.1", "localhost", "LOCALHOST", "localhost.", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1",
             "017700000001", "127.1", "127.0.1", "0", "0.0.0.0", "[::1]", "[::]", "[::ffff:127.0.0.1]",
             "[::ffff:7f00:1]",
             "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "127.0.0.1.", "①②⑦.⓪.⓪.①", "127。0。0。1",
             "127.0.0.1%00",
             "[::1%25lo]", "[fe80::1%25lo]")  # fmt: skip
    return [f"http://{host}:{port}/secret.jpg" for host in hosts]


def test_nothing_inside_is_ever_asked(tmp_path: Path) -> None:
    """Every spelling of this machine, as a URL and as the target of a redirect from a site that is opened."""
    with Site() as inside, Site("127.0.0.2") as outside:
        inside["/secret.jpg"] = inside["/robots.txt"] = ok(jpeg(1))
        urls = spellings(inside.port)
        found = ends(tmp_path, urls, "fetch.robots=true")
        assert set(found) <= {"ssrf", "bad_url", "dns_nxdomain", "dns_temp"} and found.count("ssrf") >= 10
        assert found[:2] == ["ssrf", "ssrf"]
        for n, url in enumerate(urls):
            outside[f"/{n}.jpg"] = redirect(url)
        ways = [outside.url(f"/{n}.jpg") for n in range(len(urls))]
        found = ends(tmp_path, ways, "fetch.robots=true", opened="127.0.0.2")
        assert set(found) <= {"ssrf", "bad_url", "redirect_refused", "dns_nxdomain", "dns_temp"}
        assert len(outside.asked) == len(urls)
        # robots.txt may lead inside as well.
        outside["/robots.txt"] = redirect(inside.url("/robots.txt"))
        outside["/fine.jpg"] = ok(jpeg(2))
        assert ends(tmp_path, [outside.url("/fine.jpg")], "fetch.robots=true", opened="127.0.0.2") == ["ssrf"]
        assert inside.hits == []


def test_only_what_was_opened(tmp_path: Path) -> None:
    sites = [Site(address) for address in LOCALS]
    for n, site in enumerate(sites):
        site.__enter__()
        site["/a.jpg"] = ok(jpeg(n))
    try:
        urls = [site.url("/a.jpg") for site in sites]
        assert ends(tmp_path, urls) == ["ssrf"] * 3
        assert ends(tmp_path, urls, opened="127.0.0.2") == ["ssrf", "stored", "ssrf"]
        assert ends(tmp_path, urls, opened="127.0.0.2/31") == ["ssrf", "stored", "stored"]
        assert [len(site.hits) for site in sites] == [0, 2, 1]
    finally:
        for site in sites:
            site.__exit__()


# Names


Answers = Callable[..., list[Any]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[list[str]]]]:
    """A name server of our own: name -> answers in turn, each a list of addresses; the last one stays."""
    table: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        name = host.decode() if isinstance(host, bytes) else host
        try:
            ipaddress.ip_address(name)
        except ValueError:
            answers = table.get(name, [[]])
            addresses = answers.pop(0) if len(answers) > 1 else answers[0]
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
            if addresses == ["?"]:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution") from None
            return [entry for address in addresses for entry in real(address, port, 0, socket.SOCK_STREAM)]
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield table


def test_a_name_that_leads_inside(tmp_path: Path, names: dict[str, list[list[str]]]) -> None:
    with Site() as site:
        site["/a.jpg"] = ok(jpeg(1))
        site["/b.jpg"] = ok(jpeg(2))
        names["inside.example"] = [["127.0.0.1"]]
        names["mapped.example"] = [["::ffff:127.0.0.1"]]
        names["metadata.example"] = [["169.254.169.254"]]
        names["many.example"] = [["10.0.0.1", "192.168.0.1", "fd00::1"]]
        urls = [f"http://{name}:{site.port}/a.jpg" for name in names]
        assert ends(tmp_path, urls) == ["ssrf"] * 4 and site.hits == []
        # One of several addresses is opened: that one is asked, the others never.
        names["some.example"] = [["127.0.0.9", "127.0.0.1", "10.0.0.1"]]
        url = f"http://some.example:{site.port}/b.jpg"
        assert ends(tmp_path, [url], opened="127.0.0.1") == ["stored"]
        assert site.asked == ["/b.jpg"]


def test_a_name_that_turns_inside_later(tmp_path: Path, names: dict[str, list[list[str]]]) -> None:
    """DNS rebinding: what was looked up is no permission; the address that is connected to is judged."""
    with Site("127.0.0.1") as outside, Site("127.0.0.2") as inside:
        names["turn.example"] = [["127.0.0.1"], ["127.0.0.2"]]
        outside["/a.jpg"] = redirect(f"http://turn.example:{inside.port}/b.jpg")
        inside["/b.jpg"] = ok(jpeg(1))
        url = f"http://turn.example:{outside.port}/a.jpg"
        assert ends(tmp_path, [url], opened="127.0.0.1") == ["ssrf"]
        assert outside.asked == ["/a.jpg"] and inside.hits == []
        assert names["turn.example"] == [["127.0.0.2"]]  # it was looked up twice


def test_names_that_do_not_resolve(tmp_path: Path, names: dict[str, list[list[str]]]) -> None:
    names["temp.example"] = [["?"]]
    urls = ["http://gone.example/a.jpg", "http://gone.example/b.jpg", "http://temp.example/a.jpg"]
    assert ends(tmp_path, urls) == ["dns_nxdomain", "dns_nxdomain", "dns_temp"]


def test_a_name_that_does_not_exist_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def look_up(host: Any, *args: Any, **kwargs: Any) -> list[Any]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    urls = [f"http://gone.example/{n}.jpg" for n in range(20)]
    assert ends(tmp_path, urls, "fetch.per_host=1", "fetch.robots=true") == ["dns_nxdomain"] * 20
    assert asked == ["gone.example"]


def test_a_host_that_does_not_answer_is_left_alone(tmp_path: Path) -> None:
    with Site() as site:
        nobody = site.origin
    urls = [f"{nobody}/{n}.jpg" for n in range(12)]
    found = ends(tmp_path, urls, "fetch.per_host=1", "fetch.tries=1", opened="127.0.0.1")
    assert found == ["connect_refused"] * 5 + ["host_down"] * 7


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_tls_that_cannot_be_trusted(tmp_path: Path, authority: trustme.CA) -> None:
    with Site(context=tls(authority, "127.0.0.1")) as unknown, Site() as plain, Site() as other:
        unknown["/a.jpg"] = ok(jpeg(1))
        other["*"] = raw(b"SSH-2.0-OpenSSH\r\n")
        urls = [unknown.url("/a.jpg"), plain.url("/a.jpg").replace("http:", "https:"),
                unknown.url("/a.jpg").replace("https:", "http:")]  # fmt: skip
        found = ends(tmp_path, urls, "fetch.tries=1", opened="127.0.0.1")
        assert found[:2] == ["tls_cert", "tls_other"] and found[2] in ("reset", "bad_response")
        assert unknown.hits == []


def test_tls_that_can(tmp_path: Path, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Site(context=tls(authority, "127.0.0.1")) as good, Site(context=tls(authority, "other.example")) as misnamed:
        good["/a.jpg"], misnamed["/a.jpg"] = ok(jpeg(1)), ok(jpeg(2))
        good["/down.jpg"] = status(302, {"Location": good.url("/a.jpg")})
        listed = write_list(tmp_path / "a.jsonl", {good.url("/down.jpg"): "a", misnamed.url("/a.jpg"): "b"})
        process = start(listed, tmp_path / "set", SSL_CERT_FILE=os.fspath(tmp_path / "ca.pem"))
        ran = finish(process, tmp_path / "set")
        assert [line["reason"] for line in ran.lines] == [None, "tls_cert"]
        assert misnamed.hits == []
