"""Parts of a scrape elsewhere: portions that may be run again, parts of a list, decoders that die."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from scrapes import QUICK, Ran, scrape, write_list
from servers import Site, jpeg, ok, status

from scrapers.decoding import Decoders
from scrapers.recipe import resolve
from scrapers.settings import FilterSettings, ImageSettings, ScrapeSettings
from scrapers.shard import ShardSpec, run_shard
from scrapers.types import Item, Picture, Reason, Verdict


def settings(*overrides: str, opened: str = "127.0.0.0/8") -> ScrapeSettings:
    base = {"source": {"kind": "urls", "files": ["none"]}}
    return resolve(base, [*QUICK, f"fetch.allow_private=[{opened}]", "fetch.robots=false", *overrides], "test")


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


# Portions


def portion(site: Site, staging: Path, *overrides: str) -> ShardSpec:
    staging.mkdir(exist_ok=True)
    fates = {
        "/1": ok(jpeg(1)),
        "/2": status(404),
        "/3": ok(b"<html>"),
        "/4": ok(jpeg(4), headers={"X-Robots-Tag": "noai"}),
    }
    site.routes.update(fates)
    items = [Item(n, site.url(path)) for n, path in enumerate(fates, 1)]
    items += [Item(5, "not a url"), Item(6, site.url("/1"), md5="0" * 32)]
    return ShardSpec(settings(*overrides).model_dump_json(), str(staging), 0, tuple(items))


def test_a_portion_can_be_run_again(site: Site, tmp_path: Path) -> None:
    spec = portion(site, tmp_path / "staging", "fetch.robots=true")
    outcomes = run_shard(spec)
    assert [o.number for o in outcomes] == [1, 2, 3, 4, 5, 6]
    assert isinstance(outcomes[0].result, Picture) and outcomes[0].result.file.exists()
    reasons = [o.result.reason.value for o in outcomes if isinstance(o.result, Verdict)]
    assert reasons == ["http_404", "not_image", "opt_out", "bad_url", "hash_mismatch"]
    site.hits.clear()
    assert run_shard(spec) == outcomes and site.hits == []
    # Lost before it was noted down: only what has no file is fetched again, and robots.txt is known.
    spec.done_file.unlink()
    assert run_shard(spec) == [
        o if isinstance(o.result, Verdict) and o.number != 6 else type(o)(o.number, o.result, 0) for o in outcomes
    ]
    assert sorted(site.asked) == ["/2", "/3", "/4"] == sorted(hit.path for hit in site.hits)


def test_what_a_lost_machine_has_left_behind_does_no_harm(site: Site, tmp_path: Path) -> None:
    """It may have written half a file under the name that the next try uses."""
    spec = portion(site, tmp_path / "staging")
    (tmp_path / "staging/000000001.raw.part").write_bytes(jpeg(9)[:1000])
    (tmp_path / "staging/000000001.jpg.part").write_bytes(b"half")
    spec.done_file.with_suffix(".part").write_bytes(b"[{")
    made = run_shard(spec)[0].result
    assert isinstance(made, Picture) and made.file.read_bytes() == jpeg(1)


def test_a_done_file_of_other_rows_is_not_believed(site: Site, tmp_path: Path) -> None:
    spec = portion(site, tmp_path / "staging")
    fewer = ShardSpec(spec.settings, spec.staging, 0, (spec.items[0], spec.items[5]))
    assert fewer.done_file == spec.done_file
    run_shard(fewer)
    assert [o.number for o in run_shard(spec)] == [1, 2, 3, 4, 5, 6]


# Parts of a list


def test_the_parts_of_a_list(tmp_path: Path) -> None:
    sites = [Site(f"127.0.0.{n}") for n in range(1, 7)]
    try:
        rows = {}
        for n, site in enumerate(sites):
            site.__enter__()
            for k in range(5):
                site[f"/{k}"] = ok(jpeg(10 * n + k)) if k else status(404)
        for k in range(5):
            rows |= {site.url(f"/{k}"): f"thing {k}" for site in sites}
        rows["no url"] = "nowhere"
        listed = write_list(tmp_path / "list.jsonl", rows)
        whole = scrape(listed, tmp_path / "whole")
        parts = [scrape(listed, tmp_path / "parts", "--shard", f"{i}/3") for i in range(3)]
        folders = sorted(path.name for path in (tmp_path / "parts").iterdir())
        assert folders == [f"shard-0000{i}-of-00003" for i in range(3)]
        by_part = [Ran(tmp_path / "parts" / name, 0, "").ends for name in folders]
        assert sum(map(len, by_part)) == len(rows) and {**by_part[0], **by_part[1], **by_part[2]} == whole.ends
        hosts = [{url.split(":")[1] for url in part if url != "no url"} for part in by_part]
        assert sum(map(len, hosts)) == len(sites) == len(set().union(*hosts))
        assert parts[0].ends == whole.ends  # the report of the folder is of all parts
        assert all((tmp_path / "parts" / line["path"]).exists() for line in parts[0].lines if line["path"])
        limited = [scrape(listed, tmp_path / "few", "--shard", f"{i}/3", "--limit", "4") for i in range(3)]
        assert limited[2].counts["stored"] == 4
        refused = scrape(listed, tmp_path / "few", "--shard", "3/3", code=2)
        assert "write it as i/N with i from 0 to N - 1" in refused.said
    finally:
        for site in sites:
            site.__exit__()


# Decoders


def test_a_decoder_that_dies_takes_at_most_its_image_with_it(tmp_path: Path) -> None:
    tasks = []
    for n in range(6):
        (tmp_path / f"{n}.raw").write_bytes(jpeg(n))
        tasks.append((tmp_path / f"{n}.raw", tmp_path / str(n), Item(n, "")))

    async def main() -> None:
        decoders = Decoders(1, ImageSettings(), FilterSettings())
        try:
            assert all(isinstance(made, Picture) for made in await decoders.make(tasks[:2]))
            pool = decoders._free._queue[0]  # type: ignore[attr-defined]
            (process,) = pool._processes.values()
            os.kill(process.pid, signal.SIGKILL)
            process.join(5)
            # It had nothing to do with these, alone or together.
            assert all(isinstance(made, Picture) for made in await decoders.make(tasks[2:3]))
            assert all(isinstance(made, Picture) for made in await decoders.make(tasks[3:]))
        finally:
            decoders.close()

    asyncio.run(main())


def test_an_image_that_kills_its_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every time: then it is its fault. The others of its batch are made all the same."""
    tasks = []
    for n in range(4):
        (tmp_path / f"{n}.raw").write_bytes(jpeg(n))
        tasks.append((tmp_path / f"{n}.raw", tmp_path / str(n), Item(n, "")))
    fifo = tmp_path / "1.raw"
    fifo.unlink()
    os.mkfifo(fifo)  # a decoder that reads it waits, and is killed then

    async def main() -> None:
        decoders = Decoders(1, ImageSettings(), FilterSettings())

        async def killer() -> None:
            while True:
                await asyncio.sleep(0.3)
                for pool in [*pools]:
                    for process in list((pool._processes or {}).values()):
                        with suppress(ProcessLookupError):
                            os.kill(process.pid, signal.SIGKILL)

        pools: list[object] = []
        new = decoders._new
        monkeypatch.setattr(decoders, "_new", lambda: (pools.append(p := new()), p)[1])
        pools.append(decoders._free._queue[0])  # type: ignore[attr-defined]
        killing = asyncio.create_task(killer())
        try:
            made = await asyncio.wait_for(decoders.make([tasks[1]]), 20)
            killing.cancel()
            assert isinstance(made[0], Verdict) and made[0].reason is Reason.DECODER_CRASHED
            assert "crashed" in made[0].detail
            rest = await decoders.make([tasks[0], tasks[2], tasks[3]])
            assert all(isinstance(one, Picture) for one in rest)
        finally:
            decoders.close()

    asyncio.run(main())
