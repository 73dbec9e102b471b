"""The scan on a small Ray cluster finds what this machine does."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tars import png

from everydream.data import portions
from everydream.data.scan import scan
from everydream.data.settings import CaptionSettings, DataSettings
from everydream.types import Index

pytestmark = [pytest.mark.ray]


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_finds_what_this_machine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from everydream.tools.indexing import ray_engine

    monkeypatch.setattr(ray_engine, "_PORTIONS", 2)
    monkeypatch.setattr(portions, "_MOST_FILES", 4)
    for number in range(20):
        (tmp_path / f"{number:02}.png").write_bytes(png(number) if number != 7 else b"no image")
        (tmp_path / f"{number:02}.txt").write_text(f"thing {number}")
    data = DataSettings(sources=[{"path": str(tmp_path)}])  # type: ignore[list-item]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".one"))
    here = scan(data, CaptionSettings())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".two"))
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        there = scan(data, CaptionSettings(), engine=ray_engine.surveyed_by_ray)
    finally:
        ray.shutdown()
    assert len(here) == 19
    assert all(np.array_equal(getattr(here, f.name), getattr(there, f.name)) for f in fields(Index))
