"""The command that imports other trainers' settings."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from everydream.errors import ConfigError
from everydream.told import told


def import_settings(
    file: Annotated[
        Path | None,
        typer.Argument(help="JoePenna's JSON, EveryDream2trainer's train.json, kohya's TOML, or a saved command line."),
    ] = None,
    joepenna: Annotated[
        str | None, typer.Option(help="JoePenna's command line instead of a file: '--token effy --class_word person'.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the YAML to this file; default: show it.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Turn another trainer's settings into a YAML of ours, and say what could not be taken over."""
    with told(debug, "Stopped; nothing was written."):
        from everydream.tools.files import write_bytes  # noqa: PLC0415
        from everydream.tools.importing.convert import import_file, import_flags  # noqa: PLC0415
        from everydream.tools.importing.text import report_of, yaml_of  # noqa: PLC0415

        if (file is None) == (joepenna is None):
            raise ConfigError("Say what to import: a file, or --joepenna 'his command line' (one of them).")
        if out is not None and out.exists() and not overwrite:
            raise ConfigError(f"--out {out} is there already; choose another name, or say --overwrite to replace it.")
        draft = import_file(file) if file is not None else import_flags(joepenna or "")
        name = file.name if file is not None else "a command line"
        text = yaml_of(draft, name)
        if out is None:
            print(text, end="")
        else:
            write_bytes(out, text.encode("utf-8"))
        print("\n".join(report_of(draft, name)), file=sys.stderr)
        if out is not None:
            print(f"Written to {out}. See what a run would do: everydream inspect --config {out}", file=sys.stderr)
