"""What a run's files say of how they were made.

    settings + images + base model -> what is the same for the whole run -> with a step's progress, in each file

All of it is a function of the run: no clock, no path, no machine but the libraries' versions. What it says of the base
is kept in last.ckpt, so a resumed run, which has no base any more, writes the same files.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from everydream import __version__
from everydream.config import RunConfig
from everydream.data.digests import Digests
from everydream.formats.hashes import sha256_of, weights_sha256
from everydream.formats.provenance import About
from everydream.models.common.loading import find
from everydream.models.settings import ModelSettings, is_hub_id
from everydream.plan import Planned
from everydream.sampling.prompts import prompts_from_captions
from everydream.training.state import Checkpoint
from everydream.types import Index, Progress

MANIFEST = "manifest.jsonl"
"""Where a scraped set says, image by image, what is known of its licence (datasets/README.md)."""
UNKNOWN = "unknown"
_PATHS = {"path", "folder", "prompts", "runs_dir", "features", "exclude"}
"""Settings that are paths wherever they stand; `model.config` is one as well."""


def base_of(settings: ModelSettings) -> dict[str, Any]:
    """Return the base model's name and hash, and what the hash is of."""
    path = find(settings.path)
    is_local = Path(settings.path).exists()
    return {
        "name": path.absolute().name if is_local else settings.path,
        "hub_id": settings.path if not is_local and is_hub_id(settings.path) else None,
        "sha256": sha256_of(path) if path.is_file() else weights_sha256(path),
        "of": "file" if path.is_file() else "names and hashes of the folder's weight files",
    }


def made_of(planned: Planned, images: Digests, checkpoint: Checkpoint | None) -> dict[str, Any]:
    """Return what is the same for a whole run; `images`: all that the run looks at."""
    config = planned.config
    if checkpoint is None:
        base = base_of(config.model)
    else:
        unknown = {"name": _last(config.model.path), "hub_id": None, "sha256": None, "of": "not noted at the start"}
        base = checkpoint.provenance.get("base", unknown)
    settings = without_paths(config.plain())
    settings["model"]["path"] = base["hub_id"] or base["name"]
    held_out_N = planned.held_out()
    return {
        "trainer": {"everydream": __version__, "torch": torch.__version__, "diffusers": version("diffusers")},
        "project": config.project,
        "method": config.method,
        "base": base,
        "resolution": config.data.resolution,
        "data": {
            "fingerprint": images.fingerprint(),
            "images": int((~held_out_N).sum()),
            "held_out": int(held_out_N.sum()),
            "sources": list(_sources(planned, ~held_out_N)),
        },
        "weights": "averaged" if config.ema.decay is not None and config.checkpoints.use_ema else "trained",
        "steps_planned": planned.total_steps,
        "examples": prompts_from_captions(_training_captions(planned)),
        "words": [word.token for word in config.textual_inversion.words],
        "config": settings,
    }


def at(made: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Return what a file of this moment says."""
    said = asdict(progress)
    return {**made, **{name: said[name] for name in ("step", "epoch", "images_seen")}}


def told(config: RunConfig, about: About) -> About | None:
    """Return how much of it exports say: all, all but settings and captions, nothing."""
    how = config.checkpoints.provenance
    if how == "none":
        return None
    return about if how == "full" else {name: about[name] for name in about if name not in ("config", "examples")}


def _sources(planned: Planned, trained_N: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    index, counts_N = planned.index, planned.mix.counts(0)
    for number, (name, source) in enumerate(zip(index.names, planned.config.data.sources, strict=True)):
        mine_N = trained_N & (index.source_N == number)
        yield {
            "name": name,
            "role": source.role,
            "images": int(mine_N.sum()),
            "draws_per_epoch": int(counts_N[mine_N].sum()),
            "licences": licences(index, np.flatnonzero(mine_N).tolist(), number),
        }


def licences(index: Index, records: Iterable[int], number: int) -> dict[str, int]:
    """Return the licences of a source's records and their numbers, as a scraped set says; unknown ones by that word."""
    root = Path(index.roots[number])
    known: dict[str, str] = {}
    for manifest in [root / MANIFEST, *sorted(root.glob(f"shard-*/{MANIFEST}"))] if index.roots[number] else []:
        prefix = "" if manifest.parent == root else f"{manifest.parent.name}/"
        known |= {prefix + path: licence for path, licence in _licences_in(manifest)}
    found = Counter(known.get(index.paths[record], UNKNOWN) for record in records)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _licences_in(manifest: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("path"), str):
            said = [str(row.get(name) or "").strip().strip("?") for name in ("licence", "licence_url")]
            yield row["path"], said[0] or said[1] or UNKNOWN


def _training_captions(planned: Planned) -> list[str]:
    """Return the first caption of each image that teaches something new."""
    index, sources = planned.index, planned.config.data.sources
    teaching = [record for record, n in enumerate(index.source_N.tolist()) if sources[n].role == "training"]
    return [index.captions[int(index.caption_offsets[record])] for record in teaching]


def without_paths(value: Any, key: str = "", above: str = "") -> Any:
    """Return settings with the last part alone of every path: where files lie is nobody's business."""
    if isinstance(value, dict):
        return {name: without_paths(item, name, key) for name, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item, key, above) for item in value]
    if not isinstance(value, str):
        return value
    is_path = key in _PATHS or (above, key) == ("model", "config")
    return _last(value) if is_path or _is_absolute(value) else value


def _last(path: str) -> str:
    return PureWindowsPath(path).name or path


def _is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or text.startswith("~/")
