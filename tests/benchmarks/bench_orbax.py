"""Benchmark of averaging Orbax checkpoints against restoring whole trees.

    python tests/benchmarks/bench_orbax.py [DIRECTORY]

Each row is a whole process, from start to end, with its peak memory. The first
row is the lower limit: it reads all bytes and writes those of one checkpoint.
The rows are run in turn, round by round; the tables show medians. The last
table shows how time and memory grow with the number of checkpoints. The
benchmark needs 6 GB in DIRECTORY, or in the directory for temporary files.
"""

import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from bench_files import COMMAND_LINE, Command, average_command, report

PEERS = [sys.executable, str(Path(__file__).with_name("orbax_peers.py"))]


def main() -> None:
    """Print all tables."""
    print(
        f"orbax-checkpoint {version('orbax-checkpoint')}, tensorstore "
        f"{version('tensorstore')}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}, on {sys.platform}"
    )
    bench(megabytes=100, count=8, devices=1)
    bench(megabytes=400, count=4, devices=4)
    bench(megabytes=50, count=64, devices=1, counts=(2, 8, 64))


def bench(
    megabytes: int, count: int, devices: int, counts: tuple[int, ...] = ()
) -> None:
    """Print the table for checkpoints of one size."""
    with tempfile.TemporaryDirectory(dir=[*sys.argv, None][1]) as parent:
        root, output = Path(parent, "run"), Path(parent, "mean")
        made = map(str, (root, megabytes, count, devices))
        subprocess.run([*PEERS, "make", *made], check=True)
        steps = [root / str(step) for step in range(count)]
        title = f"{count} checkpoints of {megabytes} MB, {devices} devices"
        if counts:
            rows = {
                f"average_checkpoints, {few}": average_command(
                    steps[:few], output
                )
                for few in counts
            }
        else:
            rows = commands(steps, output)
        report(title, rows, output, rounds=5)


def commands(steps: list[Path], output: Path) -> dict[str, Command]:
    """Return the command of each row."""
    saved = list(map(str, steps))
    return {
        "limit": [*PEERS, "limit", str(output), *saved],
        "average_checkpoints": average_command(steps, output),
        "keras-wavg average": [*COMMAND_LINE, *saved, "-o", str(output)],
        "whole trees with Orbax": [*PEERS, "whole_trees", str(output), *saved],
    }


if __name__ == "__main__":
    main()
