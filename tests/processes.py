"""Real processes that train one model together, over loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment() -> dict[str, str]:
    """That of a process which finds what is found here."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


def start(script: str, count: int, *arguments: Any) -> list[Any]:
    """Start a script of `tests` so many times.

    Its arguments are the rank, the count, a port, and what is given here.
    """
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, TESTS / script, rank, str(count), str(port)]
            + [str(argument) for argument in arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for rank in map(str, range(count))
    ]


def finish(processes: list[Any]) -> None:
    """Wait for processes, none of which may fail."""
    errors = [process.communicate(timeout=900)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(codes), "\n".join(e[-3000:] for e in errors)
