"""`everydream scrape`: options, recipes, messages, exit codes; and what a whole run makes of a list."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, run_cli
from scrapes import finish, group_of, scrape, start, the_set, write_list
from servers import Site, after, encoded, jpeg, ok, pixels
from typer.testing import CliRunner

from scrapers.cli import app


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


def invoke(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def test_the_command_of_the_guide(site: Site, tmp_path: Path) -> None:
    """A recipe with options and settings over it, in a process of its own, through `everydream`."""
    for n in range(6):
        site[f"/{n}"] = ok(jpeg(n, (80, 60)))
    site["/robots.txt"] = ok(b"User-agent: *\nDisallow: /5", "text/plain")
    table = {
        "URL": [site.url(f"/{n}") for n in range(6)], "TEXT": [f"a red barn {n}" for n in range(6)],
        "AESTHETIC_SCORE": [7.0, 4.0, 7.0, None, 7.0, 7.0], "WIDTH": [80.0] * 6, "HEIGHT": [60.0] * 6,
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "part-0.parquet")
    recipe = {
        "source": {"kind": "laion", "files": [str(tmp_path / "*.parquet")]},
        "filters": {"min_aesthetic": 6.5, "with_any": ["barn"]},
        "fetch": {"allow_private": ["127.0.0.1"], "read_timeout_s": 2.0},
        "workers": 1,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = run_cli("scrape", tmp_path / "recipe.yaml", "captions.text=photo of {caption}", "--resize", 32, "--out",
                   tmp_path / "set", "--limit", 2, "--contact", "me@example.org")  # fmt: skip
    assert "2 images stored" in done.stdout and str(tmp_path / "set") in done.stdout
    assert sorted(path.name for path in (tmp_path / "set").glob("*.jpg")) == [
        "photo of a red barn 0_(1).jpg", "photo of a red barn 2_(1).jpg"]  # fmt: skip
    done = run_cli("scrape", tmp_path / "recipe.yaml", "captions.text=photo of {caption}", "--resize", 32, "--out",
                   tmp_path / "set")  # fmt: skip
    assert "3 images stored" in done.stdout
    done = run_cli("scrape", "report", tmp_path / "set", "--jsonl", tmp_path / "report.jsonl")
    assert f"6 lines written to {tmp_path / 'report.jsonl'}" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == [None, "aesthetic", None, "unknown_score", None, "robots"]
    assert [line["url"] for line in lines] == table["URL"]
    assert sorted(site.asked) == ["/0", "/2", "/4"] and site.count("/robots.txt") == 1
    assert "me@example.org" in site.hits[0].headers["user-agent"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipe", "{tmp}/none.yaml"], "cannot be read"),
        (["{tmp}/none.yaml"], "cannot be read"),
        (["{tmp}/list.yaml"], "should hold settings as `key: value` lines"),
        (["{tmp}/broken.yaml"], "is not valid YAML"),
        (["urls", "{tmp}/none.jsonl"], "none.jsonl"),
        (["urls", "{tmp}/list.jsonl", "filters.min_widht=3"], "did you mean min_width?"),
        (
            ["urls", "{tmp}/list.jsonl", "filters.min_width=wide", "fetch.tries=0"],
            "has 2 problems; nothing was fetched",
        ),
        (["urls", "{tmp}/list.jsonl", "fetch.allow_private=[localhost]"], "write an address (127.0.0.1) or a network"),
        (["urls", "{tmp}/list.jsonl", "limit=[1"], "is not valid YAML"),
        (["urls", "{tmp}/list.jsonl", "--keep-original", "--resize", "64"], "images.resize and images.keep_original"),
        (["urls", "{tmp}/list.jsonl", "--shard", "4/4"], "write it as i/N"),
        (["urls", "{tmp}/list.jsonl", "--shard", "x"], "write it as i/N"),
        (["urls", "{tmp}/list.jsonl", "workers.x=1"], "workers"),
        (["report", "{tmp}"], "holds no scraped set"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, arguments: list[str], said: str) -> None:
    write_list(tmp_path / "list.jsonl", {"http://example.org/a.jpg": "a"})
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [\n")
    command = [argument.format(tmp=tmp_path) for argument in arguments]
    out = invoke(*command, *([] if command[0] == "report" else ["--out", tmp_path / "set"]), code=2)
    assert said in out and "ScrapeError: " in out and "Traceback" not in out
    assert not (tmp_path / "set").exists()


def test_options_for_words_and_a_dry_run(site: Site, tmp_path: Path) -> None:
    rows = [
        (site.url(f"/{n}"), caption) for n, caption in enumerate(["a dog", "a cat", "a hot dog", "puppies", "a puppy"])
    ]
    for n in range(5):
        site[f"/{n}"] = ok(jpeg(n))
    listed = write_list(tmp_path / "list.jsonl", rows)
    said = invoke(
        "urls", listed, "--out", tmp_path / "set", "--words", "dog, puppy", "--without", "hot dog", "--dry-run"
    )
    assert "Of the first 5 rows 2 would be taken up (40.0%)" in said and site.hits == []
    assert not (tmp_path / "set").exists()
    ran = scrape(listed, tmp_path / "set", "--words", "dog, puppy", "--without", "hot dog")
    assert [line["reason"] for line in ran.lines] == [None, "words", "unwanted_words", "words", None]


def test_allow_private_and_robots_as_options(site: Site, tmp_path: Path) -> None:
    site["/a"], site["/robots.txt"] = ok(jpeg(1)), ok(b"User-agent: *\nDisallow: /", "text/plain")
    listed = write_list(tmp_path / "list.jsonl", {site.url("/a"): "a"})
    said = invoke("urls", listed, "--out", tmp_path / "1", "workers=1")
    assert "1 ssrf" in said.replace("        ", "") and site.hits == []
    said = invoke("urls", listed, "--out", tmp_path / "2", "workers=1", "--allow-private", "127.0.0.1")
    assert "Nothing was stored" in said and "--robots off --retry-failed" in said
    said = invoke("urls", listed, "--out", tmp_path / "2", "workers=1", "--allow-private", "127.0.0.1", "--robots",
                  "off", "--retry-failed")  # fmt: skip
    assert "1 images stored" in said
    assert "--allow-private ADDRESS --retry-failed" in invoke("urls", listed, "--out", tmp_path / "1", "workers=1")
    assert "1 images stored" in invoke("urls", listed, "--out", tmp_path / "1", "workers=1", "--allow-private",
                                       "127.0.0.1", "--robots", "off", "--retry-failed")  # fmt: skip
    site.hits.clear()
    said = invoke("urls", listed, "--out", tmp_path / "3", "workers=1", "--robots", "off",
                  "--allow-private", "10.0.0.0/8", "--allow-private", "127.0.0.1")  # fmt: skip
    assert "1 images stored" in said and [hit.path for hit in site.hits] == ["/a"]


# Duplicates


def test_of_equal_files_the_earlier_row_wins(site: Site, tmp_path: Path) -> None:
    """However fast the others are, and wherever they come from."""
    site["/slow"], site["/fast"], site["/other"] = after(0.4, ok(jpeg(1))), ok(jpeg(1)), ok(jpeg(2))
    rows = [(site.url("/slow"), "slow"), (site.url("/fast"), "fast"), (site.url("/other"), "other"),
            (site.url("/slow"), "again")]  # fmt: skip
    listed = write_list(tmp_path / "list.jsonl", rows)
    ran = scrape(listed, tmp_path / "set")
    assert [(line["url"][-5:], line["reason"]) for line in ran.lines] == [
        ("/slow", None), ("/fast", "duplicate"), ("other", None)]  # fmt: skip
    assert ran.summary["refused"] == {"duplicate": 1, "duplicate_url": 1} and site.count("/slow") == 1
    both = scrape(listed, tmp_path / "all", "filters.duplicates=none")
    assert both.counts == {"stored": 3}


def test_of_files_that_look_alike_too(site: Site, tmp_path: Path) -> None:
    image = pixels(1, (200, 160))
    variants = {
        "/first": after(0.3, ok(encoded(image, "PNG"))), "/again": ok(encoded(image, "JPEG", quality=70)),
        "/small": ok(encoded(image.resize((100, 80)), "WEBP")), "/other": ok(jpeg(2, (200, 160))),
        "/white": ok(encoded(pixels(0).point(lambda _: 255), "PNG")), "/blank": ok(encoded(pixels(0, (70,
        70)).point(lambda _: 254), "PNG")),
    }  # fmt: skip
    for path, behaviour in variants.items():
        site[path] = behaviour
    listed = write_list(tmp_path / "list.jsonl", {site.url(path): "one" for path in variants})
    ran = scrape(listed, tmp_path / "set", "filters.duplicates=perceptual")
    assert [line["reason"] for line in ran.lines] == [None, "near_duplicate", "near_duplicate", None, None, None]
    # What the set holds from before counts as well.
    more = write_list(tmp_path / "list.jsonl", {site.url(path): "one" for path in variants})
    assert scrape(more, tmp_path / "exact").counts == {"stored": 6}
    first = scrape(listed, tmp_path / "two", "filters.duplicates=perceptual", "--limit", "1")
    assert first.counts == {"stored": 1}
    assert the_set(scrape(listed, tmp_path / "two", "filters.duplicates=perceptual").out) == the_set(ran.out)


# A large list


def test_a_large_list_takes_little_memory(site: Site, tmp_path: Path) -> None:
    """200,000 rows, 50 images: what is not needed is not read, and what is read is not kept."""
    for n in range(50):
        site[f"/{n}.jpg"] = ok(jpeg(n))
    urls = [site.url(f"/{n // 3000}.jpg" if n % 3000 == 0 else f"/x{n}.jpg") for n in range(200_000)]
    captions = [f"a barn {n} " + "word " * 20 if n % 3000 == 0 else f"nothing of interest {n} " + "word " * 20
                for n in range(200_000)]  # fmt: skip
    pq.write_table(pa.table({"url": urls, "text": captions}), tmp_path / "list.parquet")
    process = start(tmp_path / "list.parquet", tmp_path / "set", "filters.with_any=[barn]", "--limit", "50")
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            total = 0
            for pid in group_of(process):
                try:
                    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                except OSError:
                    continue
                total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        ran = finish(process, tmp_path / "set")
    finally:
        done.set()
        watcher.join()
    assert ran.summary["stored"] == 50 and ran.summary["refused"]["words"] > 100_000
    assert 20_000 < peak[0] < 400_000


def test_importing_the_command_is_quick() -> None:
    heavy = ("aiohttp", "pyarrow", "cv2", "PIL", "numpy", "pydantic")
    code = f"import sys, scrapers.cli; print([name for name in {heavy} if name in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_recipes_files_lie_beside_it_or_here(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site["/a"] = ok(jpeg(1))
    (tmp_path / "recipes").mkdir()
    write_list(tmp_path / "recipes" / "list.jsonl", {site.url("/a"): "a"})
    recipe = tmp_path / "recipes" / "mine.yaml"
    recipe.write_text("source: {kind: urls, files: [list.jsonl]}\nfetch: {allow_private: [127.0.0.1]}\n")
    monkeypatch.chdir(tmp_path)
    assert "1 images stored" in invoke(recipe, "--out", tmp_path / "set", "workers=1")
