"""`everydream cache fill | verify | size | gc`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import make_images, metrics_of, train_here
from tool_app import run

from everydream.caches.shards import list_shards


def test_a_cache_is_filled_shown_checked_and_cleaned(project: Callable[..., Path], tmp_path: Path) -> None:
    make_images(tmp_path / "mine", 6, ((96, 80),))
    config = project(
        data={"crop": "center", "sources": [{"path": str(tmp_path / "mine")}]}, text_encoder={"train": False},
        cache={"latents": True, "text": True},
    )  # fmt: skip
    folder = tmp_path / "runs" / "cache"
    assert f"Cache: latents 6 of 6, text 14 of 14 in {folder}" in run("cache", "fill", "-c", config).stdout
    shards = list_shards(folder)
    run("cache", "fill", "-c", config)
    assert list_shards(folder) == shards, "nothing is made twice"
    trained = train_here(config)
    assert list_shards(folder) == shards and len(metrics_of(trained)) == 4, "a run finds what the command made"

    said = run("cache", "size", "-c", config).stdout.splitlines()
    assert len(said) == 3 and "latents" in said[0] and "6 entries in 1 shards" in said[0] and "in 2 shards" in said[2]
    assert "2 shards, 20 entries, all as they were written" in run("cache", "verify", folder).stdout

    content = bytearray(shards[0].read_bytes())
    content[-1] ^= 1
    shards[0].write_bytes(content)
    said = run("cache", "verify", folder, check=1).stdout.splitlines()
    assert str(shards[0]) in said[0] and "1 damaged" in said[1]
    (folder / "shard-x.safetensors.partial").touch()
    os.utime(folder / "shard-x.safetensors.partial", (0, 0))
    said = run("cache", "gc", folder).stdout
    assert shards[0].name in said and "1 files that killed processes" in said and list_shards(folder) == shards[1:]
    assert "1 files" not in run("cache", "gc", folder).stdout and list_shards(folder) == shards[1:]
    os.utime(shards[1], (0, 0))
    assert "removed, long unused: 1" in run("cache", "gc", folder, "--unused-days", 30).stdout
    run("cache", "fill", "-c", config)
    assert len(list_shards(folder)) == 2
    run("cache", "gc", folder, "--max-gb", 0)
    assert not list_shards(folder)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("fill",), "Say for which run"),
        (("size",), "Say which cache"),
        (("verify", "nowhere"), "there is no cache"),
    ],
)
def test_what_cannot_be_done_is_told(arguments: tuple[str, ...], told: str) -> None:
    assert told in run("cache", *arguments, check=2).stderr


def test_nothing_to_keep_and_no_room_are_told(project: Callable[..., Path]) -> None:
    config = project(data={"crop": "center"})
    assert "Set cache.latents: true" in run("cache", "fill", "-c", config, check=2).stderr
    done = run("cache", "fill", "-c", config, "cache.latents=true", "cache.max_gb=0.00001", check=1)
    assert "latents 0 of 11" in done.stdout and "Raise cache.max_gb" in done.stderr
