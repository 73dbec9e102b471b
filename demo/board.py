"""What the measured pages share: a config trained in a process of its own, and a table put into a page."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.run import ROOT

QUIET = ("samples.every_steps=null", "trackers=[]")
"""Overrides that leave out what a measured run does not need."""


def train(config: str, overrides: Sequence[str], runs_dir: Path) -> Path:
    """Run train.py, whose `overrides` send its run to `runs_dir`, a new folder; return the run.

    Raises CalledProcessError if it fails; what it said stands above.
    """
    subprocess.run([sys.executable, str(ROOT / "train.py"), "--config", config, *overrides], check=True)
    (facts,) = runs_dir.glob("*/run.json")
    return facts.parent


def with_table(page: str, text: str, start: str, end: str) -> str:
    """Return the page with what stands between the lines `start` and `end` replaced. Exits where one is missing."""
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"The page lacks the line {start} or {end}, so there is no place for the table.")
    return f"{before}{start}\n\n{text}\n\n{end}{after}"
