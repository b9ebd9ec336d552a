"""A killed and resumed run equals an uninterrupted one, bit for bit.

Real processes, real SIGKILLs, Keras' own `BackupAndRestore`. Each run has an
average of each method, and with each option of `EMA`. A process that resumes a
run is killed in the next one: imports take most of the time of a process.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import killed_process
import models
import numpy
import pytest

SCRIPT = killed_process.__file__
# With a backup of every fifth batch, the last one before a kill is that of the
# epoch's third batch; in the next epoch, counted from there, of its fourth.
INTERRUPTS = [[2, 2], [3, 3]]


def run_until_killed(*runs):
    """Run in another process, which must be killed before it ends."""
    process = subprocess.run(
        [sys.executable, SCRIPT, json.dumps(runs)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


class Runs:
    """The runs of each kind, and what they leave.

    Args:
        directory: `pathlib.Path`, for the files of all runs.
    """

    def __init__(self, directory):
        self.directory = directory

    def uninterrupted(self, kind, **options):
        """A run that is not killed."""
        directory = str(self.directory / f"uninterrupted_{kind}")
        return {"kind": kind, "directory": directory} | options

    def resumed(self, kind, *, first, backup="epoch", **options):
        """A run that continues where it was killed, if it was."""
        run = {"kind": kind, "directory": str(self.directory / kind)}
        return run | {"backup": backup, "backup_first": first} | options

    def end(self, name):
        """The final arrays of a run."""
        with numpy.load(self.directory / name / "end.npz") as arrays:
            return dict(arrays)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    uninterrupted, resumed = runs.uninterrupted, runs.resumed

    def killed(kind, where, epoch, **options):
        return resumed(kind, kill=[where, epoch], **options)

    run_until_killed(killed("accumulated", "mid-epoch", 2, first=True))
    run_until_killed(
        resumed("accumulated", first=True),
        killed("scaled", "validation", 2, first=False),
    )
    run_until_killed(
        resumed("scaled", first=False),
        killed("plain", "mid-epoch", 2, first=True, backup=5),
    )
    run_until_killed(killed("plain", "mid-epoch", 3, first=False, backup=5))
    run_until_killed(
        resumed("plain", first=True, backup=5),
        killed("measured", "writing", 2, first=True),
    )
    incomplete = runs.directory / "measured" / "backup"
    shutil.copytree(incomplete, runs.directory / "incomplete")
    # In this epoch a member file is written, before the backup.
    run_until_killed(killed("measured", "writing", 3, first=False))
    assert len([*incomplete.parent.glob("members/*.weights.h5")]) == 2
    run_until_killed(
        resumed("measured", first=False),
        uninterrupted("measured"),
        uninterrupted("scaled"),
        uninterrupted("plain", interrupts=INTERRUPTS),
        uninterrupted("accumulated", save=True),
    )
    return runs


def assert_same(received, expected):
    assert received.keys() == expected.keys()
    differing = [
        key
        for key, array in expected.items()
        if array.tobytes() != received[key].tobytes()
    ]
    assert differing == []


@pytest.mark.parametrize("kind", ["measured", "accumulated", "scaled"])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(kind, runs):
    """Killed in mid-epoch, in validation, or while files are written.

    With measured batch statistics, and with optimizers that do not make a step
    at each batch.
    """
    assert_same(runs.end(kind), runs.end(f"uninterrupted_{kind}"))


def test_a_resumed_run_counts_optimizer_steps(runs):
    batches = 6 * killed_process.EPOCHS
    last, averaged = runs.end("accumulated")["swapped_counts"]
    assert last == averaged == batches // 4
    last, averaged = runs.end("scaled")["swapped_counts"]
    assert 0 < averaged == last < batches


def test_a_run_killed_between_two_backups_resumes_from_the_last_one(runs):
    """Keras then repeats the epoch from the weights of that batch.

    An interrupted `fit` that is called again at that epoch does the same.
    """
    assert_same(runs.end("plain"), runs.end("uninterrupted_plain"))


def test_without_a_second_backup_an_incomplete_file_is_an_error(runs, tmp_path):
    """No weights are loaded. Keras does not write files atomically."""
    incomplete = shutil.copytree(
        runs.directory / "incomplete", tmp_path / "incomplete"
    )
    for spare in Path(incomplete).glob("*.bkp"):
        spare.unlink()
    model, _ = killed_process.build("measured")
    averages = killed_process.averages("measured", tmp_path)
    backup = keras.callbacks.BackupAndRestore(
        incomplete, double_checkpoint=True
    )
    before = model.get_weights()
    with pytest.raises(OSError, match=r"(?i)file"):
        model.fit(*models.data(6), callbacks=[backup, *averages], verbose=0)
    assert models.equal(model.get_weights(), before)


def test_a_file_of_the_average_is_written_atomically(runs):
    """On a full disk, and after a kill while it was written."""
    model, _ = killed_process.build("accumulated")
    model.load_weights(
        runs.directory / "uninterrupted_accumulated" / "a.weights.h5"
    )
    end = runs.end("uninterrupted_accumulated")
    received = model.get_weights()
    shown = [end[f"shown_{i}"] for i in range(len(received))]
    assert models.equal(received, shown)
