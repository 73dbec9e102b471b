"""What a command does with the errors that are meant for its user."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from everydream.errors import EveryDreamError


@contextmanager
def told(debug: bool, stopped: str = "Stopped before training began; nothing had to be saved.") -> Iterator[None]:
    """Turn an error that is meant for a user into one message and exit code 2, and Ctrl-C into `stopped` and 130."""
    try:
        yield
    except EveryDreamError as error:
        if debug:
            raise
        if os.environ.get("RANK", "0") == "0":  # one process speaks for all
            print(f"\n{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr, flush=True)
        raise typer.Exit(130) from None
