"""What many tests need: a tiny model on disk, a folder of pictures, a config, and runs in this or another process."""

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is imported: the models are tiny, and two test processes of two threads each get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests, and the commands they start, out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1 model as a diffusers folder."""
    import tiny

    folder = tmp_path_factory.mktemp("models") / "sd1"
    tiny.save_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD2 model with v-prediction as a diffusers folder."""
    import tiny

    folder = tmp_path_factory.mktemp("models") / "sd2"
    tiny.save_pipeline(folder, "sd2")
    return folder


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL model as a diffusers folder."""
    import tiny

    folder = tmp_path_factory.mktemp("models") / "sdxl"
    tiny.save_pipeline(folder, "sdxl")
    return folder


@pytest.fixture(scope="session")
def flow_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny flow transformers as diffusers folders, with and without what they may have."""
    import tiny

    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "sd3": ("sd3", {}), "sd3 without T5": ("sd3", {"t5": False}),
        "flux": ("flux", {}), "flux without guidance": ("flux", {"guidance": False}),
    }  # fmt: skip
    made = {}
    for name, (kind, options) in kinds.items():
        made[name] = tmp_path_factory.mktemp("models") / kind
        tiny.make_flow_pipeline(kind, **options).save_pretrained(made[name])
    return made


def make_images(
    folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = ((96, 64), (64, 96), (80, 80)), seed: int = 0
) -> Path:
    """Write `count` random PNGs captioned by their names."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        width, height = sizes[i % len(sizes)]
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"a picture of thing {i}_(1).png"
        )
    return folder


@pytest.fixture
def project(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    """Return a function that writes a config for two small sources; keyword arguments replace whole sections."""

    def write(**sections: Any) -> Path:
        for name, count, seed in (("mine", 6, 1), ("real", 5, 2)):
            if not (tmp_path / name).exists():
                make_images(tmp_path / name, count, seed=seed)
        config: dict[str, Any] = {
            "project": "trial",
            "runs_dir": str(tmp_path / "runs"),
            "model": {"path": str(model_folder)},
            "data": {
                "resolution": 64,
                "bucket_step": 16,
                "workers": 0,
                "sources": [
                    {"path": str(tmp_path / "mine"), "repeats": 2},
                    {"path": str(tmp_path / "real"), "share": 0.25, "role": "ground_truth"},
                ],
            },
            "train": {"epochs": 2, "batch_size": 4, "precision": "fp32", "gradient_checkpointing": False},
            "unet": {"lr": 1e-3},
            "text_encoder": {"lr": 1e-4},
            "checkpoints": {"formats": []},
            "samples": {"every_steps": None},
            "trackers": [],
        }
        for section, value in sections.items():
            config[section] = {**config[section], **value} if isinstance(config.get(section), dict) else value
        path = tmp_path / "project.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write


def run_cli(*arguments: object, check: int = 0, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `everydream ...` in a process of its own and return what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "everydream.cli", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", cwd=cwd, timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == check, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def train_here(
    config: Path, *overrides: str, resume: Path | None = None, allow_changes: bool = False, reviewed: bool = False
) -> Path:
    """Train in this process and return the run folder; `reviewed`: with its charts and verdict, a second's work."""
    from everydream import train as room
    from everydream.config import load_config

    settings = load_config(config, list(overrides), to_train=resume is None)
    with nullcontext() if reviewed else patch.object(room, "review"):
        run, ended_by = room.train(settings, resume, allow_changes)
    assert ended_by is None
    return run


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics: of steps, and of what looked at it."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's steps."""
    return [line for line in lines_of(run) if "epoch" in line]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first: at the end one process would wait for the other's last one."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


@pytest.fixture(autouse=True, scope="module")
def lasting_objects() -> None:
    """Take what modules left so far out of each later collection: a run collects at its end, here a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def any_precision() -> Iterator[None]:
    """Let runs in this process differ in precision, of which accelerate allows one."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless; tests of pages are skipped where there is none.

    For one module at a time: as long as it is open an event loop runs here, and no other one can.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium to try the page in; install it: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()
