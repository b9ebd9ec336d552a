"""Real processes that train one model together."""

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
on_jax = pytest.mark.skipif(backend != "jax", reason="how JAX distributes")
on_torch = pytest.mark.skipif(
    backend != "torch", reason="how torch distributes"
)

# JAX

ROUNDING = 1e-5


def results(folder, count):
    return [dict(numpy.load(folder / f"{rank}.npz")) for rank in range(count)]


def run_jax(task, layout, count, folder):
    script = "jax_process.py"
    processes.finish(processes.start(script, count, task, layout, folder))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with four devices finds."""
    folder = tmp_path_factory.mktemp("alone")
    run_jax("train", "data", 1, folder)
    return results(folder, 1)[0]


@pytest.fixture(
    scope="module", params=[("data", 2), ("model", 2), ("model", 4)], ids=str
)
def together(request, tmp_path_factory):
    """What each of several processes finds."""
    layout, count = request.param
    folder = tmp_path_factory.mktemp(layout)
    run_jax("train", layout, count, folder)
    found = results(folder, count)
    return SimpleNamespace(layout=layout, folder=folder, found=found)


@on_jax
def test_averages_over_processes_are_those_of_one(together, alone):
    arrays = {k for k, a in alone.items() if a.dtype.kind == "f"} - {"moves"}
    assert len(arrays) > 80
    for found in together.found:
        for name in arrays:
            error = reference.relative_error([found[name]], [alone[name]])
            assert error < ROUNDING, name
    first, *others = together.found
    for other in others:
        assert [k for k in first if (first[k] != other[k]).any()] == []


@on_jax
def test_an_update_has_no_word_for_other_processes(together, alone):
    for found in (alone, *together.found):
        assert not found["moves"].size


@on_jax
def test_checkpoints_of_several_processes_are_gone_on_from(together, alone):
    for found in (alone, *together.found):
        assert found["plain"]
        assert found["loaded"]
        assert found["goes_on"]


@on_jax
def test_processes_average_their_checkpoints_together(together, tmp_path):
    root, (step,) = (
        together.folder / "orbax",
        (together.folder / "mean").iterdir(),
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
            path.relative_to(folder): path.read_bytes()
            for path in folder.glob("pytree/**/c/**/*")
            if path.is_file()
        }
        for folder in (tmp_path / "mean" / "1", step)
    )
    assert one == many


@on_jax
def test_what_no_process_can_do_alone_is_refused(together):
    for found in together.found:
        assert "`seed`" in str(found["told_seed"])
        for call in ("get", "save", "snapshots", "members"):
            told = str(found[f"told_{call}"])
            if together.layout == "model":
                assert "`keras.callbacks.OrbaxCheckpoint`" in told
            else:
                assert told == "nothing"


@on_jax
def test_a_file_comes_from_one_process_or_from_a_checkpoint(together):
    """Of weights that each process has, or that none has all of."""
    folder, found = together.folder, together.found[0]
    run_jax("deploy", "one", 1, folder)
    file = folder / "deployed.weights.h5"
    if together.layout == "data":
        one = weights_files.read(file)
        other = weights_files.read(folder / "alone.weights.h5")
        assert one.keys() == other.keys()
        assert weights_files.equal([*one.values()], [*other.values()])
    stored = weights_files.read(file).values()
    averages = [found[f"ema_{index}"] for index in range(len(stored))]
    for array in stored:
        assert any(numpy.array_equal(array, a) for a in averages)


@on_jax
@pytest.mark.parametrize("layout", ["model"])
def test_killed_processes_go_on_as_if_nothing_had_happened(layout, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    run_jax("resume", layout, 2, whole)

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

    assert int((killed / "0.began").read_text()) > 0
    pairs = zip(results(whole, 2), results(killed, 2), strict=True)
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
        names = {key.split("_")[0] for key in found} - {"told", "kinds"}
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
        assert "spread over several" in str(found["told_get"])
        assert "`fully_shard`" in str(found["told"])


def in_order(name, found):
    keys = sorted(key for key in found if key.startswith(f"{name}_"))
    return [found[key] for key in keys]


@on_torch
def test_ranks_that_are_started_again_go_on_as_if_nothing_had_happened(
    tmp_path,
):
    """`torchrun` starts all ranks again when one is killed."""
    ends = []
    for kills in (False, True):
        folder = tmp_path / str(kills)
        folder.mkdir()
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += ["--nproc-per-node=2", "--max-restarts=3"]
        endpoint = f"127.0.0.1:{processes.free_port()}"
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}"]
        script = processes.TESTS / "elastic_process.py"
        subprocess.run(
            [*command, script, folder, *["kill"] * kills],
            check=True,
            env=processes.environment(),
            timeout=300,
        )
        ends.append(results(folder, 2))
        assert (folder / "began").read_text() == ("1" if kills else "0")
    for rank in range(2):
        whole, killed = ends[0][rank], ends[1][rank]
        assert [k for k in whole if (whole[k] != killed[k]).any()] == []


@on_torch
def test_each_rank_averages_its_own_and_all_end_equal(tmp_path):
    ranks = processes.start("replica.py", 2, tmp_path)
    processes.finish(ranks)
    ends = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    for end in ends:
        assert end["error"] < 1e-6
        assert max(end["means"]) < 1e-6
        assert end["resumed"]
    first, second = (end["averages"] for end in ends)
    assert first.keys() == second.keys()
    differing = {path for path in first if first[path] != second[path]}
    # DistributedDataParallel leaves moving statistics to each rank.
    assert {path.split("/")[-1] for path in differing} == {
        "moving_mean",
        "moving_variance",
    }
