"""Several processes that train one model together."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import numpy
import orbax_files
import processes
import pytest
import reference
import weights_files

from keras_wavg import average_checkpoints

backend = keras.config.backend()
on_jax = pytest.mark.skipif(backend != "jax", reason="distribution on JAX")
on_torch = pytest.mark.skipif(
    backend != "torch", reason="distribution on torch"
)

# JAX

ROUNDING = 1e-5


def results(directory, count):
    return [
        dict(numpy.load(directory / f"{rank}.npz")) for rank in range(count)
    ]


def run_jax(task, layout, count, directory):
    script = "jax_process.py"
    processes.finish(processes.start(script, count, task, layout, directory))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results of one process with four devices."""
    directory = tmp_path_factory.mktemp("alone")
    run_jax("train", "data", 1, directory)
    return results(directory, 1)[0]


@pytest.fixture(
    scope="module", params=[("data", 2), ("model", 2), ("model", 4)], ids=str
)
def together(request, tmp_path_factory):
    """The results of several processes."""
    layout, count = request.param
    directory = tmp_path_factory.mktemp(layout)
    run_jax("train", layout, count, directory)
    found = results(directory, count)
    return SimpleNamespace(layout=layout, directory=directory, found=found)


@on_jax
def test_averages_of_several_processes_equal_those_of_one(together, alone):
    arrays = {k for k, a in alone.items() if a.dtype.kind == "f"} - {
        "collectives"
    }
    assert len(arrays) > 80
    for found in together.found:
        for name in arrays:
            error = reference.relative_error([found[name]], [alone[name]])
            assert error < ROUNDING, name
    first, *others = together.found
    for other in others:
        assert [k for k in first if (first[k] != other[k]).any()] == []


@on_jax
def test_an_update_does_not_communicate(together, alone):
    for found in (alone, *together.found):
        assert not found["collectives"].size


@on_jax
def test_training_resumes_from_checkpoints_of_several_processes(
    together, alone
):
    for found in (alone, *together.found):
        assert found["plain"]
        assert found["loaded"]
        assert found["resumed"]


@on_jax
def test_processes_average_their_checkpoints_together(together, tmp_path):
    root, (step,) = (
        together.directory / "orbax",
        (together.directory / "mean").iterdir(),
    )
    got = orbax_files.read(step)
    found = [orbax_files.read(root / name) for name in ("0", "1")]
    assert len(got) > 6
    for path, array in got.items():
        total = sum(each[path].astype("float64") for each in found)
        expected = (total / 2).astype(array.dtype)
        assert array.tobytes() == expected.tobytes(), path
    average_checkpoints([root], tmp_path / "mean", steps=[0, 1])
    one, many = (
        {
            path.relative_to(directory): path.read_bytes()
            for path in directory.glob("pytree/**/c/**/*")
            if path.is_file()
        }
        for directory in (tmp_path / "mean" / "1", step)
    )
    assert one == many


@on_jax
def test_calls_that_need_weights_of_other_processes_are_refused(together):
    for found in together.found:
        assert "`seed`" in str(found["error_seed"])
        for call in ("get", "save", "snapshots", "members"):
            error = str(found[f"error_{call}"])
            if together.layout == "model":
                assert "`keras.callbacks.OrbaxCheckpoint`" in error
            else:
                assert error == "no error"


@on_jax
def test_a_file_is_saved_by_one_process_or_from_a_checkpoint(together):
    """By one process if each has all weights, else from a checkpoint."""
    directory, found = together.directory, together.found[0]
    run_jax("deploy", "one", 1, directory)
    file = directory / "deployed.weights.h5"
    if together.layout == "data":
        one = weights_files.read(file)
        other = weights_files.read(directory / "alone.weights.h5")
        assert one.keys() == other.keys()
        assert weights_files.equal([*one.values()], [*other.values()])
    stored = weights_files.read(file).values()
    averages = [found[f"ema_{index}"] for index in range(len(stored))]
    for array in stored:
        assert any(numpy.array_equal(array, a) for a in averages)


