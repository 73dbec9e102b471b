"""The same set from a Ray cluster, also from one that loses a machine half-way."""

import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scrapes import partial_files, scrape, the_set, write_list
from servers import Behaviour, Site, after, head, jpeg, ok, raw, redirect, status

pytestmark = [pytest.mark.ray]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and two machines with one each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def sites_with(number: int, delay_s: float) -> tuple[list[Site], list[tuple[str, str]]]:
    sites = [Site(f"127.0.0.{n}") for n in range(1, 7)]
    rows = []
    for n in range(number):
        site = sites[n % len(sites)]
        behaviour: Behaviour = ok(jpeg(n))
        if n % 9 == 4:
            behaviour = status(404)
        elif n % 9 == 5:
            behaviour = ok(jpeg(n - 5))
        elif n % 9 == 6:
            behaviour = raw(head(200, {"Content-Length": 9999}) + jpeg(n)[:500])
        elif n % 9 == 7:
            behaviour = redirect(f"/{n}.moved")
            site[f"/{n}.moved"] = ok(jpeg(n))
        site[f"/{n}"] = after(delay_s, behaviour)
        site["/robots.txt"] = status(404)
        rows.append((n % len(sites), f"/{n}", f"thing {n % 7}"))
    return sites, rows  # type: ignore[return-value]


@pytest.mark.parametrize(("sink", "loses_a_machine"), [("folder", False), ("webdataset", True)])
def test_the_same_set(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, loses_a_machine: bool
) -> None:
    monkeypatch.setattr("scrapers.ray_engine.PORTION", 8)
    sites, plan = sites_with(120, 0.05 if loses_a_machine else 0.0)
    options = ["--sink", sink, "sink.shard_size=10", "fetch.tries=2", "--limit", "60", "fetch.robots=true",
               "fetch.per_host=2"]  # fmt: skip
    try:
        for site in sites:
            site.__enter__()
        rows = [(sites[int(n)].url(path), caption) for n, path, caption in plan]  # type: ignore[misc]
        listed = write_list(tmp_path / "list.jsonl", rows)
        local = scrape(listed, tmp_path / "local", *options)
        for site in sites:
            site.hits.clear()
        if loses_a_machine:
            victim = next(iter(cluster.worker_nodes))

            def lose() -> None:
                while sum(len(site.asked) for site in sites) < 40:
                    if stopped.wait(0.02):
                        return
                cluster.remove_node(victim)
                lost.append(True)

            lost: list[bool] = []
            stopped = threading.Event()
            thread = threading.Thread(target=lose)
            thread.start()
        ran = scrape(listed, tmp_path / "ray", *options, "--engine", "ray")
        if loses_a_machine:
            stopped.set()
            thread.join()
            assert lost == [True]
        assert the_set(ran.out) == the_set(local.out) and ran.ends == local.ends
        assert ran.counts["stored"] == 60 and ran.counts["duplicate"] >= 3 and ran.counts["incomplete"] >= 3
        assert partial_files(ran.out) == [] and not (ran.out / ".scrape/staging").exists()
        if not loses_a_machine:
            assert [site.count("/robots.txt") for site in sites] == [1] * 6
            assert all(hits.count(path) == 1 for site in sites for hits in [site.asked] for path in hits
                       if not isinstance(path, int) and int(path.strip("/").partition(".")[0]) % 9 != 6)  # fmt: skip
    finally:
        for site in sites:
            site.__exit__()
