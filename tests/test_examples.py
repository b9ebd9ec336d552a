"""The examples run as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_digits_shows_both_accuracies_and_its_file_scores_what_was_logged():
    run = subprocess.run(
        [sys.executable, EXAMPLES / "digits.py"],
        env=os.environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lines = run.stdout.splitlines()
    epochs = [line.split() for line in lines if line[:5].strip().isdigit()]
    assert [int(epoch) for epoch, _, _ in epochs] == list(range(1, 16))
    logged, scored = (float(line.split()[-1]) for line in lines[-2:])
    assert logged == scored == max(float(average) for _, _, average in epochs)
    assert logged > 0.97
