"""Run folders: `runs/<project>-<timestamp>/`, marked as ours by `run.json`."""

import json
import time
from pathlib import Path

from everydream import __version__
from everydream.errors import ConfigError, ResumeError

MARKER = "run.json"
LAST = "last.ckpt"


def create_run(runs_dir: Path, project: str) -> Path:
    """Make a new run folder; two runs of one second get different names."""
    stamp = f"{project}-{time.strftime('%Y%m%d-%H%M%S')}"
    if runs_dir.exists() and not runs_dir.is_dir():
        raise ConfigError(f"runs_dir: {runs_dir} is a file, and runs need a folder. Move it or set runs_dir.")
    for attempt in range(1, 1000):
        folder = runs_dir / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(
                f"runs_dir: {runs_dir} cannot be written to ({error}). Set runs_dir to a folder of yours."
            ) from error
        (folder / "checkpoints").mkdir()
        (folder / MARKER).write_text(
            json.dumps({"everydream": __version__, "project": project}) + "\n", encoding="utf-8"
        )
        return folder
    raise ConfigError(f"{runs_dir} holds a thousand runs named {stamp}.")


def find_checkpoint(resume: str, runs_dir: Path, project: str) -> Path | None:
    """Return the file to resume from; for `auto` the newest last.ckpt of the project, or None if there is none.

    A run folder may be given in place of its last.ckpt. Raises ResumeError when there is nothing there.
    """
    if resume == "auto":
        found = [
            folder / "checkpoints" / LAST for folder in runs_dir.glob(f"{project}-*") if (folder / MARKER).is_file()
        ]
        found = [path for path in found if path.is_file()]
        return max(found, key=lambda path: (path.stat().st_mtime, str(path)), default=None)
    path = Path(resume)
    if path.is_dir():
        if not (path / MARKER).is_file():
            raise ResumeError(
                f"{path} is not a run folder of EveryDream: it has no {MARKER}. "
                f"Give a run folder, or its checkpoints/{LAST}."
            )
        path = path / "checkpoints" / LAST
    if not path.is_file():
        raise ResumeError(
            f"There is no checkpoint at {path.absolute()}. Give a {LAST}, a run folder, or `--resume auto`."
        )
    return path


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it was moved away."""
    folder = checkpoint.absolute().parent.parent
    in_place = checkpoint.absolute().parent.name == "checkpoints" and (folder / MARKER).is_file()
    return folder if in_place else None
