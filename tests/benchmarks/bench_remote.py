"""Benchmark of averaging checkpoints in an S3-like store.

    python tests/benchmarks/bench_remote.py [DIRECTORY]

A `moto` server runs on this machine and uses a part of its cores. Each row is a
whole process, from start to end. The rows are run in turn; the tables show
medians.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import boto3
from bench_files import PEERS, average_command, report
from bench_orbax import PEERS as ORBAX

PORT = 5123


def main() -> None:
    """Print all tables."""
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(PORT)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(5)
        with tempfile.TemporaryDirectory(dir=[*sys.argv, None][1]) as parent:
            bench(Path(parent))
    finally:
        server.kill()


def bench(parent: Path) -> None:
    """Print the tables for weights files and for Orbax checkpoints."""
    make = [str(parent / "resnet"), "4"]
    subprocess.run([*PEERS, "make", *make], check=True)
    files = sorted((parent / "resnet").glob("*.h5"))
    output = parent / "mean.weights.h5"
    urls = upload(files, parent)
    rows = {
        "files": average_command(files, output),
        "s3://": average_command(urls, output),
    }
    report("4 files of 103 MB", rows, output, rounds=5)

    make = [str(parent / "run"), "100", "4", "1"]
    subprocess.run([*ORBAX, "make", *make], check=True)
    steps = [parent / "run" / str(step) for step in range(4)]
    upload([p for p in steps[0].parent.rglob("*") if p.is_file()], parent)
    urls = [f"s3://bucket/run/{step}" for step in range(4)]
    output = parent / "mean"
    rows = {
        "directories": average_command(steps, output),
        "s3://": average_command(urls, output),
    }
    report("4 Orbax checkpoints of 100 MB", rows, output, rounds=5)


def upload(files: list[Path], parent: Path) -> list[str]:
    """Copy files to the store and return their URLs."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="bucket")
    names = [file.relative_to(parent).as_posix() for file in files]
    for file, name in zip(files, names, strict=True):
        s3.upload_file(str(file), "bucket", name)
    return [f"s3://bucket/{name}" for name in names]


if __name__ == "__main__":
    main()
