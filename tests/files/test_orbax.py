"""Orbax checkpoints are averaged exactly and validated, as files are."""

import json
import math
import shutil
import sys

import ml_dtypes
import numpy
import orbax_files
import progress
import pytest
import weights_files
from typer.testing import CliRunner

from keras_wavg import (
    average_checkpoints,
    diff_checkpoints,
    greedy_soup,
    inspect_checkpoint,
    select_checkpoints,
    synthesize,
)
from keras_wavg.cli import app

KERNEL = "trainable_variables/dense/kernel"
MEAN = "non_trainable_variables/bn/moving_mean"
ITERATION = "optimizer_variables/adam/iteration"
SHAPE = (6, 10)


def arrays(seed, dtype="float32"):
    random = numpy.random.default_rng(seed)
    return {
        KERNEL: random.normal(size=SHAPE).astype(dtype),
        "trainable_variables/dense/bias": random.normal(size=10).astype(dtype),
        MEAN: random.normal(size=10).astype(dtype),
        "trainable_variables/scale/value": numpy.array(seed + 0.1, dtype),
    }


def mean(found, path):
    """The mean in a wider type, rounded once."""
    wide = numpy.longdouble if found[0][path].dtype == "float64" else "float64"
    total = sum(each[path].astype(wide) for each in found)
    return (total / len(found)).astype(found[0][path].dtype)


def same(first, second):
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.tobytes() == second.tobytes()
    )


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("driver", ["zarr3", "zarr"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("chunk", [SHAPE, (2, 5), (4, 7), (1, 1)])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16]
)
def test_the_mean_is_computed_in_a_wider_type_and_rounded_once(
    tmp_path, driver, packed, chunk, dtype
):
    given = [arrays(seed, dtype) for seed in range(3)]
    paths = orbax_files.write_each(
        tmp_path / "run",
        *given,
        chunks={KERNEL: chunk},
        driver=driver,
        packed=packed,
    )
    report = average_checkpoints(paths, tmp_path / "mean")
    got = orbax_files.read(tmp_path / "mean" / "2")
    assert got.keys() == given[0].keys()
    for path in got:
        assert same(got[path], mean(given, path)), path
    assert "dense/kernel" in report.averaged
    found = inspect_checkpoint(tmp_path / "mean")
    assert found.is_unchanged
    assert found.checksum == report.checksum
    for source, path in zip(report.sources, paths, strict=True):
        assert source.checksum == inspect_checkpoint(path).checksum


def test_the_mean_of_copies_is_the_original(tmp_path):
    given = arrays(0)
    (first,) = orbax_files.write_each(tmp_path / "run", given)
    copies = [orbax_files.copy(first, tmp_path / str(k)) for k in range(7)]
    average_checkpoints(copies, tmp_path / "mean")
    got = orbax_files.read(tmp_path / "mean" / "6")
    assert all(same(got[path], given[path]) for path in given)
    assert diff_checkpoints(first, tmp_path / "mean").weights_equal


def test_the_order_and_the_chunks_of_other_checkpoints_do_not_matter(tmp_path):
    given = [arrays(seed) for seed in range(3)]
    paths = [
        orbax_files.write(
            tmp_path / f"run{k}" / "7", each, chunks={KERNEL: chunk}
        )
        for k, (each, chunk) in enumerate(
            zip(given, [SHAPE, (2, 3), (3, 10)], strict=True)
        )
    ]
    report = average_checkpoints(paths, tmp_path / "one")
    average_checkpoints(paths[::-1], tmp_path / "two")
    one = orbax_files.read(tmp_path / "one" / "7")
    two = orbax_files.read(tmp_path / "two" / "7")
    for path in one:
        assert same(one[path], mean(given, path))
        assert same(one[path], two[path])
    for source, path in zip(report.sources, paths, strict=True):
        assert source.checksum == inspect_checkpoint(path).checksum


def test_chunks_larger_than_a_block_are_exact(tmp_path):
    shape = 1100, 5000  # 22 MB
    given = [
        {KERNEL: numpy.random.default_rng(seed).normal(size=shape)}
        for seed in range(2)
    ]
    given = [{KERNEL: each[KERNEL].astype("float32")} for each in given]
    paths = orbax_files.write_each(tmp_path / "run", *given)
    average_checkpoints(paths, tmp_path / "mean")
    got = orbax_files.read(tmp_path / "mean" / "1")
    assert same(got[KERNEL], mean(given, KERNEL))


