"""The tools' commands as their users type them, in this process."""

from typing import Any

from typer.testing import CliRunner

from everydream.cli import app


def run(*arguments: object, check: int = 0) -> Any:
    """Run a command and return its result; messages for users are in `stderr`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=check != 0)
    assert result.exit_code == check, f"exit code {result.exit_code}\n{result.output}\n{result.exception!r}"
    return result
