"""`everydream info`."""

from pathlib import Path
from typing import Annotated

import typer

from everydream.told import told


def info(
    path: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="Weights of any tool, a diffusers folder, or a PNG.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print all that is known, as JSON.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say what a file is and what made it: kind, family, precision, hashes, settings. Runs no code that is in it."""
    with told(debug):
        import json  # noqa: PLC0415

        from rich.console import Console  # noqa: PLC0415

        from everydream.tools.info.read import info as read  # noqa: PLC0415
        from everydream.tools.info.show import show  # noqa: PLC0415

        facts = read(path)
        if as_json:
            print(json.dumps(facts, indent=1, ensure_ascii=False, default=str))
        else:
            show(facts, Console())
