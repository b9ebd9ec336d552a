"""Killed and resumed is the same as never killed, to the last bit.

Real processes, real SIGKILLs, Keras' own `BackupAndRestore`. Each run carries
an average of each method, and with each option of `EMA`.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import resumable

SCRIPT = resumable.__file__


def process(folder, **run):
    """Train in a process of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, SCRIPT, json.dumps({"folder": str(folder)} | run)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def end(folder):
    """What a run ended with."""
    with numpy.load(folder / "end.npz") as arrays:
        return dict(arrays)


def finish(folder, **run):
    ended = process(folder, **run)
    assert ended.returncode == 0, ended.stderr
    return end(folder)


def kill_and_resume(folder, die, **run):
    killed = process(folder, die=die, **run)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "end.npz").exists()
    return finish(folder, **run)


def assert_same(received, expected):
    assert received.keys() == expected.keys()
    differing = [
        key
        for key, array in expected.items()
        if array.tobytes() != received[key].tobytes()
    ]
    assert differing == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Ends of runs that nobody disturbed."""
    ends = {}

    def run(**options):
        key = json.dumps(options)
        if key not in ends:
            ends[key] = finish(tmp_path_factory.mktemp("run"), **options)
        return ends[key]

    return run


@pytest.mark.parametrize(
    ("die", "backup_first", "averages"),
    [
        ("mid-epoch", True, {}),
        ("validation", False, {}),
        ("writing", True, {}),
        ("writing", True, {"members": True}),
        ("validation", True, {"swa": True}),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    die, backup_first, averages, uninterrupted, tmp_path
):
    received = kill_and_resume(
        tmp_path, die, backup="epoch", backup_first=backup_first, **averages
    )
    assert_same(received, uninterrupted(**averages))


@pytest.mark.parametrize(
    "optimizer", [{"accumulate": 4, "steps": 6}, {"scale": True, "steps": 12}]
)
def test_a_killed_run_counts_the_steps_that_the_optimizer_made(
    optimizer, uninterrupted, tmp_path
):
    received = kill_and_resume(
        tmp_path, "mid-epoch", backup="epoch", backup_first=False, **optimizer
    )
    assert_same(received, uninterrupted(**optimizer))
    if "scale" in optimizer:
        assert received["swapped_counts"][0] < 6 * resumable.EPOCHS


@pytest.mark.parametrize("backup_first", [True, False])
def test_a_run_killed_between_backups_of_batches_goes_on_from_the_last(
    backup_first, uninterrupted, tmp_path
):
    """Keras then repeats the epoch from the weights of that batch.

    An interrupted `fit` that is called again at that epoch does the same. The
    backup of every fifth batch is, last before the kill, that of the epoch's
    third.
    """
    received = kill_and_resume(
        tmp_path, "mid-epoch", backup=5, backup_first=backup_first
    )
    assert_same(received, uninterrupted(interrupt=[2, 2]))


def test_without_a_second_backup_a_torn_file_is_an_error(tmp_path):
    """Not something half-loaded: Keras does not write files atomically."""
    killed = process(tmp_path, die="writing", backup="epoch", backup_first=True)
    assert killed.returncode == -signal.SIGKILL
    for spare in (tmp_path / "backup").glob("*.bkp"):
        spare.unlink()
    failed = process(tmp_path, backup="epoch", backup_first=True)
    assert failed.returncode == 1
    assert "OSError" in failed.stderr
    assert not Path(tmp_path, "end.npz").exists()


def test_a_file_of_the_average_is_whole_or_what_it_was(tmp_path):
    """On a full disk, and after a kill while it was written."""
    killed = process(tmp_path, save=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    model, _ = resumable.build({})
    model.load_weights(tmp_path / "a.weights.h5")
