"""Killed and resumed is the same as never killed, to the last bit.

Real processes, real SIGKILLs, Keras' own `BackupAndRestore`. Each run carries
an average of each method, and with each option of `EMA`. A process that goes on
from a kill finishes that run and then dies in the next one: most of the time
goes into its imports.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import models
import numpy
import pytest
import resumable

SCRIPT = resumable.__file__
# A backup of every fifth batch is, last before the kill, that of the epoch's
# third, and counted anew from there that of the next epoch's fourth.
INTERRUPTS = [[2, 2], [3, 3]]


def killed_process(*runs):
    """Run in a process of its own, which does not live to its end."""
    process = subprocess.run(
        [sys.executable, SCRIPT, json.dumps(runs)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr


class Runs:
    """The runs of each kind, which are killed and go on.

    Args:
        folder: `pathlib.Path`, of all that they leave.
    """

    def __init__(self, folder):
        self.folder = folder

    def whole(self, kind, **options):
        """A run that nobody disturbs."""
        folder = str(self.folder / f"whole_{kind}")
        return {"kind": kind, "folder": folder} | options

    def resumed(self, kind, *, first, backup="epoch", **options):
        """A run that goes on where it was killed, if it was."""
        run = {"kind": kind, "folder": str(self.folder / kind)}
        return run | {"backup": backup, "backup_first": first} | options

    def end(self, name):
        """What a run ended with."""
        with numpy.load(self.folder / name / "end.npz") as arrays:
            return dict(arrays)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("runs"))
    whole, resumed = runs.whole, runs.resumed

    def killed(kind, where, epoch, **options):
        return resumed(kind, die=[where, epoch], **options)

    killed_process(killed("accumulated", "mid-epoch", 2, first=True))
    killed_process(
        resumed("accumulated", first=True),
        killed("scaled", "validation", 2, first=False),
    )
    killed_process(
        resumed("scaled", first=False),
        killed("plain", "mid-epoch", 2, first=True, backup=5),
    )
    killed_process(killed("plain", "mid-epoch", 3, first=False, backup=5))
    killed_process(
        resumed("plain", first=True, backup=5),
        killed("measured", "writing", 2, first=True),
    )
    torn = runs.folder / "measured" / "backup"
    shutil.copytree(torn, runs.folder / "torn")
    # In this epoch a member is written, and before the backup.
    killed_process(killed("measured", "writing", 3, first=False))
    assert len([*torn.parent.glob("members/*.weights.h5")]) == 2
    killed_process(
        resumed("measured", first=False),
        whole("measured"),
        whole("scaled"),
        whole("plain", interrupts=INTERRUPTS),
        whole("accumulated", save=True),
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
def test_a_killed_run_ends_as_if_it_had_not_been(kind, runs):
    """In mid-epoch, in validation, or while a backup and a member is written.

    With batch statistics that are measured, and with optimizers that do not
    make a step of each batch.
    """
    assert_same(runs.end(kind), runs.end(f"whole_{kind}"))


def test_a_killed_run_counts_the_steps_that_the_optimizer_made(runs):
    batches = 6 * resumable.EPOCHS
    last, averaged = runs.end("accumulated")["swapped_counts"]
    assert last == averaged == batches // 4
    last, averaged = runs.end("scaled")["swapped_counts"]
    assert 0 < averaged == last < batches


def test_a_run_killed_between_backups_of_batches_goes_on_from_the_last(runs):
    """Keras then repeats the epoch from the weights of that batch.

    An interrupted `fit` that is called again at that epoch does the same.
    """
    assert_same(runs.end("plain"), runs.end("whole_plain"))


def test_without_a_second_backup_a_torn_file_is_an_error(runs, tmp_path):
    """Not something half-loaded: Keras does not write files atomically."""
    torn = shutil.copytree(runs.folder / "torn", tmp_path / "torn")
    for spare in Path(torn).glob("*.bkp"):
        spare.unlink()
    model, _ = resumable.build("measured")
    averages = resumable.averages("measured", tmp_path)
    backup = keras.callbacks.BackupAndRestore(torn, double_checkpoint=True)
    before = model.get_weights()
    with pytest.raises(OSError, match=r"(?i)file"):
        model.fit(*models.data(6), callbacks=[backup, *averages], verbose=0)
    assert models.equal(model.get_weights(), before)


def test_a_file_of_the_average_is_whole_or_what_it_was(runs):
    """On a full disk, and after a kill while it was written."""
    model, _ = resumable.build("accumulated")
    model.load_weights(runs.folder / "whole_accumulated" / "a.weights.h5")
    end = runs.end("whole_accumulated")
    received = model.get_weights()
    shown = [end[f"shown_{i}"] for i in range(len(received))]
    assert models.equal(received, shown)
