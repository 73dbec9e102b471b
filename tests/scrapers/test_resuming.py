"""A scrape that was ended, in whatever way, goes on and ends with the set of one that was not."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scrapes import finish, group_of, partial_files, scrape, start, the_set, write_list
from servers import Behaviour, Site, after, encoded, head, jpeg, ok, pixels, raw, redirect, status

from scrapers.ledger import Ledger


def at_random(seed: int, behaviour: Behaviour, longest_s: float = 0.15) -> Behaviour:
    """Delay each answer by another time, so that the order of the answers is another in every run."""
    rng = random.Random(seed)

    async def answer(*arguments: object) -> bool:
        return await after(rng.uniform(0, longest_s), behaviour)(*arguments)  # type: ignore[arg-type]

    return answer


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


def unruly(site: Site, number: int) -> list[tuple[str, str]]:
    """Return rows whose answers come in any order: good ones, copies, look-alikes, failures, long captions."""
    rows = []
    for n in range(number):
        path, caption = f"/{n}.jpg", f"a {('red', 'blue')[n % 2]} thing"
        behaviour = ok(jpeg(n))
        if n % 10 == 3:
            behaviour = status(404)
        elif n % 10 == 4:
            behaviour = raw(head(200, {"Content-Length": 5000}) + jpeg(n)[:600])
        elif n % 10 == 5:
            behaviour, caption = ok(jpeg(n - 5)), "a copy"
        elif n % 10 == 6:
            behaviour = ok(encoded(pixels(n - 6), "PNG"))
        elif n % 10 == 7:
            behaviour, caption = redirect(f"/{n}.moved"), f"where? a/b {n} " + "word " * 100
            site[f"/{n}.moved"] = at_random(n, ok(jpeg(n)))
        # The first of two equal files is the slower one.
        site[path] = after(0.25, behaviour) if n % 10 == 0 else at_random(n, behaviour)
        rows.append((site.url(path), caption))
    return rows


def finished(out: Path) -> set[str]:
    """Return the URLs that need no fetching any more, as a killed run has left its ledger and its staging folder."""
    ledger = Ledger(out)
    staged = {int(path.name.partition(".")[0]) for path in (out / ".scrape/staging").glob("*.raw")}
    found = {r.url for r in ledger.records() if r.status != "pending" or r.number in staged}
    ledger.close()
    return found


VARIANTS = {
    "folder": ["filters.duplicates=perceptual"],
    "webdataset": ["--sink", "webdataset", "sink.shard_size=7"],
    "limit": ["--limit", "23"],
    "original": ["--keep-original", "--sink", "webdataset", "sink.shard_size=4", "--limit", "30"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_at_any_moment(site: Site, tmp_path: Path, variant: str) -> None:
    options = [*VARIANTS[variant], "--concurrency", "8", "fetch.tries=2"]
    listed = write_list(tmp_path / "list.jsonl", unruly(site, 60))
    whole = scrape(listed, tmp_path / "whole", *options)
    expected = the_set(whole.out)
    assert whole.counts["stored"] >= 20 and whole.counts["duplicate"] >= 2 and whole.counts["incomplete"] >= 2
    out, rng = tmp_path / "killed", random.Random(variant)
    for share in (0.1, 0.45, 0.85):
        known = finished(out) if out.exists() else set()
        site.hits.clear()
        process = start(listed, out, *options)
        moment = max(1, int(share * rng.uniform(0.7, 1.2) * len(whole.lines))) - len(known)
        wait_for(lambda: len(site.hits) >= moment or process.poll() is not None)  # noqa: B023
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert not known & {site.url(path) for path in site.asked}
        wait_for(lambda: not group_of(process))  # noqa: B023
    known = finished(out)
    assert len(known) > 3
    site.hits.clear()
    ran = scrape(listed, out, *options)
    assert not known & {site.url(path) for path in site.asked}
    assert the_set(out) == expected
    assert ran.ends == whole.ends
    assert partial_files(out) == [] and not (out / ".scrape/staging").exists()


def wait_for(is_so: Callable[[], bool], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_from_outside(site: Site, tmp_path: Path, number: int, code: int) -> None:
    options = ["--sink", "webdataset", "sink.shard_size=7", "--concurrency", "4"]
    listed = write_list(tmp_path / "list.jsonl", unruly(site, 40))
    whole = scrape(listed, tmp_path / "whole", *options)
    site.hits.clear()
    out = tmp_path / "ended"
    process = start(listed, out, *options)
    wait_for(lambda: len(site.hits) >= 22)
    process.send_signal(number)
    ran = finish(process, out, code)
    assert "Stopped. The same command goes on from here." in ran.said and "Traceback" not in ran.said
    wait_for(lambda: not group_of(process), 5)
    assert ran.summary["ended"] is False and 0 < ran.summary["stored"] < whole.summary["stored"]
    assert partial_files(out) == []
    assert {path.name for path in out.glob("*.tar")} == {line["path"][:9] for line in ran.lines if line["path"]}
    known = finished(out)
    site.hits.clear()
    scrape(listed, out, *options)
    assert not known & {site.url(path) for path in site.asked}
    assert the_set(out) == the_set(whole.out)


def test_a_finished_set_is_left_alone(site: Site, tmp_path: Path) -> None:
    listed = write_list(tmp_path / "list.jsonl", unruly(site, 20))
    first = scrape(listed, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in first.out.glob("*.jpg")}
    expected = the_set(first.out)
    site.hits.clear()
    again = scrape(listed, tmp_path / "set")
    assert site.hits == [] and the_set(again.out) == expected and again.ends == first.ends
    assert {path: path.stat().st_mtime_ns for path in again.out.glob("*.jpg")} == before
    assert again.summary["stored_in_this_run"] == 0 and again.summary["stored"] == first.summary["stored"]


def test_a_larger_limit_goes_on(site: Site, tmp_path: Path) -> None:
    listed = write_list(tmp_path / "list.jsonl", unruly(site, 40))
    whole = scrape(listed, tmp_path / "whole", "--limit", "17")
    site.hits.clear()
    scrape(listed, tmp_path / "set", "--limit", "6")
    assert len(list((tmp_path / "set").glob("*.jpg"))) == 6
    assert len(site.hits) < 25  # no more than is needed
    first = set(site.asked)
    site.hits.clear()
    more = scrape(listed, tmp_path / "set", "--limit", "17")
    assert not first & set(site.asked)
    assert the_set(more.out) == the_set(whole.out)
    assert more.counts["stored"] == 17
    scrape(listed, tmp_path / "set", "--limit", "3")  # a smaller one takes nothing away
    assert the_set(more.out) == the_set(whole.out)


def test_retry_failed_takes_up_what_can_pass_and_nothing_else(site: Site, tmp_path: Path) -> None:
    fates = {
        "fine": ok(jpeg(1)), "500": status(500), "503": status(503), "reset": raw(), "gone": status(404),
        "html": ok(b"<html>" + b"x" * 99), "cut": raw(head(200, {"Content-Length": 9000}) + jpeg(5)[:500]),
        "damaged": ok(jpeg(6)[:-500]), "said-no": ok(jpeg(7), headers={"X-Robots-Tag": "noai"}),
        "copy": ok(jpeg(1)), "later": status(429, {"Retry-After": "9999"}),
    }  # fmt: skip
    for name, behaviour in fates.items():
        site[f"/{name}"] = behaviour
    listed = write_list(tmp_path / "list.jsonl", {site.url(f"/{name}"): "one caption" for name in fates})
    first = scrape(listed, tmp_path / "set", "fetch.tries=1")
    before = the_set(first.out)
    for n, name in enumerate(fates):
        site[f"/{name}"] = ok(jpeg(100 + n))
    site.hits.clear()
    scrape(listed, tmp_path / "set")
    assert site.hits == []
    again = scrape(listed, tmp_path / "set", "--retry-failed")
    assert sorted(site.asked) == ["/500", "/503", "/cut", "/reset"]
    recovered = {site.url(f"/{name}"): "stored" for name in ("500", "503", "cut", "reset")}
    assert again.ends == {**first.ends, **recovered}
    after_it = the_set(again.out)
    assert {path: after_it[path] for path in before if path.endswith(".jpg")} == {
        path: digest for path, digest in before.items() if path.endswith(".jpg")
    }
    assert sorted(path.name for path in again.out.glob("*.jpg")) == [f"one caption_({n}).jpg" for n in range(1, 6)]
    site.hits.clear()
    scrape(listed, tmp_path / "set", "--retry-failed")
    assert site.hits == []  # the one that asked for patience still has it


def test_one_set_is_made_in_one_way(site: Site, tmp_path: Path) -> None:
    site["/a"], site["/b"] = ok(jpeg(1)), ok(jpeg(2))
    listed = write_list(tmp_path / "list.jsonl", {site.url("/a"): "a"})
    other = write_list(tmp_path / "other.jsonl", {site.url("/a"): "a", site.url("/b"): "b"})
    ran = scrape(listed, tmp_path / "set")
    expected = the_set(ran.out)
    for files, options, named in (
        (listed, ["filters.min_width=8"], ["filters.min_width"]),
        (listed, ["--resize", "32", "--sink", "webdataset"], ["images.resize", "sink.kind"]),
        (listed, ["captions.text=photo of {caption}"], ["captions.text"]),
        (other, [], ["source"]),
    ):
        refused = scrape(files, tmp_path / "set", *options, code=2)
        told = [line.split(":")[0].strip() for line in refused.said.splitlines() if " -> " in line]
        assert told == named and "another --out" in refused.said
    refused = scrape(listed, tmp_path / "set", "--shard", "0/1", code=0)
    assert the_set(tmp_path / "set" / "shard-00000-of-00001") == expected
    # How sites are asked is not in the set.
    scrape(listed, tmp_path / "set", "fetch.tries=1", "--concurrency", "3", "--limit", "9", "workers=2")


def test_two_scrapes_into_one_set(site: Site, tmp_path: Path) -> None:
    site["/a"] = after(6.5, ok(jpeg(1)))  # longer than the second one waits for the ledger
    listed = write_list(tmp_path / "list.jsonl", {site.url("/a"): "a"})
    process = start(listed, tmp_path / "set", "fetch.read_timeout_s=20", "fetch.total_timeout_s=20")
    wait_for(lambda: bool(site.hits))
    second = scrape(listed, tmp_path / "set", code=2)
    assert "Is another scrape writing to it?" in second.said and "Traceback" not in second.said
    ran = finish(process, tmp_path / "set")
    assert ran.counts == {"stored": 1} and site.count("/a") == 1
