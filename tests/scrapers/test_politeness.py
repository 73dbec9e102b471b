"""What sites ask for: waits, limits, robots.txt and opt-outs. Waits are lower bounds: never asked before."""

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import pytest
from scrapes import scrape, write_list
from servers import Behaviour, Site, after, in_turn, jpeg, ok, raw, redirect, status

from scrapers.fetch.client import user_agent
from scrapers.fetch.optout import opted_out
from scrapers.fetch.verdicts import retry_after_s

ROBOTS = "fetch.robots=true"
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


def rows(site: Site, number: int, answer_s: float = 0.0) -> dict[str, str]:
    """Add so many good pictures to a site."""
    for n in range(number):
        site[f"/{n}.jpg"] = after(answer_s, ok(jpeg(n)))
    return {site.url(f"/{n}.jpg"): f"thing {n}" for n in range(number)}


# Waiting


@pytest.mark.parametrize(("code", "by_date"), [(429, False), (503, False), (429, True)])
def test_retry_after_is_kept_for_the_whole_site(site: Site, tmp_path: Path, code: int, by_date: bool) -> None:
    listed = rows(site, 12)
    wait_s = 2
    asked: list[float] = []

    async def busy(hit, writer):  # type: ignore[no-untyped-def]
        asked.append(time.monotonic())
        value = formatdate(time.time() + wait_s + 1, usegmt=True) if by_date else wait_s
        return await status(code, {"Retry-After": value})(hit, writer)

    site["/0.jpg"] = in_turn(busy, ok(jpeg(0)))
    ran = scrape(write_list(tmp_path / "list.jsonl", listed), tmp_path / "set", "fetch.per_host=1")
    assert set(ran.ends.values()) == {"stored"} and site.count("/0.jpg") == 2
    others = [at for at in site.times() if at > asked[0]]
    assert len(others) == 12 and min(others) - asked[0] >= wait_s - 0.01


def test_a_longer_wait_than_a_run_can_give(site: Site, tmp_path: Path) -> None:
    """The file is left to --retry-failed; two such answers in a row are about the site, which is left alone."""
    listed = rows(site, 10)
    site["/2.jpg"] = status(429, {"Retry-After": "3600"})
    ran = scrape(write_list(tmp_path / "a.jsonl", listed), tmp_path / "a", "fetch.per_host=1")
    assert ran.counts == {"stored": 9, "http_429": 1} and site.count("/2.jpg") == 1
    site["/3.jpg"] = status(503, {"Retry-After": "3600"})
    site.hits.clear()
    ran = scrape(write_list(tmp_path / "a.jsonl", listed), tmp_path / "b", "fetch.per_host=1")
    assert ran.counts == {"stored": 2, "http_429": 7, "http_5xx": 1}
    assert site.asked == [f"/{n}.jpg" for n in range(4)]
    assert "the host asked us to wait 3600 s more" in ran.details[site.url("/9.jpg")]
    site.hits.clear()
    scrape(write_list(tmp_path / "a.jsonl", listed), tmp_path / "b", "--retry-failed")
    assert site.hits == []


def test_the_rate_of_requests(site: Site, tmp_path: Path) -> None:
    ran = scrape(write_list(tmp_path / "a.jsonl", rows(site, 8)), tmp_path / "a", "fetch.delay_s=0.1")
    assert ran.counts == {"stored": 8}
    times = site.times()
    assert all(later - earlier >= 0.09 for earlier, later in pairwise(times))


@pytest.mark.parametrize("per_host", [1, 3])
def test_requests_at_once(site: Site, tmp_path: Path, per_host: int) -> None:
    listed = write_list(tmp_path / "a.jsonl", rows(site, 24, answer_s=0.02))
    scrape(listed, tmp_path / "a", f"fetch.per_host={per_host}")
    assert site.most_at_once == per_host
    site.most_at_once = 0
    scrape(listed, tmp_path / "b", "--concurrency", "2")
    assert site.most_at_once == 2


