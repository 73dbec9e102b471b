"""`everydream studio`: what it is given, and who else has the port."""

import socket
from pathlib import Path

from studio.serving import small_project
from tools.tool_app import run


def test_a_project_and_a_free_port_are_needed(tmp_path: Path) -> None:
    assert "Say which project: --config" in run("studio", check=2).stderr
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        result = run("studio", "--config", small_project(tmp_path), "--port", port, "--no-browser", check=2)
        assert f"--port {port} cannot be used" in result.stderr