def test_integers_are_copied_from_the_last_checkpoint_or_refused(tmp_path):
    count = "non_trainable_variables/bn/count"
    table = "non_trainable_variables/dense/table"
    given = [
        arrays(seed)
        | {count: numpy.int32(seed), table: numpy.arange(4, dtype="int8")}
        for seed in range(2)
    ]
    paths = orbax_files.write_each(tmp_path / "run", *given)
    report = average_checkpoints(paths, tmp_path / "mean")
    got = orbax_files.read(tmp_path / "mean" / "1")
    assert got[count] == 1
    assert same(got[table], given[0][table])
    assert report.copied["bn/count"] == "integers that differ"
    given[1][table][2] = 7
    other = orbax_files.write(tmp_path / "other" / "1", given[1])
    with pytest.raises(ValueError, match="dense/table"):
        average_checkpoints([paths[0], other], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_state_of_the_optimizer_is_dropped_or_copied_from_the_last(
    tmp_path,
):
    paths = [
        orbax_files.write(
            tmp_path / "run" / str(seed),
            arrays(seed)
            | {
                ITERATION: numpy.int32(seed),
                # The number differs between runs.
                f"non_trainable_variables/seed_generator_{seed}"
                "/seed_generator_state": numpy.full(2, seed, "uint32"),
                "metrics_variables/loss/total": numpy.float32(seed),
                "non_trainable_variables/~wavg_ema/steps": numpy.int32(seed),
            },
        )
        for seed in range(3)
    ]
    seeds = "non_trainable_variables/seed_generator_2/seed_generator_state"
    report = average_checkpoints(paths, tmp_path / "dropped")
    got = orbax_files.read(tmp_path / "dropped" / "2")
    assert got.keys() == {*arrays(0), seeds}
    assert (got[seeds] == 2).all()
    assert set(report.dropped.values()) == {"optimizer", "metrics", "average"}
    average_checkpoints(paths, tmp_path / "last", optimizer="last")
    got = orbax_files.read(tmp_path / "last" / "2")
    assert got.keys() == {*arrays(0), seeds, ITERATION}
    assert got[ITERATION] == 2


def test_weights_that_were_frozen_later_are_the_same_weights(tmp_path):
    trained, frozen = arrays(0), arrays(1)
    frozen[f"non_{KERNEL}"] = frozen.pop(KERNEL)
    paths = orbax_files.write_each(tmp_path / "run", trained, frozen)
    average_checkpoints(paths, tmp_path / "mean")
    got = orbax_files.read(tmp_path / "mean" / "1")
    expected = (trained[KERNEL] + frozen[f"non_{KERNEL}"]) / 2
    assert same(got[f"non_{KERNEL}"], expected)


def test_a_root_directory_means_its_latest_step_or_the_given_steps(tmp_path):
    root = tmp_path / "run"
    for step in (3, 20, 100):
        orbax_files.write(root / str(step), arrays(step))
    report = average_checkpoints([root], tmp_path / "latest")
    assert [s.path.name for s in report.sources] == ["100"]
    report = average_checkpoints([root], tmp_path / "two", steps=[3, 20])
    assert [s.path.name for s in report.sources] == ["3", "20"]
    assert names_in(tmp_path / "two") == ["20"]
    for steps in ([4], []):
        with pytest.raises(ValueError, match=r"has \[3, 20, 100\]"):
            average_checkpoints([root], tmp_path / "none", steps=steps)
    with pytest.raises(ValueError, match="which has none"):
        average_checkpoints([root / "3"], tmp_path / "none", steps=[3])


def test_a_step_is_added_to_a_root_directory(tmp_path):
    paths = orbax_files.write_each(tmp_path / "run", *map(arrays, range(3)))
    for count in (2, 3):
        average_checkpoints(paths[:count], tmp_path / "mean")
    average_checkpoints(paths, tmp_path / "mean" / "77")
    assert names_in(tmp_path / "mean") == ["1", "2", "77"]
    before = orbax_files.read(tmp_path / "mean" / "2")
    with pytest.raises(FileExistsError, match="overwrite"):
        average_checkpoints(paths[2:], tmp_path / "mean")
    after = orbax_files.read(tmp_path / "mean" / "2")
    assert all(same(before[path], after[path]) for path in before)
    average_checkpoints(paths[2:], tmp_path / "mean", overwrite=True)
    after = orbax_files.read(tmp_path / "mean" / "2")
    assert all(same(arrays(2)[path], after[path]) for path in before)
    assert names_in(tmp_path / "mean") == ["1", "2", "77"]


def test_an_output_that_is_not_an_orbax_directory_is_refused(tmp_path):
    paths = orbax_files.write_each(tmp_path / "run", arrays(0))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="an Orbax directory"):
            average_checkpoints(paths, tmp_path / "photos", overwrite=overwrite)
    with pytest.raises(ValueError, match="Choose another name"):
        average_checkpoints(paths, tmp_path / "run", overwrite=True)
    with pytest.raises(ValueError, match="a Keras 2 file"):
        average_checkpoints(paths, tmp_path / "mean.h5")
    with pytest.raises(FileNotFoundError, match="directory of `output"):
        average_checkpoints(paths, tmp_path / "no" / "mean")


