"""Crafted, damaged and changing checkpoints, full disks, sudden ends.

See `hostile.py` for what is crafted.
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
import pytest

from keras_wavg.files import hdf5_checkpoint
from keras_wavg.files.average import average_checkpoints
from keras_wavg.files.checksum import checksum
from keras_wavg.files.opener import Opener

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FORMATS = ["a.weights.h5", "a.weights.json", "a.keras"]
SAMPLES = {"refused": hostile.REFUSED, "averaged": hostile.AVERAGED}
LOOP = """
import sys
from keras_wavg.files.average import average_checkpoints
print("begun", flush=True)
while True:
    average_checkpoints(sys.argv[2:], sys.argv[1], overwrite=True)
"""
ON_A_FULL_DISK = """
import json, os, sys
from keras_wavg.files.average import average_checkpoints
folder, *paths = sys.argv[1:]
for name in ("a.weights.h5", "a.weights.json", "a.keras"):
    try:
        average_checkpoints(paths, os.path.join(folder, name))
    except OSError as error:
        print(json.dumps([error.errno, os.listdir(folder)]))
"""


def python(*arguments, before=(), check=True):
    """A process that knows this package and may take two minutes."""
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
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write(folder)
    run = python("-Werror", HERE / "hostile_worker.py", folder)
    yield dict(
        zip(
            hostile.SAMPLES,
            map(json.loads, run.stdout.splitlines()),
            strict=True,
        )
    )
    shutil.rmtree(folder)


def complaint(result):
    """What is wrong with an error, if anything is."""
    kinds, message = result["error"], result["message"]
    if not {"ValueError", "OSError"}.intersection(kinds):
        return f"{kinds[0]}: {message}"
    if not message.isprintable():
        return f"not printable: {message!r}"
    if "/hostile" not in message:
        return f"names no file: {message}"
    return None


@pytest.mark.parametrize("name", hostile.REFUSED)
def test_a_hostile_file_is_refused_in_one_line_with_its_name(name, results):
    assert "error" in results[name]
    assert complaint(results[name]) is None
    assert re.search(hostile.REFUSED[name][1], results[name]["message"])
    assert results[name]["left"] == []


@pytest.mark.parametrize("name", hostile.AVERAGED)
def test_an_odd_file_that_is_sound_is_averaged(name, results):
    assert results[name].get("message") is None
    assert results[name]["whole"]


def test_the_mean_of_the_same_is_the_same_and_swapped_names_are_noted(results):
    for name in ("3e38 everywhere", "4000 variables"):
        assert results[name]["same"]
    assert not results["weights"]["same"]
    assert not results["weights"]["notes"]
    (note,) = results["swapped names"]["notes"]
    assert "the same layer names" in note


def test_bytes_changed_at_random_are_refused_or_averaged(results):
    chosen = {name: results[name] for name in hostile.FUZZED}
    refused = {n: r for n, r in chosen.items() if "error" in r}
    assert 50 < len(refused) < len(chosen) - 50
    assert {n: c for n, r in refused.items() if (c := complaint(r))} == {}
    assert all(r["whole"] for n, r in chosen.items() if n not in refused)
    assert not any(r["left"] for r in refused.values())


def test_an_inspection_refuses_a_file_or_prints_nothing_odd(results):
    wrong = {}
    for name, result in results.items():
        inspection = result["inspection"]
        if "error" in inspection:
            wrong[name] = complaint(inspection)
        elif not all(map(str.isprintable, inspection["text"].split("\n"))):
            wrong[name] = "not printable: " + ascii(inspection["text"])
    assert {n: c for n, c in wrong.items() if c} == {}


def test_nothing_is_opened_but_what_is_given(results):
    assert {n: r["opened"] for n, r in results.items() if r["opened"]} == {}


def test_no_file_takes_long_or_much_memory(results):
    usual = results["weights"]["mebibytes"]
    assert {
        name: (result["seconds"], result["mebibytes"])
        for name, result in results.items()
        if result["seconds"] > 4 or result["mebibytes"] > usual + 128
    } == {}


# Files that change while they are read


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two files of 16 MB, as `.weights.h5` and as `.keras`."""
    folder = tmp_path_factory.mktemp("large")
    layers = {"dense": [(2048, 2000)], "dense_1": [(50, 2000), (3,)]}
    for seed in (1, 2):
        made = hostile.sound(folder / f"{seed}.weights.h5", seed, layers=layers)
        with zipfile.ZipFile(folder / f"{seed}.keras", "w") as archive:
            archive.writestr("config.json", f"of {seed}")
            archive.write(made, hostile.MEMBER)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def pair(large, tmp_path):
    """Two files that a test may change."""
    names = [f"{seed}.weights.h5" for seed in (1, 2)]
    return [Path(shutil.copy(large / name, tmp_path)) for name in names]


def once(change):
    """A `progress` that makes a change when the first bytes are done."""
    calls = []

    def progress(done, total):
        if not calls:
            change()
        calls.append(done)

    return progress


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
    change, message, which, pair, tmp_path
):
    with pytest.raises(ValueError, match=message) as caught:
        average_checkpoints(
            pair,
            tmp_path / "a.weights.h5",
            progress=once(lambda: change(pair[which])),
        )
    assert str(pair[which]) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == pair


