"""The scraper beside img2dataset: same local server, same list, same output, in turn.

    python benchmarks/scrape/compare.py --work DIR --img2dataset DIR/img2dataset/bin/img2dataset [--runs 3]

Needs the test extra (for the certificate of https) and img2dataset in an environment of its own, see README.md.
Prints a table in Markdown: of each figure the median of the runs, and the ratios.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NUM_IMAGES = 2000
SHARD = 500
Figures = dict[str, float]


def ours(work: Path, scheme: str, out: Path, resize: bool) -> list[str]:
    """Return the scraper's command: shards of 500 as the other tool writes them."""
    size = ["--resize", "512"] if resize else ["--keep-original"]
    return [
        sys.executable, "-m", "scrapers", "laion", str(work / f"{scheme}.parquet"), "--out", str(out), *size,
        "--sink", "webdataset", f"sink.shard_size={SHARD}", "--allow-private", "127.0.0.1", "--concurrency", "128",
        "--robots", "off",
    ]  # fmt: skip


def theirs(tool: Path, work: Path, scheme: str, out: Path, resize: bool) -> list[str]:
    """Return img2dataset's command, with its best settings for two cores."""
    size = ["--resize_mode", "keep_ratio", "--resize_only_if_bigger", "True", "--image_size", "512",
            "--encode_quality", "95"]  # fmt: skip
    keep = ["--resize_mode", "no", "--skip_reencode", "True"]
    return [
        str(tool), "--url_list", str(work / f"{scheme}.parquet"), "--input_format", "parquet", "--url_col", "URL",
        "--caption_col", "TEXT", "--output_format", "webdataset", "--output_folder", str(out),
        *(size if resize else keep),
        "--processes_count", "2", "--thread_count", "64", "--number_sample_per_shard", str(SHARD), "--timeout", "30",
        "--disallowed_header_directives", "[]",
    ]  # fmt: skip


@contextmanager
def server(work: Path, latency_s: float, rows: int = NUM_IMAGES) -> Iterator[None]:
    """Serve the images while the block runs."""
    command = [sys.executable, str(HERE / "server.py"), "--work", str(work), "--images", str(NUM_IMAGES), "--rows",
               str(rows), "--latency", str(latency_s)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise SystemExit("the server did not start")
        yield
    finally:
        process.kill()
        process.wait()


def stored_by(out: Path) -> int:
    """Return how many images a tool says it stored."""
    if (out / "summary.json").exists():
        return int(json.loads((out / "summary.json").read_text())["stored"])
    return sum(int(json.loads(path.read_text())["successes"]) for path in out.glob("*_stats.json"))


def measured(command: list[str], work: Path, out: Path) -> Figures:
    """Run a command on an empty folder and return its figures, per stored image where that makes sense."""
    shutil.rmtree(out, ignore_errors=True)
    environment = {**os.environ, "SSL_CERT_FILE": str(work / "ca.pem"), "NO_ALBUMENTATIONS_UPDATE": "1"}
    measure = [sys.executable, str(HERE / "measure.py"), *command]
    done = subprocess.run(measure, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    stored = stored_by(out)
    if found["code"] or not stored:
        raise SystemExit(f"{command[0]} ended with {found['code']} and {stored} images:\n{done.stderr[-2000:]}")
    return {
        "stored": stored,
        "cpu_ms": found["cpu_s"] / stored * 1e3,
        "wall_s": found["wall_s"],
        "images_per_s": stored / found["wall_s"],
        "peak_mb": found["peak_bytes"] / 1e6,
        "first_mb": found["first_half_peak_bytes"] / 1e6,
        "second_mb": found["second_half_peak_bytes"] / 1e6,
    }


def median(runs: list[Figures]) -> Figures:
    """Return each figure's median."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


CASES = (
    # name, scheme, resize, latency in s
    ("keep original, http", "http", False, 0.0),
    ("512 px, http", "http", True, 0.0),
    ("keep original, https", "https", False, 0.0),
    ("512 px, https", "https", True, 0.0),
    ("512 px, http, 200 ms latency", "http", True, 0.2),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and sets, about 1 GB")
    parser.add_argument("--img2dataset", type=Path, help="its command; without it only the scraper is measured")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="only the cases whose name holds this")
    parser.add_argument("--large", action="store_true", help="also 1,000,000 rows, and 20,000 images")
    arguments = parser.parse_args()
    work, tool = arguments.work.resolve(), arguments.img2dataset
    print("| case | tool | stored | CPU ms/image | wall s | images/s | peak MB |\n|---|---|---:|---:|---:|---:|---:|")
    for name, scheme, resize, latency_s in CASES:
        if arguments.only not in name:
            continue
        runs: dict[str, list[Figures]] = {"EveryDream": [], "img2dataset": []}
        with server(work, latency_s):
            for _ in range(arguments.runs):
                runs["EveryDream"].append(measured(ours(work, scheme, work / "ours", resize), work, work / "ours"))
                if tool is not None:
                    command = theirs(tool, work, scheme, work / "theirs", resize)
                    runs["img2dataset"].append(measured(command, work, work / "theirs"))
        medians = {label: median(found) for label, found in runs.items() if found}
        for label, figures in medians.items():
            print(_row(name, label, figures), flush=True)
        if len(medians) == 2:
            a, b = medians.values()
            print(
                f"| {name} | ratio | | {a['cpu_ms'] / b['cpu_ms']:.2f} | {a['wall_s'] / b['wall_s']:.2f} | | |",
                flush=True,
            )
    if arguments.large:
        large(work)


def large(work: Path) -> None:
    """Measure memory: a list of a million rows of which 2,000 images are taken, and 20,000 images."""
    with server(work, 0.0, rows=1_000_000):
        command = [*ours(work, "http", work / "ours", False), "--limit", "2000"]
        print(_row("1,000,000 rows, limit 2,000", "EveryDream", measured(command, work, work / "ours")), flush=True)
        command = [*ours(work, "http", work / "ours", False), "--limit", "20000", "filters.duplicates=none"]
        figures = measured(command, work, work / "ours")
        print(_row("20,000 images", "EveryDream", figures), flush=True)
        print(
            f"peak in the first half of the run {figures['first_mb']:.0f} MB, in the second {figures['second_mb']:.0f}"
        )


def _row(name: str, label: str, f: Figures) -> str:
    return (
        f"| {name} | {label} | {f['stored']:.0f} | {f['cpu_ms']:.2f} | {f['wall_s']:.1f} | {f['images_per_s']:.0f} "
        f"| {f['peak_mb']:.0f} |"
    )


if __name__ == "__main__":
    main()