def test_a_public_host_has_four_at_most() -> None:
    from scrapers.fetch.client import Client
    from scrapers.fetch.fetcher import Fetcher
    from scrapers.settings import FetchSettings

    client = Client(FetchSettings(allow_private=["10.0.0.0/8", "fd00::/8"]))
    fetcher = Fetcher(client, None, lambda job, result: None)  # type: ignore[arg-type]
    limits = {host: fetcher._limit_of(host) for host in
              ("example.org", "example.org:8080", "8.8.8.8", "[2600::1]:80", "10.1.2.3", "10.1.2.3:81", "[fd00::1]",
               "[fd00::1]:8080", "127.0.0.1", "[::1]", "")}  # fmt: skip
    assert limits == {**dict.fromkeys(limits, 4), **dict.fromkeys(
        ("10.1.2.3", "10.1.2.3:81", "[fd00::1]", "[fd00::1]:8080"), 100)}  # fmt: skip


def test_how_retry_after_is_read() -> None:
    now = datetime(2026, 6, 1, 12, 0, 0, tzinfo=timezone.utc)
    values = {
        "120": 120.0, " 7 ": 7.0, "0": 0.0, "9" * 30: 1e9, "Mon, 01 Jun 2026 12:01:40 GMT": 100.0,
        "Monday, 01-Jun-26 12:00:30 GMT": 30.0, "Mon, 01 Jun 2026 11:00:00 GMT": 0.0, "soon": None, "-5": None,
        "1.5": None, "": None, None: None,
    }  # fmt: skip
    assert {value: retry_after_s(value, now) for value in values} == values


# robots.txt


def robots(text: str) -> Behaviour:
    return ok(text.encode(), "text/plain")


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", "abc"),
        ("User-agent: *\nDisallow: /a/", "bc"),
        ("User-agent: *\nDisallow: /", ""),
        ("User-agent: *\nDisallow: /\nAllow: /b/", "b"),
        ("User-agent: *\nDisallow: /*.jpg$", ""),
        ("User-agent: *\nDisallow: /*/pic\nAllow: /c/p*.jpg", "c"),
        ("User-agent: *\nDisallow: /\n\nUser-agent: EveryDream\nDisallow: /c/", "ab"),
        ("User-agent: everydream\nDisallow: /\n\nUser-agent: *\nAllow: /", ""),
        ("User-agent: OtherBot\nDisallow: /", "abc"),
        ("\ufeffuser-agent:*\r\ndisallow:/a/ # not this\r\n", "bc"),
        ("<!DOCTYPE html><html>no such page</html>", "abc"),
        ("User-agent: *\nDisallow:\n", "abc"),
    ],
)
def test_robots_txt(site: Site, tmp_path: Path, text: str, allowed: str) -> None:
    site["/robots.txt"] = robots(text)
    for name in "abc":
        site[f"/{name}/pic.jpg"] = ok(jpeg(ord(name)))
    listed = {site.url(f"/{name}/pic.jpg"): name for name in "abc"}
    ran = scrape(write_list(tmp_path / "a.jsonl", listed), tmp_path / "a", ROBOTS)
    assert "".join(line["url"][-9] for line in ran.lines if line["reason"] is None) == allowed
    assert {line["reason"] for line in ran.lines} <= {None, "robots"}
    assert sorted(site.asked) == [f"/{name}/pic.jpg" for name in allowed]
    assert site.count("/robots.txt") == 1


@pytest.mark.parametrize(
    ("behaviour", "end"),
    [
        (status(404), "stored"),
        (status(403), "stored"),
        (status(410), "stored"),
        (redirect("/elsewhere"), "robots"),
        (redirect("/robots.txt"), "stored"),  # more redirects than RFC 9309 wants followed: as if there were none
        (status(500), "robots_unreachable"),
        (status(429), "robots_unreachable"),
        (raw(), "reset"),
        (raw(then_s=9), "read_timeout"),
        (raw(b"rubbish\r\n\r\n"), "bad_response"),
        (ok(b"User-agent: *\nDisallow: /x\n" * 30_000 + b"Disallow: /p\n"), "stored"),  # cut after 500 KiB
        (ok(bytes(range(256)) * 9), "stored"),
    ],
)
def test_robots_txt_that_cannot_be_had(site: Site, tmp_path: Path, behaviour: Behaviour, end: str) -> None:
    site["/robots.txt"], site["/pic.jpg"] = behaviour, ok(jpeg(1))
    site["/elsewhere"] = robots("User-agent: *\nDisallow: /pic")
    listed = write_list(tmp_path / "a.jsonl", {site.url("/pic.jpg"): "a thing"})
    ran = scrape(listed, tmp_path / "a", ROBOTS, "fetch.tries=1")
    assert ran.ends == {site.url("/pic.jpg"): end}
    assert site.count("/pic.jpg") == (end == "stored")
    if end in ("robots_unreachable", "reset"):
        site["/robots.txt"] = robots("")
        again = scrape(listed, tmp_path / "a", ROBOTS, "--retry-failed")
        assert again.ends == {site.url("/pic.jpg"): "stored"}


