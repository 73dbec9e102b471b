"""Fine-tune Stable Diffusion on folders of captioned images, see beforehand what it will do, and resume exactly."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everydream import __version__
from everydream.errors import ConfigError
from everydream.told import told
from everydream.tools.cache.cli import cache_app
from everydream.tools.captioning.cli import caption_app
from everydream.tools.concept.cli import concept
from everydream.tools.evaluate.cli import evaluate
from everydream.tools.grid.cli import grid
from everydream.tools.importing.cli import import_settings
from everydream.tools.indexing.cli import index
from everydream.tools.info.cli import info
from everydream.tools.models.cli import convert, merge, prune, sample
from everydream.tools.prep.cli import prep
from scrapers.cli import app as scrape_app

if TYPE_CHECKING:
    from everydream.config import RunConfig

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
# The one place where the two packages meet: a command of this line that the scraper brings with it.
app.add_typer(scrape_app, name="scrape")

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The project's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings over the YAML's: train.epochs=4 optimizer.lr=1e-6")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

app.command()(concept)
app.command("import")(import_settings)
app.command()(prep)
app.add_typer(caption_app, name="caption")
app.add_typer(cache_app, name="cache")
app.command()(convert)
app.command()(prune)
app.command()(merge)
app.command()(sample)
app.command()(index)
app.command()(info)
app.command()(grid)
app.command()(evaluate)


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigOption = None,
    resume: Annotated[str | None, typer.Option(help="A last.ckpt, a run folder, or auto: go on exactly there.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume although settings or images changed.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Fine-tune a model as the YAML says, or go on with a run."""
    with told(debug):
        from everydream.config import load_config, resolve_saved  # noqa: PLC0415
        from everydream.training.runs import find_checkpoint, restarted  # noqa: PLC0415

        settings = load_config(config, overrides) if config is not None else None
        if settings is None and resume in (None, "auto"):
            raise ConfigError(
                "Say what to train: --config project.yaml, or --resume path/to/last.ckpt for a run to go on with."
            )
        checkpoint = None
        if resume is not None:
            runs_dir, project = (Path(settings.runs_dir), settings.project) if settings is not None else (Path(), "")
            checkpoint = find_checkpoint(resume, runs_dir, project)
        if settings is None:
            from everydream.training.state import peek_config  # noqa: PLC0415

            assert checkpoint is not None
            settings = resolve_saved(peek_config(checkpoint), checkpoint, overrides)
        if (begun := restarted(Path(settings.runs_dir), settings.project, resume)) is not None:
            checkpoint = begun
            if os.environ.get("RANK") == "0":
                print(f"This launch began {begun}, and goes on with it.", file=sys.stderr)
        elif resume == "auto" and checkpoint is None:
            print(
                f"--resume auto: {runs_dir} has no run of {project!r} to go on with; starting a new one.",
                file=sys.stderr,
            )
        if config is not None and checkpoint is None:
            settings = load_config(config, overrides, to_train=True)
        from everydream.train import train as run  # noqa: PLC0415

        _, signal_number = run(settings, checkpoint, allow_changes)
    if signal_number is not None:
        # The shell's convention, so that a script does not take a stopped run for a finished one.
        raise typer.Exit(128 + signal_number)


