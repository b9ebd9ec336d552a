"""Benchmark of averaging weights files against alternatives.

    KERAS_BACKEND=jax python tests/benchmarks/bench_files.py [DIRECTORY]

Prints a table for 8 files of 103 MB, one for 8 files of 419 MB, one for 1,000
small files, and one that shows how time and memory grow with the number of
files. Each row is a whole process, from start to end, with its peak memory. The
first row is the lower limit: it reads all files and writes one, with two
threads, without looking at the numbers. The next two rows also sync the output
to disk, as a safe tool must, and import NumPy.

The files are in the page cache when they are read. The rows are run in turn,
round by round, so that a slow phase of the machine affects all rows. The tables
show medians. The benchmark needs 7 GB in DIRECTORY, or in the directory for
temporary files. This process imports nothing large, because the memory of a
process includes that of the process that started it.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PEERS = [sys.executable, str(Path(__file__).with_name("file_peers.py"))]
AVERAGE = (
    "import sys, keras_wavg; "
    "keras_wavg.average_checkpoints(sys.argv[2:], sys.argv[1])"
)
COMMAND_LINE = [sys.executable, "-m", "keras_wavg", "average"]

Command = list[str]
Run = tuple[float, float]


def main() -> None:
    """Print all tables."""
    print(
        f"keras {version('keras')}, {os.environ.get('KERAS_BACKEND')}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"on {sys.platform}"
    )
    bench("resnet", count=8, rounds=5, growth=64)
    bench("dense", count=8, rounds=3)
    bench("small", count=1000, rounds=3)


def bench(kind: str, count: int, rounds: int, growth: int = 0) -> None:
    """Print the tables for files of one kind."""
    with tempfile.TemporaryDirectory(dir=[*sys.argv, None][1]) as parent:
        directory = Path(parent, kind)
        subprocess.run([*PEERS, "make", str(directory), str(count)], check=True)
        files = sorted(directory.glob("*.h5"))
        size = f"{files[0].stat().st_size / 1e6:.3g} MB"
        output = directory / "mean.weights.h5"
        title = f"{count} files of {size}, {kind}"
        report(title, commands(files, output), output, rounds)
        if growth:
            more = links(files, growth)
            rows = {
                f"average_checkpoints, {len(paths)}": average_command(
                    paths, output
                )
                for paths in (files, more)
            }
            title = f"{count} files of {size}, and {growth} hard links to them"
            report(title, rows, output, rounds)


def links(files: list[Path], count: int) -> list[Path]:
    """Return hard links to the files, which need no disk space."""
    paths = []
    for number in range(count):
        paths.append(files[0].with_name(f"link_{number:04}.weights.h5"))
        os.link(files[number % len(files)], paths[-1])
    return paths


def commands(files: list[Path], output: Path) -> dict[str, Command]:
    """Return the command of each row."""
    saved = list(map(str, files))
    safe = [f"{file}".replace(".weights.h5", ".safetensors") for file in files]
    options = ["-o", str(output), "--overwrite"]

    def peer(function: str, paths: list[str]) -> Command:
        return [*PEERS, function, str(output), *paths]

    rows = {
        "limit": peer("limit", saved),
        "limit, fsync": peer("limit_fsync", saved),
        "limit, fsync, import NumPy": peer("limit_numpy", saved),
        "average_checkpoints": average_command(files, output),
        "keras-wavg average": [*COMMAND_LINE, *saved, *options],
        "Keras loop": peer("keras_loop", saved),
        "safetensors, NumPy": peer("safetensors_numpy", safe),
    }
    if os.environ.get("KERAS_BACKEND") == "torch":
        rows["safetensors, torch"] = peer("safetensors_torch", safe)
    return rows


def average_command(files: list[Path], output: Path) -> Command:
    """Return a command that runs the function in a new process."""
    return [sys.executable, "-c", AVERAGE, str(output), *map(str, files)]


def report(
    title: str, rows: dict[str, Command], output: Path, rounds: int
) -> None:
    """Run the rows in turn; print medians and ratios to the first row.

    The first round is a warm-up and does not count.
    """
    runs: dict[str, list[Run]] = {name: [] for name in rows}
    for _ in range(rounds + 1):
        for name, command in rows.items():
            runs[name].append(measure(command, output))
    seconds = {name: [run[0] for run in runs[name][1:]] for name in runs}
    first = next(iter(seconds.values()))
    print(
        f"\n{title}\n{'':28}{'median s':>10}{'ratio':>8}{'min - max s':>18}"
        f"{'peak MB':>9}"
    )
    for name, times in seconds.items():
        ratio = statistics.median(
            t / base for t, base in zip(times, first, strict=True)
        )
        span = f"{min(times):.3f} - {max(times):.3f}"
        peak = max(memory for _, memory in runs[name])
        median = statistics.median(times)
        print(f"{name:28}{median:10.3f}{ratio:8.2f}{span:>18}{peak:9.0f}")


def measure(command: Command, output: Path) -> Run:
    """Run a process to its end.

    Returns:
        Tuple of seconds and peak megabytes.
    """
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink()
    return seconds, usage.ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
