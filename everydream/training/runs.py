"""Run folders: `runs/<project>-<timestamp>/`, marked as ours by `run.json`."""

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from everydream import __version__
from everydream.errors import ConfigError, ResumeError
from everydream.formats.atomic import OLDER, PARTIAL, atomic_file, settled
from everydream.formats.sharded import is_sharded

MARKER = "run.json"
LAST = "last.ckpt"
PLAN = "plan.json"
LEDGER = "ledger.json"


def create_run(runs_dir: Path, project: str, begun_from: Path | None = None) -> Path:
    """Make a new run folder; two runs of one second get different names. `begun_from`: a checkpoint of elsewhere."""
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
        said: dict[str, Any] = {"everydream": __version__, "project": project}
        if (launch := launch_id()) is not None:
            said |= {"launch": launch, "begun_from": _absolute(begun_from)}
        with atomic_file(folder / MARKER) as partial:
            partial.write_text(json.dumps(said) + "\n", encoding="utf-8")
        return folder
    raise ConfigError(f"{runs_dir} holds a thousand runs named {stamp}.")


def find_checkpoint(resume: str, runs_dir: Path, project: str) -> Path | None:
    """Return the file to resume from; for `auto` the newest last.ckpt of the project, or None if there is none.

    A run folder may be given in place of its last.ckpt. Raises ResumeError when there is nothing there.
    """
    if resume == "auto":
        found = [run / "checkpoints" / LAST for run in runs_of(runs_dir, project)]
        found = [path for path in map(settled, found) if path.exists()]
        return max(found, key=lambda path: (path.stat().st_mtime, str(path)), default=None)
    path = Path(resume)
    if path.is_dir() and not is_sharded(path):
        if not (path / MARKER).is_file():
            raise ResumeError(
                f"{path} is not a run folder of EveryDream: it has no {MARKER}. "
                f"Give a run folder, or its checkpoints/{LAST}."
            )
        path = path / "checkpoints" / LAST
    if not settled(path).exists():
        raise ResumeError(
            f"There is no checkpoint at {path.absolute()}. Give a {LAST}, a run folder, or `--resume auto`."
        )
    return path


def launch_id() -> str | None:
    """Return what tells torchrun's launches apart, None where there is none: its --rdzv-id, or who started this.

    Raises ConfigError on several machines without the former, for none of them knows who started the others.
    """
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given != "none":
        return given
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "On several machines torchrun needs --rdzv-id, any name of this job: by it the processes find their run "
            "again when one of them was lost. Give each new run a new one."
        )
    starter = psutil.Process(os.getppid())
    return f"{socket.gethostname()}-{starter.pid}-{starter.create_time()}"


def restarted(runs_dir: Path, project: str, resume: str | None) -> Path | None:
    """Return the last.ckpt of the run that this launch began, if it did; None: there is nothing to go on with.

    `resume`: what the command line says to go on with; it is done once, and not again by a restart. Torchrun starts all
    processes anew, with the same command line, when a process or a machine is lost or joins. Its count of restarts says
    nothing of machines, so the launch's name decides.
    """
    if launch_id() is None:
        return None
    begun_from = _absolute(Path(resume)) if resume not in (None, "auto") else None
    mine = [
        run
        for run in runs_of(runs_dir, project)
        if (marker := _marker(run)).get("launch") == launch_id() and marker.get("begun_from") == begun_from
    ]
    paths = [path for path in (settled(run / "checkpoints" / LAST) for run in mine) if path.exists()]
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def newest_run(runs_dir: Path, project: str) -> Path | None:
    """Return the run of a project that was written to last, None if there is none."""
    return max(runs_of(runs_dir, project), key=written_at, default=None)


def written_at(run: Path) -> float:
    """Return when a run last wrote a number or an event, in seconds since 1970."""
    files = (run / name for name in (MARKER, "metrics.jsonl", "events.jsonl"))
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def runs_of(runs_dir: Path, project: str) -> list[Path]:
    """Return the project's run folders: by what run.json says, for `cat-v2-...` may be of `cat-v2` or of `cat`."""
    marked = [path for path in runs_dir.iterdir() if (path / MARKER).is_file()] if runs_dir.is_dir() else []
    return [path for path in marked if _marker(path).get("project") == project]


def _marker(run: Path) -> dict[str, Any]:
    try:
        said = json.loads((run / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # of a machine that was lost just then
    return said if isinstance(said, dict) else {}


def _absolute(path: Path | None) -> str | None:
    return os.path.abspath(path) if path is not None else None  # noqa: PTH100 - the one that knows `..`


def run_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, or None if it was moved away."""
    folder = checkpoint.absolute().parent.parent
    in_place = checkpoint.absolute().parent.name == "checkpoints" and (folder / MARKER).is_file()
    return folder if in_place else None


def tidy(run: Path) -> int:
    """Remove what a killed process left half-written among the checkpoints; return the bytes of the whole ones."""
    for path in [path for end in (PARTIAL, OLDER) for path in (run / "checkpoints").glob(f"*{end}")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return sum(path.stat().st_size for path in (run / "checkpoints").rglob("*") if path.is_file())