def missing_chunk(step):
    (step / "pytree" / KERNEL.replace("/", ".") / "c" / "0" / "0").unlink()


def truncated_chunk(step):
    path = step / "pytree" / KERNEL.replace("/", ".") / "c" / "0" / "0"
    path.write_bytes(path.read_bytes()[:-9])


def missing_array(step):
    shutil.rmtree(step / "pytree" / KERNEL.replace("/", "."))


def bad_json(step):
    (step / "pytree" / "_METADATA").write_text("{")


def no_tree(step):
    (step / "pytree" / "_METADATA").unlink()


def list_as_metadata(step):
    (step / "_CHECKPOINT_METADATA").write_text("[]")


def invalid_tree(step):
    orbax_files.change_json(
        step / "pytree" / "_METADATA", tree_metadata={"a": 3}
    )


def name_of_a_parent(step):
    rename_kernel(step, "../../../evil")


def name_with_a_newline(step):
    rename_kernel(step, "a\nline")


def rename_kernel(step, name):
    path = step / "pytree" / "_METADATA"
    path.write_text(path.read_text().replace("kernel", json.dumps(name)[1:-1]))


def declare_huge_chunk(step):
    """Declare a chunk of 4 TB that is not in the file."""
    path = step / "pytree" / KERNEL.replace("/", ".") / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["shape"] = [1 << 40]
    metadata["chunk_grid"]["configuration"]["chunk_shape"] = [1 << 40]
    path.write_text(json.dumps(metadata))


