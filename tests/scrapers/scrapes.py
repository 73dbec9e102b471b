"""Scrapes for tests: by the command line, in this process or another one, and what came of them."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT
from typer.testing import CliRunner

from scrapers import report
from scrapers.cli import app

LOOPBACK = "fetch.allow_private=[127.0.0.0/8]"
QUICK = ("workers=1", "fetch.backoff_s=0.02", "fetch.read_timeout_s=0.5", "fetch.total_timeout_s=3.0",
         "fetch.connect_timeout_s=2.0")  # fmt: skip


def write_list(path: Path, rows: Iterable[tuple[str, str]] | Mapping[str, str]) -> Path:
    """Write URLs and captions as a list."""
    pairs = rows.items() if isinstance(rows, Mapping) else rows
    lines = [json.dumps({"url": url, "text": caption}) for url, caption in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Ran:
    """A scrape that has ended."""

    out: Path
    code: int
    said: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """One per URL, as `report --jsonl` has them."""
        with report.opened(self.out) as ledgers:
            return list(report.all_lines(ledgers))

    @property
    def ends(self) -> dict[str, str]:
        """How each URL ended: its reason, or its status where it has none."""
        return {line["url"]: line["reason"] or line["status"] for line in self.lines}

    @property
    def counts(self) -> Counter[str]:
        return Counter(line["reason"] or line["status"] for line in self.lines)

    @property
    def details(self) -> dict[str, str]:
        """What is told of each URL that has no image."""
        with report.opened(self.out) as ledgers:
            return {r.url: r.detail or "" for ledger in ledgers.values() for r in ledger.records()}

    def stored(self, url: str) -> Path:
        """The file of a URL."""
        return self.out / next(line["path"] for line in self.lines if line["url"] == url)

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.out / "summary.json").read_text())


def arguments(listed: Path, out: Path, *options: str) -> list[str]:
    return ["urls", str(listed), *QUICK, LOOPBACK, "fetch.robots=false", *options, "--out", str(out)]


def scrape(listed: Path, out: Path, *options: str, code: int = 0) -> Ran:
    """Run `everydream scrape urls` in this process; later options win."""
    done = CliRunner().invoke(app, arguments(listed, out, *options))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, f"exit code {done.exit_code}\n{done.output}"
    return Ran(out, done.exit_code, done.output)


def start(listed: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Begin a scrape in a process of its own, the head of a group, so that what it leaves behind can be found."""
    return subprocess.Popen(
        [sys.executable, "-m", "scrapers", *arguments(listed, out, *options)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", cwd=ROOT,
        start_new_session=True, env={**os.environ, **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], out: Path, code: int = 0) -> Ran:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == code, f"exit code {process.returncode}\n{said}"
    return Ran(out, code, said)


def group_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the processes that are left of a scrape from `start`."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == process.pid and fields[0] != "Z":  # its session
            left.append(int(stat.parent.name))
    return left


def the_set(out: Path) -> dict[str, str]:
    """Return a set without what may differ from run to run: path -> digest of every file,
    and the manifest's lines without times."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if not path.is_file() or name.startswith(".scrape/") or name == "summary.json":
            continue
        content = path.read_bytes()
        if name.endswith("manifest.jsonl"):
            lines = [{**json.loads(line), "time": ""} for line in content.splitlines()]
            found |= {f"{name}:{n}": json.dumps(line, sort_keys=True) for n, line in enumerate(lines)}
            continue
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def partial_files(out: Path) -> list[str]:
    """Return what no scrape that has ended may leave behind."""
    return [str(path.relative_to(out)) for path in out.rglob("*") if path.name.endswith((".part", ".tmp"))]
