"""Start processes that train one model together, over loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def free_port() -> int:
    """A free port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment() -> dict[str, str]:
    """The environment of a process that imports the same modules."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


def start(script: str, count: int, *arguments: Any) -> list[Any]:
    """Start `count` processes that run a script of `tests`.

    The arguments of the script are the rank, the count, a port, `*arguments`.
    """
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, TESTS / script, rank, str(count), str(port)]
            + [str(argument) for argument in arguments],
            env=environment(),
        )
        for rank in map(str, range(count))
    ]


def finish(processes: list[Any], seconds: float = 600) -> None:
    """Wait for processes. All must succeed within `seconds`."""
    end = time.monotonic() + seconds
    codes = [None]
    while None in codes and not any(codes) and time.monotonic() < end:
        time.sleep(0.05)
        codes = [process.poll() for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    assert codes == [0] * len(codes)
