"""Saved weights on systems without POSIX calls, such as Windows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
# This test needs locks, which these systems lack.
WITHOUT_LOCKS = "not killed_process"


@pytest.mark.skipif(os.name == "nt", reason="the tests themselves run there")
def test_files_are_read_and_written_without_posix_calls():
    paths = [TESTS / "files", TESTS / "unit" / "test_atomic.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "without_posix"]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-k", WITHOUT_LOCKS, *paths],
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert " passed" in run.stdout
