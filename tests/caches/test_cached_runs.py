"""Runs with caches: the same numbers as without, nothing decoded, resumed to the bit, nothing frozen in silence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import make_images, metrics_of, train_here

ONE_SIZE = ((96, 80),)
FROZEN_TEXT: dict[str, Any] = {"train": False}


@pytest.fixture
def fixed(project: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a config in which nothing about the crops is random, and no batch holds a single image."""
    for name, count, seed in (("mine", 6, 1), ("real", 5, 2)):
        make_images(tmp_path / name, count, ONE_SIZE, seed)

    def write(**sections: Any) -> Path:
        return project(**{"data": {"crop": "center"}, "text_encoder": FROZEN_TEXT, **sections})

    return write


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in metrics_of(run)]


def counted(name: str) -> Any:
    """Return a patch that counts the pictures that a module decodes."""
    from pictures import decode as room

    return patch(name, side_effect=room.decode)


@pytest.mark.parametrize("what", ["latents", "text"])
def test_a_cached_run_is_the_uncached_one_to_the_bit(fixed: Callable[..., Path], what: str) -> None:
    config = fixed()
    plain = train_here(config)
    with counted("everydream.data.loader.decode") as decoded, counted("everydream.caches.filling.decode") as filled:
        cached = train_here(config, f"cache.{what}=true")
        assert (decoded.call_count, filled.call_count) == ((0, 11) if what == "latents" else (32, 0))

    assert losses(plain) == losses(cached)