def test_robots_txt_is_asked_for_once(tmp_path: Path) -> None:
    """Once per site, at the very first, whoever wants it; and not again on the same day."""
    with Site("127.0.0.1") as one, Site("127.0.0.2") as two:
        listed = {}
        for site in (one, two):
            site["/robots.txt"] = after(0.1, robots("User-agent: *\nDisallow: /3"))
            listed |= rows(site, 6)
        one["/0.jpg"] = redirect(two.url("/3.jpg"))
        file = write_list(tmp_path / "a.jsonl", listed)
        ran = scrape(file, tmp_path / "a", ROBOTS, "--limit", "4")
        assert ran.counts["stored"] == 4 and ran.ends[one.url("/0.jpg")] == "robots"
        scrape(file, tmp_path / "a", ROBOTS)
        for site in (one, two):
            assert site.count("/robots.txt") == 1 and site.hits[0].path == "/robots.txt"
            assert site.count("/3.jpg") == 0
        ran = scrape(file, tmp_path / "b")
        assert ran.counts == {"stored": 6, "duplicate": 6} and one.count("/robots.txt") == 1


def test_crawl_delay_holds_from_the_first_request(site: Site, tmp_path: Path) -> None:
    site["/robots.txt"] = robots("User-agent: *\nCrawl-delay: 0.25\n")
    ran = scrape(write_list(tmp_path / "a.jsonl", rows(site, 5)), tmp_path / "a", ROBOTS)
    assert ran.counts == {"stored": 5}
    times = sorted(site.times())
    assert all(later - earlier >= 0.24 for earlier, later in pairwise(times))


