"""`everydream cache`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from everydream.told import told

if TYPE_CHECKING:
    from everydream.config import RunConfig

cache_app = typer.Typer(no_args_is_help=True, help="What is kept of images and captions: fill, verify, size, gc.")
Config = Annotated[Path | None, typer.Option("--config", "-c", help="The project's YAML file.")]
Folder = Annotated[Path | None, typer.Argument(help="The cache's folder, in place of --config.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@cache_app.command("fill")
def fill_command(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings over the YAML's: cache.latents=true")] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Encode what a run will need, without training; goes on where it was stopped."""
    with told(debug, "Stopped; what is written stays, and the same command goes on there."):
        from everydream.config import load_config  # noqa: PLC0415
        from everydream.errors import ConfigError  # noqa: PLC0415
        from everydream.tools.cache.run import fill  # noqa: PLC0415

        if config is None:
            raise ConfigError("Say for which run: everydream cache fill --config project.yaml.")
        _show(fill(load_config(config, overrides, to_train=True)))


@cache_app.command("verify")
def verify_command(folder: Folder = None, config: Config = None, debug: Debug = False) -> None:
    """Read every byte, and name what is damaged."""
    with told(debug, "Stopped; nothing was changed."):
        from everydream.caches.shards import list_shards  # noqa: PLC0415
        from everydream.tools.cache.run import folder_of, verify  # noqa: PLC0415
        from everydream.tools.progress import counting  # noqa: PLC0415

        where = folder_of(folder, _read(config))
        with counting("Reading shards", len(list_shards(where))) as show:
            found = verify(where, show)
        _show(found)


@cache_app.command("size")
def size_command(folder: Folder = None, config: Config = None, debug: Debug = False) -> None:
    """Say what is there, of which encoders, and when it was last used."""
    with told(debug):
        from everydream.tools.cache.run import folder_of, size  # noqa: PLC0415

        _show(size(folder_of(folder, _read(config))))


@cache_app.command("gc")
def gc_command(
    folder: Folder = None,
    config: Config = None,
    unused_days: Annotated[
        float | None, typer.Option(min=0.0, help="Remove what no run has used for so many days.")
    ] = None,
    max_gb: Annotated[
        float | None, typer.Option(min=0.0, help="Remove what was longest unused until so much is left.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Remove what is damaged, unfinished or there twice, and what was long unused if asked."""
    with told(debug, "Stopped; what was removed so far is gone."):
        from everydream.tools.cache.run import collect, folder_of  # noqa: PLC0415

        _show(collect(folder_of(folder, _read(config)), unused_days, max_gb))


def _read(config: Path | None) -> "RunConfig | None":
    from everydream.config import load_config  # noqa: PLC0415

    return load_config(config) if config is not None else None


def _show(found: tuple[list[str], bool]) -> None:
    lines, is_well = found
    print("\n".join(lines))
    if not is_well:
        raise typer.Exit(1)