def not_committed(step):
    orbax_files.change_json(
        step / "_CHECKPOINT_METADATA", commit_timestamp_nsecs=None
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_chunk, "chunks"),
        (truncated_chunk, "tensorstore: "),
        (missing_array, "tensorstore: "),
        (bad_json, "not JSON"),
        (no_tree, "no _METADATA"),
        (list_as_metadata, "not a dictionary"),
        (invalid_tree, "as Orbax writes it"),
        (name_of_a_parent, "not valid"),
        (name_with_a_newline, "not valid"),
        (not_committed, "not finished"),
    ],
)
def test_a_damaged_step_is_refused_in_one_line(tmp_path, damage, message):
    paths = orbax_files.write_each(
        tmp_path / "run", arrays(0), arrays(1), packed=False
    )
    damage(paths[0])
    before = names_in(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        average_checkpoints(paths, tmp_path / "mean")
    assert "\n" not in str(caught.value)
    assert str(paths[0]) in str(caught.value)
    assert names_in(tmp_path) == before


def test_a_chunk_larger_than_the_memory_is_an_error(tmp_path):
    (path,) = orbax_files.write_each(tmp_path / "run", arrays(0), packed=False)
    declare_huge_chunk(path)
    with pytest.raises((ValueError, OSError)) as caught:
        average_checkpoints([path], tmp_path / "mean")
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == ["run"]


def test_a_truncated_file_with_several_chunks_is_refused(tmp_path):
    paths = orbax_files.write_each(tmp_path / "run", arrays(0), arrays(1))
    for file in (paths[0] / "pytree" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="tensorstore: "):
        average_checkpoints(paths, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_an_unfinished_step_is_refused(tmp_path):
    (path,) = orbax_files.write_each(tmp_path / "run", arrays(0))
    unfinished = path.with_name("1.orbax-checkpoint-tmp-17")
    path.rename(unfinished)
    with pytest.raises(ValueError, match="Choose another step"):
        average_checkpoints([unfinished], tmp_path / "mean")


def test_checkpoints_of_different_models_are_refused(tmp_path):
    other = arrays(1)
    other[KERNEL] = other[KERNEL][:, :5]
    paths = orbax_files.write_each(tmp_path / "run", arrays(0), other)
    with pytest.raises(ValueError, match=r"dense/kernel: float32 of shape"):
        average_checkpoints(paths, tmp_path / "mean")
    average_checkpoints(paths, tmp_path / "mean", strict=False)
    got = orbax_files.read(tmp_path / "mean" / "1")
    assert same(got[KERNEL], other[KERNEL])
    assert same(got[MEAN], mean([arrays(0), other], MEAN))


def test_nan_is_refused_with_the_path_of_its_variable(tmp_path):
    bad = arrays(1)
    bad[KERNEL][3, 4] = math.nan
    paths = orbax_files.write_each(tmp_path / "run", arrays(0), bad)
    with pytest.raises(ValueError, match="dense/kernel: it has NaN"):
        average_checkpoints(paths, tmp_path / "mean")


def test_a_step_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    paths = orbax_files.write_each(tmp_path / "run", arrays(0), arrays(1))

    def touch(done, total):
        orbax_files.change_json(
            paths[0] / "_CHECKPOINT_METADATA", metrics={"loss": 1}
        )

    progress.report_to(touch, monkeypatch)
    with pytest.raises(ValueError, match="changed while it was read"):
        average_checkpoints(paths, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_files_and_orbax_checkpoints_are_not_averaged_together(tmp_path):
    (path,) = orbax_files.write_each(tmp_path / "run", arrays(0))
    file = weights_files.write(
        tmp_path / "a.weights.h5", {"layers/dense/vars/0": numpy.ones(3)}
    )
    with pytest.raises(ValueError, match="all files or all Orbax"):
        average_checkpoints([file, path], tmp_path / "mean")


def test_a_file_is_not_written_without_a_config(tmp_path):
    (path,) = orbax_files.write_each(tmp_path / "run", arrays(0))
    with pytest.raises(ValueError, match="with weight 0"):
        average_checkpoints([path], tmp_path / "mean.weights.h5")
    assert names_in(tmp_path) == ["run"]


def test_steps_are_selected_by_number_metric_or_log(tmp_path):
    root = tmp_path / "run"
    for step, loss in enumerate([0.5, 0.3, 0.4]):
        orbax_files.write(
            root / str(step), arrays(step), metrics={"val_loss": loss}
        )
    selected = select_checkpoints(root, last=2)
    assert [path.name for path in selected] == ["1", "2"]
    selected = select_checkpoints(root, best=2)
    assert [path.name for path in selected] == ["1", "2"]
    log = tmp_path / "log.csv"
    log.write_text("epoch,val_loss\n0,0.1\n1,0.9\n2,0.2\n")
    selected = select_checkpoints(root, best=2, csv_log=log)
    assert [path.name for path in selected] == ["0", "2"]
    with pytest.raises(ValueError, match="has no accuracy"):
        select_checkpoints(root, best=1, monitor="accuracy")


def test_the_time_of_a_snapshot_is_the_step_of_the_optimizer(tmp_path):
    paths = [
        orbax_files.write(
            tmp_path / "run" / str(step),
            arrays(step) | {ITERATION: numpy.int32(step)},
            config=json.dumps(
                {"compile_config": {"optimizer": {"config": {}}}}
            ),
        )
        for step in (10, 20, 30)
    ]
    report = synthesize(
        paths, tmp_path / "mean", sigma_rel=0.2, max_residual=0.5
    )
    assert report.target.steps == 30
    assert names_in(tmp_path / "mean") == ["30"]


def test_a_greedy_soup_of_orbax_checkpoints(tmp_path):
    paths = [
        orbax_files.write(
            tmp_path / "run" / str(step),
            {KERNEL: numpy.full(SHAPE, value, "float32")},
        )
        for step, value in enumerate((1.0, 5.0, 9.0))
    ]

    def score(root):
        (step,) = root.iterdir()
        return abs(orbax_files.read(step)[KERNEL][0, 0] - 6.5)

    report = greedy_soup(paths, score, tmp_path / "soup", mode="min", verbose=0)
    assert [path.name for path in report.members] == ["1", "2"]
    got = orbax_files.read(tmp_path / "soup" / "2")
    assert (got[KERNEL] == 7).all()
    with pytest.raises(ValueError, match="must be a file"):
        greedy_soup(paths, score, tmp_path / "other", model=object())


def test_the_command_line_accepts_orbax_directories(tmp_path):
    root = tmp_path / "run"
    for step in (1, 2, 3):
        orbax_files.write(root / str(step), arrays(step))

    def run(*words):
        return CliRunner().invoke(app, list(map(str, words)))

    done = run("average", root, "--steps", "1,3", "-o", tmp_path / "mean")
    assert done.exit_code == 0, done.output
    expected = mean([arrays(1), arrays(3)], KERNEL)
    got = orbax_files.read(tmp_path / "mean" / "3")
    assert same(got[KERNEL], expected)
    done = run("average", root, "--last", "2", "-o", tmp_path / "mean")
    assert done.exit_code == 3
    assert "--overwrite" in done.output
    done = run("inspect", tmp_path / "mean")
    assert "unchanged since" in done.output
    assert run("diff", root / "3", root / "3").exit_code == 0
    done = run("average", root, "--steps", "x", "-o", tmp_path / "none")
    assert done.exit_code == 2


def test_an_error_names_tensorstore_to_install(tmp_path, monkeypatch):
    (path,) = orbax_files.write_each(tmp_path / "run", arrays(0))
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match=r"keras-wavg\[orbax\]"):
        average_checkpoints([path], tmp_path / "mean")
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert done.exit_code == 3
    assert "tensorstore" in done.output


def files_in(directory):
    """The bytes of each file but the metadata of the step."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "_CHECKPOINT_METADATA"
    }


@pytest.mark.parametrize("count", [2, 3, 8])
def test_several_processes_write_the_same_files_as_one(tmp_path, count):
    given = [arrays(k) | {ITERATION: numpy.int32(k)} for k in range(3)]
    paths = orbax_files.write_each(
        tmp_path / "run", *given, chunks={KERNEL: (2, 5)}
    )
    alone = average_checkpoints(paths, tmp_path / "one", optimizer="last")
    for number in reversed(range(count)):
        assert not (tmp_path / "many" / "2").exists()
        report = average_checkpoints(
            paths,
            tmp_path / "many",
            optimizer="last",
            process=(number, count),
        )
        assert bool(report.checksum) == (number == 0)
    assert report.checksum == alone.checksum
    assert report.sources == alone.sources
    assert names_in(tmp_path / "many") == ["2"]
    assert files_in(tmp_path / "many" / "2") == files_in(tmp_path / "one" / "2")


def test_a_process_can_be_repeated(tmp_path):
    paths = orbax_files.write_each(tmp_path / "run", arrays(0), arrays(1))
    average_checkpoints(paths, tmp_path / "mean", process=(0, 2))
    # An incomplete output is not a checkpoint. Other inputs are another run.
    with pytest.raises(ValueError, match=r"mean"):
        inspect_checkpoint(tmp_path / "mean")
    average_checkpoints(paths[:1], tmp_path / "mean", process=(1, 2))
    assert not (tmp_path / "mean" / "0").exists()
    average_checkpoints(paths, tmp_path / "mean", process=(0, 2))
    average_checkpoints(paths, tmp_path / "mean", process=(1, 2))
    got = orbax_files.read(tmp_path / "mean" / "1")
    assert same(got[KERNEL], mean([arrays(0), arrays(1)], KERNEL))
    with pytest.raises(FileExistsError):
        average_checkpoints(paths, tmp_path / "mean", process=(1, 2))


@pytest.mark.parametrize("process", [(2, 2), (-1, 2), 3, (0.5, 2), (0, 0)])
def test_an_invalid_process_is_refused(tmp_path, process):
    paths = orbax_files.write_each(tmp_path / "run", arrays(0))
    with pytest.raises(ValueError, match="`process"):
        average_checkpoints(paths, tmp_path / "mean", process=process)


def test_several_processes_do_not_average_files(tmp_path):
    file = weights_files.write(
        tmp_path / "a.weights.h5", {"layers/dense/vars/0": numpy.ones(3)}
    )
    with pytest.raises(ValueError, match="requires Orbax checkpoints"):
        average_checkpoints([file], tmp_path / "b.weights.h5", process=(0, 2))
