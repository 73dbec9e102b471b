"""`everydream index`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from everydream.errors import ConfigError
from everydream.told import told


def index(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings over the YAML's: data.flip_p=0.5")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The project's YAML file.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The Parquet file; default: <config>.index.parquet beside it.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Who opens the images: local (this machine) or ray (a cluster).")
    ] = "local",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Look at every image of a project once and write what was found as Parquet, for data.index of its runs."""
    with told(debug, "Stopped. What was found is kept; the same command goes on from here."):
        from everydream.config import load_config  # noqa: PLC0415
        from everydream.tools.indexing.run import make_index  # noqa: PLC0415

        if config is None:
            raise ConfigError("Say which project: --config project.yaml.")
        if engine not in ("local", "ray"):
            raise ConfigError(f"--engine {engine}: there are local and ray.")
        wanted: Literal["local", "ray"] = "ray" if engine == "ray" else "local"
        raw = [*(overrides or []), "data.index=null"]
        file = out or config.with_suffix(".index.parquet")
        print("\n".join(make_index(load_config(config, raw), file, wanted)))