@on_jax
@pytest.mark.parametrize("layout", ["model"])
def test_killed_and_resumed_processes_equal_uninterrupted_ones(
    layout, tmp_path
):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    for directory in (uninterrupted, killed):
        directory.mkdir()
    run_jax("resume", layout, 2, uninterrupted)

    ranks = processes.start("jax_process.py", 2, "resume", layout, killed)
    while not (killed / "orbax" / "1").exists():
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.01)
    time.sleep(numpy.random.default_rng().uniform(0, 0.5))
    first, second = numpy.random.default_rng().permutation(ranks)
    first.kill()
    second.kill()
    for rank in ranks:
        rank.wait()
    run_jax("resume", layout, 2, killed)

    assert int((killed / "0.start").read_text()) > 0
    pairs = zip(results(uninterrupted, 2), results(killed, 2), strict=True)
    for expected, found in pairs:
        assert expected.keys() == found.keys()
        for name, array in expected.items():
            numpy.testing.assert_array_equal(found[name], array, name)


# torch


@on_torch
@pytest.mark.parametrize("count", [2, 4])
def test_averages_of_fully_sharded_weights_are_sharded_too(count, tmp_path):
    processes.finish(processes.start("fsdp_process.py", count, tmp_path))
    for found in results(tmp_path, count):
        names = {key.split("_")[0] for key in found} - {"error", "kinds"}
        arrays = {name: in_order(name, found) for name in names}
        samples = [arrays[f"step{step}"] for step in range(6)]
        expected = {
            "raw": samples[-1],
            "ema": reference.ema(samples, 0.9),
            "cpu": reference.ema(samples, 0.9),
            "lawa": reference.mean([samples[3], samples[5]]),
        }
        for name, weights in expected.items():
            assert reference.relative_error(arrays[name], weights) < 1e-6
        assert (samples[0][0] != samples[-1][0]).any()
        assert found["kinds"].tolist() == ["DTensor"]
        assert "a single process has all of them" in str(found["error_get"])
        assert "`fully_shard`" in str(found["error"])


def in_order(name, found):
    keys = sorted(key for key in found if key.startswith(f"{name}_"))
    return [found[key] for key in keys]


@on_torch
def test_ranks_restarted_by_torchrun_equal_uninterrupted_ones(tmp_path):
    """`torchrun` restarts all ranks when one is killed."""
    ends = []
    for kills in (False, True):
        directory = tmp_path / str(kills)
        directory.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += ["--nproc-per-node=2", "--max-restarts=3"]
        endpoint = f"127.0.0.1:{processes.free_port()}"
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
        script = processes.TESTS / "elastic_process.py"
        subprocess.run(
            [*command, script, directory, *["kill"] * kills],
            check=True,
            env=processes.environment(),
            timeout=300,
        )
        ends.append(results(directory, 2))
        assert (directory / "resumed").read_text() == ("1" if kills else "0")
    for rank in range(2):
        uninterrupted, killed = ends[0][rank], ends[1][rank]
        assert [
            k for k in uninterrupted if (uninterrupted[k] != killed[k]).any()
        ] == []


@on_torch
def test_ranks_of_distributed_data_parallel_have_equal_averages(tmp_path):
    ranks = processes.start("ddp_process.py", 2, tmp_path)
    processes.finish(ranks)
    ends = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    for end in ends:
        assert end["error"] < 1e-6
        assert max(end["means"]) < 1e-6
        assert end["resumed"]
    first, second = (end["averages"] for end in ends)
    assert first.keys() == second.keys()
    differing = {path for path in first if first[path] != second[path]}
    # With DistributedDataParallel, each rank has its own moving statistics.
    assert {path.split("/")[-1] for path in differing} == {
        "moving_mean",
        "moving_variance",
    }
