"""`everydream scrape ...` and `python -m scrapers ...`: ground truth from the web."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from scrapers.errors import ScrapeError, WriteError, printable

if TYPE_CHECKING:
    from scrapers.making import Shard
    from scrapers.settings import ScrapeSettings


class _WithRecipes(TyperGroup):
    """`scrape datasets/x.yaml` is `scrape recipe datasets/x.yaml`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0].lower().endswith((".yaml", ".yml")):
            args = ["recipe", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_WithRecipes,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Collect ground truth: captioned images from the lists of LAION, COYO, DataComp, FFHQ, or your own.",
)


class SinkKind(str, Enum):
    """Layouts of a set."""

    FOLDER = "folder"
    WEBDATASET = "webdataset"


class Switch(str, Enum):
    """On or off."""

    ON = "on"
    OFF = "off"


class EngineKind(str, Enum):
    """What does the fetching."""

    LOCAL = "local"
    RAY = "ray"


Files = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs or URLs of the list; settings: filters.min_width=512", show_default=False
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the set; a set that was begun there is gone on with.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Images to store at most.")]
Words = Annotated[str | None, typer.Option(help='Captions must hold one of these words or phrases: "dog, puppy".')]
Without = Annotated[str | None, typer.Option(help="Captions must hold none of these.")]
SinkOption = Annotated[SinkKind | None, typer.Option(help="Images named by captions, or tar shards.")]
Resize = Annotated[int | None, typer.Option(min=16, help="Bring the shorter side down to this many pixels.")]
KeepOriginal = Annotated[bool, typer.Option("--keep-original", help="Store the bytes as they came, metadata and all.")]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Requests in flight.")]
AllowPrivate = Annotated[
    list[str] | None, typer.Option(help="A private address or network that may be fetched from; can be repeated.")
]
RobotsOption = Annotated[Switch | None, typer.Option(help="Honour robots.txt (default: on).")]
Contact = Annotated[str | None, typer.Option(help="Your mail address or page, sent to the sites with every request.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="First try again what failed and can still pass.")]
ShardOption = Annotated[
    str | None, typer.Option(help="Part i of N, from 0: 0/4 to 3/4, each on its own machine, into OUT/shard-...")
]
EngineOption = Annotated[EngineKind, typer.Option(help="This machine, or a Ray cluster with a shared file system.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only filter the beginning of the list and say what passes.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _command(kind: str | None) -> Callable[..., None]:
    """Return the command for one kind of source, or for recipes, which name theirs."""

    def command(
        files: Files,
        out: Out,
        limit: Limit = None,
        words: Words = None,
        without: Without = None,
        sink: SinkOption = None,
        resize: Resize = None,
        keep_original: KeepOriginal = False,
        concurrency: Concurrency = None,
        allow_private: AllowPrivate = None,
        robots: RobotsOption = None,
        contact: Contact = None,
        retry_failed: RetryFailed = False,
        shard: ShardOption = None,
        engine: EngineOption = EngineKind.LOCAL,
        dry_run: DryRun = False,
        debug: Debug = False,
    ) -> None:
        options = {
            "limit": limit,
            "filters.with_any": _listed(words),
            "filters.without": _listed(without),
            "sink.kind": sink.value if sink else None,
            "images.resize": resize,
            "images.keep_original": keep_original or None,
            "fetch.concurrency": concurrency,
            "fetch.allow_private": allow_private or None,
            "fetch.robots": robots is Switch.ON if robots else None,
            "fetch.contact": contact,
        }
        with _told(debug):
            settings = _settings(kind, files, {key: value for key, value in options.items() if value is not None})
            if dry_run:
                from scrapers.preview import preview  # noqa: PLC0415

                print(printable(preview(settings)))
                return
            code = _run(settings, out, _shard(shard), retry_failed, engine)
        if code:
            raise typer.Exit(code)

    return command


_DOCS = {
    "laion": "Parquet lists with captions: LAION, Re-LAION, COYO, DataComp. Columns are found by their names.",
    "ffhq": "Faces of FFHQ: its ffhq-dataset-v2.json, or a local folder or Parquet mirror.",
    "urls": "Lists of your own: txt, csv, tsv, jsonl, Parquet, or a WebDataset index.",
}
for _kind, _doc in _DOCS.items():
    app.command(_kind, help=_doc)(_command(_kind))
app.command("recipe", help="A recipe such as datasets/laion_aesthetic.yaml; the word `recipe` can be left out.")(
    _command(None)
)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of the set.")],
    jsonl: Annotated[Path | None, typer.Option("--jsonl", help="Write one line per URL to this file.")] = None,
    debug: Debug = False,
) -> None:
    """Say what became of every URL of a set."""
    with _told(debug):
        from scrapers import report as reports  # noqa: PLC0415

        with reports.opened(folder) as ledgers:
            print(reports.describe(reports.total(ledgers)))
            if jsonl is not None:
                number = reports.write_lines(jsonl, reports.all_lines(ledgers))
                print(f"{number:,} lines written to {jsonl}")


@contextmanager
def _told(debug: bool) -> Iterator[None]:
    """Turn an error that is meant for a user into one message and exit code 2."""
    try:
        yield
    except (ScrapeError, WriteError) as error:
        if debug:
            raise
        print(f"\nScrapeError: {printable(str(error))}", file=sys.stderr, flush=True)
        raise typer.Exit(2) from error


def _settings(kind: str | None, arguments: list[str], options: dict[str, Any]) -> "ScrapeSettings":
    from scrapers.recipe import beside_recipe, is_override, override, read_recipe, resolve  # noqa: PLC0415

    files = [item for item in arguments if not is_override(item)]
    overrides = [item for item in arguments if is_override(item)]
    if not files:
        raise ScrapeError("Name at least one file, folder, glob or URL of a list, or a recipe.")
    if kind is None:
        if len(files) != 1:
            raise ScrapeError(f"Give one recipe; these are {len(files)}: {', '.join(files)}")
        raw = beside_recipe(read_recipe(Path(files[0])), Path(files[0]))
    else:
        raw = {"source": {"kind": kind, "files": files}}
        if kind == "ffhq":
            raw["captions"] = {"text": "close up photo of a person"}
    for key, value in options.items():
        override(raw, key, value)
    return resolve(raw, overrides, files[0] if kind is None else f"scrape {kind}")


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _shard(text: str | None) -> "Shard | None":
    from scrapers.making import Shard  # noqa: PLC0415

    if text is None:
        return None
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ScrapeError(f"--shard {text}: write it as i/N with i from 0 to N - 1, such as 0/4")
    return Shard(int(index), int(count))


def _run(settings: "ScrapeSettings", out: Path, shard: "Shard | None", retry_failed: bool, engine: EngineKind) -> int:
    """Scrape, and return the exit code: 0 if the run ended by itself, whatever the sites did."""
    from scrapers.pipeline import Scrape  # noqa: PLC0415
    from scrapers.workshop import Workshop  # noqa: PLC0415

    folder = out / f"shard-{shard.index:05d}-of-{shard.count:05d}" if shard is not None else out
    make_engine: Any = Workshop
    if engine is EngineKind.RAY:
        from scrapers.ray_engine import RayEngine  # noqa: PLC0415

        make_engine = RayEngine

    async def main() -> int:
        scrape = Scrape(settings, folder, shard=shard, retry_failed=retry_failed, make_engine=make_engine)
        return await _watched(scrape)

    return asyncio.run(main())


async def _watched(scrape: Any) -> int:
    """Run a scrape with its progress line; Ctrl-C and SIGTERM end it cleanly."""
    from scrapers import progress  # noqa: PLC0415
    from scrapers import report as reports  # noqa: PLC0415

    stop = asyncio.Event()
    received: list[int] = []

    def end(number: int, _: Any = None) -> None:
        received.append(number)
        loop.call_soon_threadsafe(stop.set)

    loop = asyncio.get_running_loop()
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    done_before = progress.done_of(scrape)
    for note in scrape.source.notes:
        print(f"Note: {printable(note)}", file=sys.stderr)
    print(f"{scrape.source.description} -> {scrape.out}", file=sys.stderr, flush=True)
    shown = loop.create_task(progress.show(lambda: progress.snapshot(scrape, done_before)))
    try:
        ended = await scrape.run(stop)
    finally:
        shown.cancel()
        with suppress(asyncio.CancelledError):
            await shown
        for number, handler in before.items():
            signal.signal(number, handler)
    last = progress.snapshot(scrape, done_before)
    summary = {
        **last.counts, "ended": ended, "seconds": round(last.elapsed_s, 3), "stored_in_this_run": last.stored_now,
        "images_per_s": round(last.images_per_s, 2), "megabytes": round(last.num_bytes / 1e6, 3),
    }  # fmt: skip
    reports.write_summary(scrape.out, summary)
    print(
        f"{reports.describe(last.counts)}\n{last.elapsed_s:.1f} s, {last.images_per_s:.1f} images/s, "
        f"{last.num_bytes / 1e6:.1f} MB received. Set, manifest and credits: {scrape.out}"
    )
    if ended:
        if scrape.took_no_row:
            print("No row of this list is in this part: parts go by hosts.", file=sys.stderr)
        return 0
    print("Stopped. The same command goes on from here.", file=sys.stderr, flush=True)
    return 128 + received[0]
