"""Saved weights where the system has less, as on Windows and old macOS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
# What needs calls that these systems do not have.
LOCKS = "not killed_process"


@pytest.mark.skipif(os.name == "nt", reason="these are the tests themselves")
def test_files_are_read_and_written_without_the_calls_of_posix():
    paths = [TESTS / "files", TESTS / "unit" / "test_atomic.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "without_posix"]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-k", LOCKS, *paths],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout
