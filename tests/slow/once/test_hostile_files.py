"""Crafted, damaged and changing checkpoints, full disks, killed processes.

The crafted checkpoints are in `hostile.py`.
"""

import contextlib
import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import hostile
import numpy
import progress
import pytest

from keras_wavg.files import hdf5_checkpoint
from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.checkpoint_opener import CheckpointOpener
from keras_wavg.files.checksum import checksum

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FORMATS = ["a.weights.h5", "a.weights.json", "a.keras"]
SAMPLES = {"refused": hostile.REFUSED, "averaged": hostile.AVERAGED}
LOOP = """
import sys
from keras_wavg.files.average import average_checkpoints
print("started", flush=True)
while True:
    average_checkpoints(sys.argv[2:], sys.argv[1], overwrite=True)
"""
ON_A_FULL_DISK = """
import json, os, sys
from keras_wavg.files.average import average_checkpoints
directory, *paths = sys.argv[1:]
for name in ("a.weights.h5", "a.weights.json", "a.keras"):
    try:
        average_checkpoints(paths, os.path.join(directory, name))
    except OSError as error:
        print(json.dumps([error.errno, os.listdir(directory)]))
"""


def python(*arguments, before=(), check=True):
    """Run a process that can import this package, for at most two minutes."""
    return subprocess.run(
        [*before, sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=check,
    )


# Crafted files


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hostile")
    hostile.write(directory)
    run = python("-Werror", HERE / "hostile_worker.py", directory)
    yield dict(
        zip(
            hostile.SAMPLES,
            map(json.loads, run.stdout.splitlines()),
            strict=True,
        )
    )
    shutil.rmtree(directory)


def fault(result):
    """The fault of an error, or `None`."""
    kinds, message = result["error"], result["message"]
    if not {"ValueError", "OSError"}.intersection(kinds):
        return f"{kinds[0]}: {message}"
    if not message.isprintable():
        return f"not printable: {message!r}"
    if "/hostile" not in message:
        return f"names no file: {message}"
    return None


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_a_hostile_file_is_refused_in_one_line_with_its_path(name, results):
    assert "error" in results[name]
    assert fault(results[name]) is None
    assert re.search(hostile.REFUSED[name][1], results[name]["message"])
    assert results[name]["left"] == []


@pytest.mark.parametrize("name", hostile.AVERAGED)
def test_an_unusual_but_valid_file_is_averaged(name, results):
    assert results[name].get("message") is None
    assert results[name]["complete"]


def test_the_mean_of_copies_is_the_original_and_swapped_names_are_noted(
    results,
):
    for name in ("3e38 everywhere", "4000 variables"):
        assert results[name]["same"]
    assert not results["weights"]["same"]
    assert not results["weights"]["notes"]
    (note,) = results["swapped names"]["notes"]
    assert "in another order" in note


def test_bytes_changed_at_random_are_refused_or_averaged(results):
    chosen = {name: results[name] for name in hostile.FUZZED}
    refused = {n: r for n, r in chosen.items() if "error" in r}
    assert 50 < len(refused) < len(chosen) - 50
    assert {n: c for n, r in refused.items() if (c := fault(r))} == {}
    assert all(r["complete"] for n, r in chosen.items() if n not in refused)
    assert not any(r["left"] for r in refused.values())


def test_an_inspection_refuses_a_file_or_is_printable(results):
    wrong = {}
    for name, result in results.items():
        inspection = result["inspection"]
        if "error" in inspection:
            wrong[name] = fault(inspection)
        elif not all(map(str.isprintable, inspection["text"].split("\n"))):
            wrong[name] = "not printable: " + ascii(inspection["text"])
    assert {n: c for n, c in wrong.items() if c} == {}


def test_no_other_file_is_opened(results):
    assert {n: r["opened"] for n, r in results.items() if r["opened"]} == {}


def test_no_file_takes_much_time_or_memory(results):
    normal = results["weights"]["mebibytes"]
    assert {
        name: (result["seconds"], result["mebibytes"])
        for name, result in results.items()
        if result["seconds"] > 4 or result["mebibytes"] > normal + 128
    } == {}


# Files that change while they are read


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two files of 16 MB, as `.weights.h5` and as `.keras`."""
    directory = tmp_path_factory.mktemp("large")
    layers = {"dense": [(2048, 2000)], "dense_1": [(50, 2000), (3,)]}
    for seed in (1, 2):
        weights = hostile.valid_file(
            directory / f"{seed}.weights.h5", seed, layers=layers
        )
        with zipfile.ZipFile(directory / f"{seed}.keras", "w") as archive:
            archive.writestr("config.json", f"of {seed}")
            archive.write(weights, hostile.MEMBER)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def pair(large, tmp_path):
    """Two files that a test may change."""
    names = [f"{seed}.weights.h5" for seed in (1, 2)]
    return [Path(shutil.copy(large / name, tmp_path)) for name in names]


def once(change):
    """A function of the progress that makes a change at its first call."""
    calls = []

    def report(done, total):
        if not calls:
            change()
        calls.append(done)

    return report


def rewrite(path):
    with path.open("r+b") as file:
        file.seek(10_000_000)
        file.write(bytes(8))


def append(path):
    with path.open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: os.truncate(path, 9000), "it became shorter"),
        (lambda path: os.truncate(path, 0), "it became shorter"),
        (rewrite, "it was changed while it was read"),
        (append, "it was changed while it was read"),
    ],
    ids=["cut off", "emptied", "written to", "grown"],
)
def test_a_file_that_changes_while_it_is_read_is_refused(
    change, message, which, pair, tmp_path, monkeypatch
):
    progress.report_to(once(lambda: change(pair[which])), monkeypatch)
    with pytest.raises(ValueError, match=message) as caught:
        average_checkpoints(pair, tmp_path / "a.weights.h5")
    assert str(pair[which]) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == pair


def mean_of(paths):
    """The first variable of the mean, by h5py and NumPy."""
    arrays = []
    for path in paths:
        with h5py.File(path) as file:
            arrays.append(file[hostile.FIRST]["0"][()].astype("float64"))
    return numpy.mean(arrays, axis=0).astype("float32")


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(
    is_deleted, pair, large, tmp_path, monkeypatch
):
    def replace():
        if is_deleted:
            pair[0].unlink()
        else:
            other = shutil.copy(pair[1], tmp_path / "other")
            Path(other).replace(pair[0])

    expected = mean_of(pair)
    output = tmp_path / "a.weights.h5"
    progress.report_to(once(replace), monkeypatch)
    average_checkpoints(pair, output)
    assert (mean_of([output]) == expected).all()


def test_a_file_that_was_replaced_is_not_opened_again(
    pair, tmp_path, monkeypatch
):
    monkeypatch.setattr(hdf5_checkpoint, "_MAX_OPEN", 0)
    shutil.copy(pair[0], tmp_path / "other")
    replace = once(lambda: (tmp_path / "other").replace(pair[0]))
    progress.report_to(replace, monkeypatch)
    with pytest.raises(ValueError, match="it was changed while it was read"):
        average_checkpoints(pair, tmp_path / "a.weights.h5")
    assert sorted(tmp_path.iterdir()) == pair


def test_the_config_is_not_copied_from_a_later_archive(
    large, tmp_path, monkeypatch
):
    one, two = (shutil.copy(large / f"{s}.keras", tmp_path) for s in (1, 2))
    output = tmp_path / "a.keras"
    progress.report_to(once(lambda: Path(one).replace(two)), monkeypatch)
    with contextlib.suppress(ValueError):
        average_checkpoints([large / "1.weights.h5", two], output)
    if output.exists():
        with zipfile.ZipFile(output) as archive:
            assert archive.read("config.json") == b"of 2"


@pytest.mark.parametrize("output", FORMATS)
def test_ctrl_c_leaves_the_old_output(output, large, tmp_path, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    (tmp_path / output).write_text("the old file")
    progress.report_to(once(interrupt), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        average_checkpoints(
            [large / "1.keras", large / "2.keras"],
            tmp_path / output,
            overwrite=True,
        )
    assert [path.name for path in tmp_path.iterdir()] == [output]
    assert (tmp_path / output).read_text() == "the old file"


# Full disks


@contextlib.contextmanager
def max_file_size(size):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("fraction", [0, 0.1, 0.9, 0.9999])
@pytest.mark.parametrize("output", FORMATS)
def test_a_failed_write_leaves_the_old_output(
    output, fraction, large, tmp_path
):
    path = tmp_path / output
    inputs = [large / "1.keras", large / "2.keras"]
    average_checkpoints(inputs, path, weights=[1, 3])
    before = contents(tmp_path)
    size = max(map(len, before.values()))
    with (
        max_file_size(int(fraction * size)),
        pytest.raises(OSError, match="large"),
    ):
        average_checkpoints(inputs, path, overwrite=True)
    assert contents(tmp_path) == before


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_nothing_is_left_on_a_full_disk(large, tmp_path):
    mount = f"mount -t tmpfs -o size=8m tmpfs '{tmp_path}' && exec \"$@\""
    before = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run(
            [*before, "true"], check=False, stderr=subprocess.DEVNULL
        ).returncode
    ):
        pytest.skip("only root can mount a disk")
    inputs = [large / "1.keras", large / "2.keras"]
    run = python("-c", ON_A_FULL_DISK, tmp_path, *inputs, before=before)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert lines == [[errno.ENOSPC, []]] * 3


# Killed processes


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """Two files of 50 MB."""
    directory = tmp_path_factory.mktemp("huge")
    layers = {f"dense_{i}": [(1000, 1250), (1250,)] for i in range(10)}
    paths = [directory / f"{seed}.weights.h5" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        hostile.valid_file(path, seed, layers=layers)
    for path in paths:
        with zipfile.ZipFile(path.with_name(f"{path.stem}.keras"), "w") as file:
            file.writestr("config.json", "{}")
            file.write(path, hostile.MEMBER)
    yield sorted(directory.glob("*.keras"))
    shutil.rmtree(directory)


def is_complete(path):
    with CheckpointOpener().open(path) as checkpoint:
        saved = json.loads(checkpoint.provenance)["checksum"]
        return checksum(checkpoint) == saved


def kill(delay, output, paths):
    """Average again and again, and kill the process after a delay."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, output, *paths],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline() == b"started\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("exists", [True, False], ids=["replaced", "new"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_killed_process_leaves_no_incomplete_file(
    name, exists, huge, tmp_path
):
    rng = random.Random(f"{name} {exists}")  # noqa: S311
    interrupted = 0
    for number in range(3):
        output = tmp_path / str(number) / name
        output.parent.mkdir()
        if exists:
            average_checkpoints(huge, output, weights=[1, 3])
        kill(rng.uniform(0, 0.5), output, huge)
        # While its shards are replaced, an index does not exist.
        must_exist = exists and not name.endswith(".json")
        assert is_complete(output) if output.exists() else not must_exist
        interrupted += any(output.parent.glob(".*"))
        shutil.rmtree(output.parent)
    assert interrupted
