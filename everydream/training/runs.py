"""Run folders: `runs/<project>-<timestamp>/`, marked as ours by `run.json`."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

from everydream import __version__
from everydream.errors import ConfigError, ResumeError
from everydream.formats.atomic import OLDER, PARTIAL, settled
from everydream.formats.sharded import is_sharded

MARKER = "run.json"
LAST = "last.ckpt"
PLAN = "plan.json"
LEDGER = "ledger.json"


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
        said = {"everydream": __version__, "project": project}
        launch = {"launch": launch_id()} if launch_id() is not None else {}
        (folder / MARKER).write_text(json.dumps(said | launch) + "\n", encoding="utf-8")
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
    """Return what tells torchrun's launches apart, None where there is none: its --rdzv-id, or who started this."""
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"{socket.gethostname()}-{os.getppid()}" if given == "none" else given


def restarted(runs_dir: Path, project: str) -> Path | None:
    """Return the last.ckpt of the run that this launch began, if it did; None: there is nothing to go on with.

    Torchrun starts all processes anew, with the same command line, when a process or a machine is lost or joins. Its
    count of restarts says nothing of machines, so the launch's name decides.
    """
    if launch_id() is None:
        return None
    mine = [run for run in runs_of(runs_dir, project) if _marker(run).get("launch") == launch_id()]
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


def _marker(run: Path) -> dict[str, str]:
    said: dict[str, str] = json.loads((run / MARKER).read_text(encoding="utf-8"))
    return said


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