def test_robots_txt_may_ask_for_patience_too(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of itself holds for everyone who wants it, though such an answer is kept for seconds only."""
    monkeypatch.setattr("scrapers.fetch.robots._RETRY_S", 0.2)
    site["/robots.txt"] = in_turn(status(503, {"Retry-After": "2"}), robots(""))
    listed = rows(site, 3)
    late, early = list(listed)[2], list(listed)[:2]
    with Site("127.0.0.2") as slow:  # leads to the site when its first answer is no longer fresh
        slow["/robots.txt"] = status(404)
        slow["/far.jpg"] = after(0.4, redirect(late))
        file = write_list(tmp_path / "a.jsonl", {**dict.fromkeys(early, "a"), slow.url("/far.jpg"): "b"})
        ran = scrape(file, tmp_path / "a", ROBOTS)
    assert ran.counts == {"stored": 3}
    first, second = site.times("/robots.txt")
    assert second - first >= 1.99


# Opt-outs


@pytest.mark.parametrize(
    ("headers", "says_no"),
    [
        ([("X-Robots-Tag", "noai")], True),
        ([("X-Robots-Tag", "noimageai")], True),
        ([("x-robots-tag", "NOINDEX")], True),
        ([("X-Robots-Tag", "noimageindex")], True),
        ([("X-Robots-Tag", "noml")], True),
        ([("X-Robots-Tag", "none")], True),
        ([("X-Robots-Tag", "nofollow, noai, nosnippet")], True),
        ([("X-Robots-Tag", "all")], False),
        ([("X-Robots-Tag", "nofollow, noarchive")], False),
        ([("X-Robots-Tag", "max-image-preview: large")], False),
        ([("X-Robots-Tag", "max-image-preview: none")], False),
        ([("X-Robots-Tag", "max-image-preview: large, noai")], True),
        ([("X-Robots-Tag", "max-snippet: 20, nofollow")], False),
        ([("X-Robots-Tag", "everydream: noai")], True),
        ([("X-Robots-Tag", "EveryDream: nofollow, noindex")], True),
        ([("X-Robots-Tag", "*: noai")], True),
        ([("X-Robots-Tag", "googlebot: noindex")], False),
        ([("X-Robots-Tag", "googlebot: nofollow, noindex")], False),
        ([("X-Robots-Tag", "googlebot: noindex"), ("X-Robots-Tag", "noai")], True),
        ([("X-Robots-Tag", "googlebot: noindex"), ("X-Robots-Tag", "otherbot: noai")], False),
        ([("X-Robots-Tag", "googlebot: noindex, everydream: noai")], True),  # two headers that a proxy has joined
        ([("X-Robots-Tag", "everydream: nofollow, googlebot: noindex")], False),
        ([("X-Robots-Tag", "nofollow, googlebot: noindex, nosnippet")], False),
        ([("X-Robots-Tag", "noai, googlebot: nofollow")], True),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2010 15:00:00 PST")], True),
        ([("X-Robots-Tag", "unavailable_after: Wed, 03 Dec 2025 13:09:53 GMT")], True),
        ([("X-Robots-Tag", "unavailable_after: 2020-01-01")], True),
        ([("X-Robots-Tag", "unavailable_after: 2020-01-01T00:00:00Z, nofollow")], True),
        ([("X-Robots-Tag", "unavailable_after: Fri, 25 Jun 2100 15:00:00 GMT")], False),
        ([("X-Robots-Tag", "unavailable_after: Fri, 25 Jun 2100 15:00:00 GMT, noai")], True),
        ([("X-Robots-Tag", "unavailable_after: some day")], False),
        ([("X-Robots-Tag", "everydream: unavailable_after: Wed, 03 Dec 2025 13:09:53 GMT")], True),
        ([("X-Robots-Tag", "googlebot: unavailable_after: Wed, 03 Dec 2025 13:09:53 GMT")], False),
        ([("X-Robots-Tag", "")], False),
        ([("TDM-Reservation", "1")], True),
        ([("tdm-reservation", " 1 ")], True),
        ([("TDM-Reservation", "0")], False),
        ([("Content-Usage", "train-ai=n")], True),
        ([("Content-Usage", "bots=y, train-ai = n")], True),
        ([("Content-Usage", "train-ai=y")], False),
        ([("Content-Usage", "search=n")], False),
        ([("X-Other", "noai")], False),
    ],
)
def test_opt_outs(headers: list[tuple[str, str]], says_no: bool) -> None:
    assert (opted_out(headers, NOW) is not None) is says_no


def test_an_opt_out_is_final(site: Site, tmp_path: Path) -> None:
    said = [("X-Robots-Tag", "googlebot: noindex"), ("X-Robots-Tag", "noimageai")]
    site["/no.jpg"] = status(200, [*said, ("Content-Type", "image/jpeg")], jpeg(1))
    site["/tdm.jpg"] = ok(jpeg(2), headers={"TDM-Reservation": "1"})
    site["/yes.jpg"] = ok(jpeg(3), headers={"X-Robots-Tag": "googlebot: noindex"})
    listed = write_list(tmp_path / "a.jsonl", {site.url(f"/{name}.jpg"): name for name in ("no", "tdm", "yes")})
    ran = scrape(listed, tmp_path / "a")
    assert [line["reason"] for line in ran.lines] == ["opt_out", "opt_out", None]
    assert ran.details[site.url("/no.jpg")] == "X-Robots-Tag: noimageai"
    scrape(listed, tmp_path / "a", "--retry-failed")
    assert len(site.hits) == 3
    assert scrape(listed, tmp_path / "b", "fetch.opt_out=false").counts == {"stored": 3}


def test_we_say_who_we_are(site: Site, tmp_path: Path) -> None:
    site["/a.jpg"] = ok(jpeg(1))
    listed = write_list(tmp_path / "a.jsonl", {site.url("/a.jpg"): "a"})
    scrape(listed, tmp_path / "a", ROBOTS, "--contact", "me@example.org\r\nX-Evil: 1")
    for hit in site.hits:
        assert hit.headers["user-agent"] == user_agent("me@example.org X-Evil: 1")
        assert "github.com/victorchall/EveryDream; operator: me@example.org" in hit.headers["user-agent"]
        assert "x-evil" not in hit.headers and hit.headers["accept-encoding"] == "identity"
        assert not {"cookie", "referer", "authorization"} & set(hit.headers)
    assert [hit.path for hit in site.hits] == ["/robots.txt", "/a.jpg"]