def mean_of(paths):
    """The first variable of the mean, by h5py and NumPy."""
    arrays = []
    for path in paths:
        with h5py.File(path) as file:
            arrays.append(file[hostile.FIRST]["0"][()].astype("float64"))
    return numpy.mean(arrays, axis=0).astype("float32")


@pytest.mark.parametrize("gone", [os.unlink, os.path.dirname])
def test_a_file_that_is_replaced_while_it_is_read_counts_as_it_was(
    gone, pair, large, tmp_path
):
    def replace():
        if gone is os.unlink:
            pair[0].unlink()
        else:
            other = shutil.copy(pair[1], tmp_path / "other")
            Path(other).replace(pair[0])

    expected = mean_of(pair)
    output = tmp_path / "a.weights.h5"
    average_checkpoints(pair, output, progress=once(replace))
    assert (mean_of([output]) == expected).all()


def test_a_file_that_is_opened_again_must_be_the_same(
    pair, tmp_path, monkeypatch
):
    monkeypatch.setattr(hdf5_checkpoint, "_MOST_OPEN", 0)
    shutil.copy(pair[0], tmp_path / "other")
    with pytest.raises(ValueError, match="it was changed while it was read"):
        average_checkpoints(
            pair,
            tmp_path / "a.weights.h5",
            progress=once(lambda: (tmp_path / "other").replace(pair[0])),
        )
    assert sorted(tmp_path.iterdir()) == pair


def test_the_config_is_not_that_of_an_archive_which_came_later(large, tmp_path):
    one, two = (shutil.copy(large / f"{s}.keras", tmp_path) for s in (1, 2))
    output = tmp_path / "a.keras"
    with contextlib.suppress(ValueError):
        average_checkpoints(
            [large / "1.weights.h5", two],
            output,
            progress=once(lambda: Path(one).replace(two)),
        )
    if output.exists():
        with zipfile.ZipFile(output) as archive:
            assert archive.read("config.json") == b"of 2"


@pytest.mark.parametrize("output", FORMATS)
def test_ctrl_c_leaves_nothing_behind(output, large, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    (tmp_path / output).write_text("what was there before")
    with pytest.raises(KeyboardInterrupt):
        average_checkpoints(
            [large / "1.keras", large / "2.keras"],
            tmp_path / output,
            overwrite=True,
            progress=once(interrupt),
        )
    assert [path.name for path in tmp_path.iterdir()] == [output]
    assert (tmp_path / output).read_text() == "what was there before"


# Full disks


@contextlib.contextmanager
def largest_file(size):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("share", [0, 0.1, 0.9, 0.9999])
@pytest.mark.parametrize("output", FORMATS)
def test_a_file_that_cannot_be_written_leaves_what_was_there(
    output, share, large, tmp_path
):
    path = tmp_path / output
    inputs = [large / "1.keras", large / "2.keras"]
    average_checkpoints(inputs, path, weights=[1, 3])
    before = contents(tmp_path)
    size = max(map(len, before.values()))
    with largest_file(int(share * size)), pytest.raises(OSError, match="large"):
        average_checkpoints(inputs, path, overwrite=True)
    assert contents(tmp_path) == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_left_on_a_disk_that_is_full(large, tmp_path):
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


# A sudden end


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """Two files of 50 MB."""
    folder = tmp_path_factory.mktemp("huge")
    layers = {f"dense_{i}": [(1000, 1250), (1250,)] for i in range(10)}
    paths = [folder / f"{seed}.weights.h5" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        hostile.sound(path, seed, layers=layers)
    for path in paths:
        with zipfile.ZipFile(path.with_name(f"{path.stem}.keras"), "w") as file:
            file.writestr("config.json", "{}")
            file.write(path, hostile.MEMBER)
    yield sorted(folder.glob("*.keras"))
    shutil.rmtree(folder)


def is_whole(path):
    with Opener().open(path) as checkpoint:
        kept = json.loads(checkpoint.provenance)["checksum"]
        return checksum(checkpoint) == kept


def kill(delay, output, paths):
    """Average over and over again, and end that without a warning."""
    with subprocess.Popen(
        [sys.executable, "-c", LOOP, output, *paths],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("is_there", [True, False], ids=["again", "at first"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_process_that_is_killed_leaves_no_part_of_a_file(
    name, is_there, huge, tmp_path
):
    rng = random.Random(f"{name} {is_there}")  # noqa: S311
    interrupted = 0
    for number in range(3):
        output = tmp_path / str(number) / name
        output.parent.mkdir()
        if is_there:
            average_checkpoints(huge, output, weights=[1, 3])
        kill(rng.uniform(0, 0.5), output, huge)
        # Shards make an index wrong while they are replaced: it is not there.
        must_be_there = is_there and not name.endswith(".json")
        assert is_whole(output) if output.exists() else not must_be_there
        interrupted += any(output.parent.glob(".*"))
        shutil.rmtree(output.parent)
    assert interrupted