@app.command()
def inspect(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="A folder of images, in place of --config; settings: data.resolution=768")
    ] = None,
    config: ConfigOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the whole report to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as one page that opens in any browser.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what was seen of images; default: ~/.cache/everydream.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what a run would make of the images: captions, buckets, draws, duplicates, steps. Needs no model."""
    # A short life with millions of small objects, none of which is a cycle: looking for some took a sixth of it.
    gc.set_threshold(1_000_000)
    with told(debug):
        from everydream.config import load_config, resolve  # noqa: PLC0415
        from everydream.data.scan import require_usable  # noqa: PLC0415
        from everydream.evaluation.heldout import require_enough  # noqa: PLC0415
        from everydream.methods.textual_inversion import unused_words  # noqa: PLC0415
        from everydream.plan import monitors_of, plan_run  # noqa: PLC0415
        from everydream.report.inspection import describe_inspection, inspect_run  # noqa: PLC0415
        from everydream.tools.progress import counting  # noqa: PLC0415
        from everydream.yaml_text import apply_override  # noqa: PLC0415

        folders = [item for item in arguments or [] if "=" not in item or Path(item).exists()]
        overrides = [item for item in arguments or [] if item not in folders]
        if len(folders) != (config is None):
            raise ConfigError("Say what to inspect: a folder of images, or --config project.yaml (one of them).")
        if config is not None:
            settings = load_config(config, overrides)
        else:
            raw: dict[str, Any] = {"model": {"path": "none"}, "data": {"sources": [{"path": folders[0]}]}}
            problems = [problem for item in overrides if (problem := apply_override(raw, item))]
            settings = resolve(raw, Path("inspect"), problems)
        settings, missing = _with_class_images(settings)
        planned = plan_run(settings, check=False)
        with counting("Looking at images", len(planned.index)) as show:
            report = inspect_run(planned, cache, html, lambda done, _: show(done, ""))
        print(describe_inspection(planned, report))
        print("".join(f"{line}; until then the counts are without them.\n" for line in missing), end="")
        if json_file is not None:
            text = json.dumps(report, ensure_ascii=False, indent=1)
            json_file.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
            print(f"Report written to {json_file}")
        if html is not None:
            print(f"Page written to {html}; open it in a browser")
        if unused := unused_words(settings.textual_inversion.words, planned.index.captions):
            raise ConfigError("\n".join(unused))
        require_usable(planned.index, settings.data.strict)
        require_enough(planned.index, settings.data.sources, monitors_of(settings), planned.watched, planned.kin)


def _with_class_images(settings: "RunConfig") -> tuple["RunConfig", list[str]]:
    """Return the config with the class images that were made, and a line for what is missing of them."""
    if not (Path(settings.model.path).exists() and any(source.generate for source in settings.data.sources)):
        return settings, []
    # Only then, for it loads the model libraries, and that takes seconds.
    from everydream.class_images import describe_missing, with_class_images  # noqa: PLC0415

    found, made = with_class_images(settings)
    return found, describe_missing(made)


@app.command()
def studio(
    overrides: Overrides = None,
    config: ConfigOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any that is free.")] = 0,
    run: Annotated[Path | None, typer.Option(help="The run to follow; default: the project's newest.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for what was seen of images; default: ~/.cache/everydream.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Serve inspect's page on this machine: captions to edit, images to switch off, the live run."""
    with told(debug, "Stopped. Every change is on disk."):
        from everydream.config import load_config  # noqa: PLC0415
        from everydream.studio.server import serve  # noqa: PLC0415

        if config is None:
            raise ConfigError("Say which project: --config project.yaml.")
        settings, _ = _with_class_images(load_config(config, overrides))
        serve(settings, config, port=port, run=run, browser=browser, cache=cache)


@app.command()
def review(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    debug: Debug = False,
) -> None:
    """Say what a run comes to, and write its page and charts anew; also while it goes on."""
    with told(debug):
        from everydream.review.page import PAGE, write_review  # noqa: PLC0415

        print("\n".join([*write_review(run).lines(), f"Page: {run / PAGE}"]))


@app.command()
def preflight(
    config: ConfigOption = None,
    overrides: Overrides = None,
    measure: Annotated[
        bool | None, typer.Option("--measure/--estimate", help="Real steps on this machine; default: on a GPU only.")
    ] = None,
    all_levels: Annotated[
        bool, typer.Option("--all-levels", help="Every memory level, not only the config's.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Say what a run will take: peak memory by part, seconds a step, time in all, disk."""
    with told(debug):
        from everydream.config import load_config  # noqa: PLC0415
        from everydream.preflight import preflight as run  # noqa: PLC0415

        if config is None:
            raise ConfigError("Say which run: --config project.yaml.")
        print("\n".join(run(load_config(config, overrides, to_train=True), measure, all_levels)))


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/configuration.md instead.")] = False,
    scrape: Annotated[bool, typer.Option("--scrape", help="The settings of recipes instead of a run's.")] = False,
) -> None:
    """Print the settings' JSON schema, for completion and checks in editors."""
    from everydream.config import RunConfig  # noqa: PLC0415
    from everydream.reference import reference, scrape_reference  # noqa: PLC0415
    from scrapers.settings import ScrapeSettings  # noqa: PLC0415

    if markdown:
        print(scrape_reference(ScrapeSettings) if scrape else reference(), end="")
    else:
        print(json.dumps((ScrapeSettings if scrape else RunConfig).model_json_schema(), indent=2))


@app.command("verify-resume")
def verify_resume(
    overrides: Overrides = None,
    config: ConfigOption = None,
    steps: Annotated[int, typer.Option(min=4, help="Optimizer steps of the trial.")] = 8,
    debug: Debug = False,
) -> None:
    """Prove, here and for this config, that a killed and resumed run ends with the same bits as a straight one."""
    with told(debug):
        from everydream.verify import verify  # noqa: PLC0415

        if config is None:
            raise ConfigError("Say which config to prove it for: everydream verify-resume --config project.yaml")
        print(
            f"Training {steps} steps straight, then {steps} killed half-way and resumed ...",
            file=sys.stderr,
            flush=True,
        )
        print(verify(config, overrides or [], steps))


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the console script and train.py come in here."""
    # A worker that tokenises after a fork would warn on every start.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    app(arguments)


if __name__ == "__main__":
    main()
