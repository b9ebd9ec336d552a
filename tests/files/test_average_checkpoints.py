"""Averages of saved weights follow the definition.

Tests with Keras are in `test_keras.py`.
"""

import itertools
import json
import os
import subprocess
import sys
import zipfile

import h5py
import numpy
import progress
import pytest
import reference
import weights_files
from file_properties import (
    FLOATS,
    averaged,
    check_the_mean_is_as_defined,
    check_the_mean_of_copies_is_the_original,
    check_the_order_of_the_files_does_not_matter,
    examples,
)
from weights_files import SUFFIXES, equal, write_each

from keras_wavg import average_checkpoints, inspect_checkpoint
from keras_wavg.files import streaming

test_the_mean_is_as_defined = examples(check_the_mean_is_as_defined)
test_the_order_of_the_files_does_not_matter = examples(
    check_the_order_of_the_files_does_not_matter
)
test_the_mean_of_copies_is_the_original = examples(
    check_the_mean_of_copies_is_the_original
)


def some_layers(seed):
    """The arrays of a small model and of its optimizer."""
    rng = numpy.random.default_rng(seed)
    shapes = {"dense": [(4, 6), (6,)], "dense_1": [(6, 1), (1,)]}
    return {
        f"layers/{layer}/vars/{index}": rng.normal(size=shape).astype("float32")
        for layer, both in shapes.items()
        for index, shape in enumerate(both)
    } | {"optimizer/vars/0": numpy.int32(seed)}


def mean_of(contents):
    """The mean of the weights, rounded once."""
    names = [name for name in contents[0] if not name.startswith("optimizer")]
    samples = [[content[name] for name in names] for content in contents]
    means = [mean.astype("float32") for mean in reference.mean(samples)]
    return dict(zip(names, means, strict=True))


@pytest.mark.parametrize(
    ("suffix", "target"),
    [
        *itertools.product([*SUFFIXES, "mixed"], SUFFIXES[:2]),
        # A `.keras` output needs the config of a `.keras` file.
        *((suffix, ".keras") for suffix in (".keras", "mixed")),
    ],
)
def test_files_of_every_format_are_averaged_into_every_format(
    suffix, target, tmp_path
):
    suffixes = SUFFIXES if suffix == "mixed" else [suffix] * 3
    contents = [some_layers(seed) for seed in range(3)]
    paths = [
        weights_files.write(tmp_path / f"{number}{suffixes[number]}", content)
        for number, content in enumerate(contents)
    ]
    output = tmp_path / f"mean{target}"
    report = average_checkpoints(paths, output)
    got, expected = weights_files.read(output), mean_of(contents)
    assert got.keys() == expected.keys() == set(report.averaged)
    assert equal([got[name] for name in expected], list(expected.values()))
    if target == ".keras":
        with zipfile.ZipFile(output) as archive:
            assert archive.read("config.json").decode() == weights_files.CONFIG


def test_a_group_in_two_shards_is_found_in_both(tmp_path):
    content = {f"a/vars/{n}": numpy.full(3, n, "float32") for n in range(4)}
    path = weights_files.write(tmp_path / "0.weights.json", content)
    assert len(weights_files.shards_of(path)) == 2
    average_checkpoints([path, path], tmp_path / "mean.weights.h5")
    got = weights_files.read(tmp_path / "mean.weights.h5")
    assert equal(list(got.values()), list(content.values()))


def test_the_optimizer_is_dropped_or_copied_from_the_last_file(tmp_path):
    paths = write_each(tmp_path, some_layers(1), some_layers(2))
    output = tmp_path / "mean.weights.h5"
    report = average_checkpoints(paths, output)
    assert report.dropped == {"optimizer/vars/0": "optimizer"}
    assert "optimizer/vars/0" not in weights_files.read(output)
    average_checkpoints(paths, output, optimizer="last", overwrite=True)
    assert weights_files.read(output)["optimizer/vars/0"] == 2


def test_integers_must_be_equal_or_are_copied_from_the_last_file(tmp_path):
    table = "layers/normalization/vars/2"
    paths = write_each(
        tmp_path,
        *(some_layers(0) | {table: numpy.int32([n, 7])} for n in (1, 2)),
    )
    output = tmp_path / "mean.weights.h5"
    with pytest.raises(ValueError, match=r"Integer .*vars/2.*strict=False"):
        average_checkpoints(paths, output)
    report = average_checkpoints(paths, output, strict=False)
    assert "integers that differ" in report.copied.values()
    assert weights_files.read(output)[table].tolist() == [2, 7]


def test_the_order_of_the_files_does_not_matter_to_a_rounded_sum(
    tmp_path,
):
    # Next to 2**70, 1 is lost even in extended precision, unless it is last.
    contents = [
        {"vars/0": numpy.full(3, x)} for x in (2.0**70, -(2.0**70), 1.0)
    ]
    paths = weights_files.write_each(tmp_path, *contents)
    results = []
    for number, order in enumerate(itertools.permutations(paths)):
        output = tmp_path / f"mean{number}.weights.h5"
        average_checkpoints(order, output)
        results.append(weights_files.read(output)["vars/0"].tolist())
    assert results == [results[0]] * 6


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_single_weight_that_is_not_zero_selects_that_file(dtype, tmp_path):
    rng = numpy.random.default_rng(0)
    contents = [
        {"vars/0": rng.normal(size=1000).astype(dtype)} for _ in range(3)
    ]
    contents[0]["vars/0"][0] = -0.0
    contents[1]["vars/0"][1] = numpy.nan  # has weight 0
    got = averaged(tmp_path, *contents, weights=[1, 0, 0])
    assert equal(got.values(), contents[0].values())


def test_weights_are_not_scaled_without_normalize(tmp_path):
    one, two = {"vars/0": numpy.full(3, 5.0)}, {"vars/0": numpy.full(3, 2.0)}
    got = averaged(tmp_path, one, two, weights=[1, -1], normalize=False)
    assert got["vars/0"].tolist() == [3, 3, 3]
    got = averaged(tmp_path, one, two, weights=[3, -1])
    assert got["vars/0"].tolist() == [6.5, 6.5, 6.5]


def test_sums_may_exceed_the_range_of_float32(tmp_path):
    huge = {"vars/0": numpy.full(3, 3e38, "float32")}
    assert equal(averaged(tmp_path, huge, huge, huge).values(), huge.values())


def test_a_mean_out_of_range_is_refused(tmp_path):
    huge = {"vars/0": numpy.full(3, 3e38, "float32")}
    with pytest.raises(ValueError, match=r"range of its type.*vars/0"):
        averaged(tmp_path, huge, weights=[2], normalize=False)


def test_variables_that_differ_are_refused_or_copied_from_the_last_file(
    tmp_path,
):
    base = {"a/vars/0": numpy.ones(4), "head/vars/0": numpy.ones((4, 2))}
    last = {
        "a/vars/0": numpy.zeros(4),
        "head/vars/0": numpy.zeros((4, 3)),
        "new/vars/0": numpy.ones(1),
    }
    old = base | {"old/vars/0": numpy.ones(1)}
    with pytest.raises(ValueError, match="strict=False") as error:
        averaged(tmp_path, old, base, last)
    for text in ("0.weights.h5", "2.weights.h5", "(4, 2) against", "only in"):
        assert text in str(error.value)
    got = averaged(tmp_path, old, base, last, strict=False)
    assert set(got) == set(last)
    assert got["a/vars/0"].tolist() == [2 / 3] * 4
    assert equal([got["head/vars/0"]], [last["head/vars/0"]])


def test_the_output_contains_the_report(tmp_path):
    rng = numpy.random.default_rng(0)
    contents = [{"vars/0": rng.normal(size=5)} for _ in range(2)]
    paths = write_each(tmp_path, *contents)
    output = tmp_path / "mean.weights.h5"
    report = average_checkpoints(paths, output, weights=[1, 3])
    with h5py.File(output) as file:
        saved = json.loads(file.attrs["keras_wavg"])
    assert [s["coefficient"] for s in saved["sources"]] == [0.25, 0.75]
    assert [s["path"] for s in saved["sources"]] == [str(p) for p in paths]
    for source, path in zip(report.sources, paths, strict=True):
        assert source.checksum == inspect_checkpoint(path).checksum
    assert report.checksum == inspect_checkpoint(output).checksum
    assert report.checksum == saved["checksum"]
    assert "0.25" in str(report)
    assert report.averaged == ("vars/0",)


def test_layers_in_another_order_are_noted(tmp_path):
    paths = write_each(
        tmp_path,
        *[{"a/vars/0": numpy.ones(2), "b/vars/0": numpy.ones(2)}] * 2,
    )
    for path, names in zip(paths, ("xy", "yx"), strict=True):
        with h5py.File(path, "a") as file:
            file["a/vars"].attrs["name"] = names[0]
            file["b/vars"].attrs["name"] = names[1]
    report = average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert ["in another order" in note for note in report.notes] == [True]


def test_progress_is_reported(tmp_path, monkeypatch):
    seen = []
    content = {f"{n}/vars/0": numpy.ones(100_000) for n in range(5)}
    paths = write_each(tmp_path, content, content)
    progress.report_to(lambda *done: seen.append(done), monkeypatch)
    average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert seen == sorted(seen)
    assert seen[-1] == (8_000_000, 8_000_000)


def test_an_error_stops_all_threads_and_nothing_is_written(
    tmp_path, monkeypatch
):
    content = {f"{n:02}/vars/0": numpy.ones(140_000) for n in range(20)}
    paths = write_each(tmp_path, content, content)
    calls = []

    def interrupt(done, total):
        calls.append(done)
        raise KeyboardInterrupt

    progress.report_to(interrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert len(calls) <= os.cpu_count()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0.weights.h5",
        "1.weights.h5",
    ]


# Invalid arguments


BAD = {
    "no paths": ({"filepaths": []}, "at least one checkpoint"),
    "one path": ({"filepaths": "a.weights.h5"}, "must be a list"),
    "bad suffix": ({"output_filepath": "mean.h5"}, "must end in '.weights.h5'"),
    "other count": ({"weights": [1]}, "1 numbers for 2 checkpoints"),
    "sum of zero": ({"weights": [1, -1]}, "must not sum to zero"),
    "cancelling": (
        {"weights": [1e10, 2 - 1e10]},
        "must not cancel one another",
    ),
    "all zero": (
        {"weights": [0, 0], "normalize": False},
        "must not all be zero",
    ),
    "NaN": ({"weights": [1, float("nan")]}, "finite numbers"),
    "beyond float64": ({"weights": [10**400, 1]}, "finite numbers"),
    "text": ({"weights": [1, "2"]}, "finite numbers"),
    "optimizer": ({"optimizer": "first"}, "'drop' or 'last'"),
    "no optimizer": ({"optimizer": "last"}, "which has none"),
    "no config": ({"output_filepath": "mean.keras"}, "config of the model"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_invalid_argument_is_refused_and_nothing_is_written(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    content = {"vars/0": numpy.ones(3)}
    paths = write_each(tmp_path, content, content)
    changed, message = BAD[name]
    arguments = {"filepaths": paths, "output_filepath": "mean.weights.h5"}
    with pytest.raises(ValueError, match=message):
        average_checkpoints(**arguments | changed)
    assert sorted(tmp_path.iterdir()) == paths


def test_a_file_is_overwritten_only_on_request(tmp_path):
    paths = write_each(tmp_path, {"vars/0": numpy.ones(3)})
    for output in ("mean.weights.h5", "mean.weights.json"):
        average_checkpoints(paths, tmp_path / output)
        with pytest.raises(FileExistsError, match="overwrite=True"):
            average_checkpoints(paths, tmp_path / output)
        average_checkpoints(paths, tmp_path / output, overwrite=True)
    (tmp_path / "mean.weights.json").unlink()
    with pytest.raises(FileExistsError, match="mean_00000"):
        average_checkpoints(paths, tmp_path / "mean.weights.json")


def test_an_input_is_never_overwritten(tmp_path):
    paths = write_each(tmp_path, {"vars/0": numpy.ones(3)})
    (tmp_path / "link.weights.h5").symlink_to(paths[0])
    for output in (paths[0], tmp_path / "link.weights.h5"):
        with pytest.raises(ValueError, match="may be one of"):
            average_checkpoints(paths, output, overwrite=True)


@pytest.mark.parametrize("name", ["run", "link"])
def test_an_input_is_never_replaced_by_a_shard(name, tmp_path):
    content = {"vars/0": numpy.ones(3)}
    (tmp_path / "elsewhere").mkdir()
    paths = [
        weights_files.write(
            tmp_path / "elsewhere" / f"run_0000{number}.weights.h5", content
        )
        for number in range(2)
    ]
    before = [path.read_bytes() for path in paths]
    (tmp_path / "link.weights.json").symlink_to("elsewhere/run.weights.json")
    outputs = {
        "run": tmp_path / "elsewhere" / "run.weights.json",
        "link": tmp_path / "link.weights.json",
    }
    with pytest.raises(ValueError, match=r"nor one of its shards.*run_0000\d"):
        average_checkpoints(paths, outputs[name], overwrite=True)
    assert [path.read_bytes() for path in paths] == before


def test_a_shard_at_the_target_of_a_link_is_overwritten_only_on_request(
    tmp_path,
):
    (path,) = write_each(tmp_path, {"vars/0": numpy.ones(3)})
    (tmp_path / "elsewhere").mkdir()
    output = tmp_path / "link.weights.json"
    output.symlink_to("elsewhere/run.weights.json")
    (tmp_path / "elsewhere" / "run_00000.weights.h5").touch()
    with pytest.raises(FileExistsError, match="run_00000"):
        average_checkpoints([path], output)
    average_checkpoints([path], output, overwrite=True)
    assert inspect_checkpoint(tmp_path / "elsewhere" / "run.weights.json")


def test_a_missing_directory_is_reported(tmp_path):
    paths = write_each(tmp_path, {"vars/0": numpy.ones(3)})
    with pytest.raises(FileNotFoundError, match="directory of `output"):
        average_checkpoints(paths, tmp_path / "no" / "mean.weights.h5")


def test_neither_keras_nor_h5py_is_imported(tmp_path):
    paths = write_each(tmp_path, {"vars/0": numpy.ones(3)})
    code = (
        "import sys, keras_wavg; keras_wavg.average_checkpoints("
        f"[{str(paths[0])!r}], {str(tmp_path / 'mean.weights.h5')!r}); "
        "print({'keras', 'h5py', 'jax', 'tensorflow', 'torch', 'rich'}"
        " & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "weights",
    [[1e-310, 3e-310], [1e300, 3e300], [1e308, 9e307], [3, -1, 2], [1e-9, 1e9]],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mean_of_copies_is_exact_for_any_weights(weights, dtype, tmp_path):
    rng = numpy.random.default_rng(0)
    powers = 10.0 ** rng.integers(-30, 30, 2000)
    arrays = {"a/vars/0": (rng.normal(size=2000) * powers).astype(dtype)}
    path = weights_files.write(tmp_path / "a.weights.h5", arrays)
    output = tmp_path / "mean.weights.h5"
    average_checkpoints([path] * len(weights), output, weights=weights)
    mean = weights_files.read(output)
    assert weights_files.equal([*mean.values()], [*arrays.values()])


def test_a_file_that_appears_during_averaging_is_not_replaced(
    tmp_path, monkeypatch
):
    arrays = {"a/vars/0": numpy.ones(3, "float32")}
    paths = weights_files.write_each(tmp_path, arrays, arrays)
    output = tmp_path / "mean.weights.h5"

    def appear(done, total):
        output.write_bytes(b"precious")

    progress.report_to(appear, monkeypatch)
    with pytest.raises(FileExistsError, match="another process has"):
        average_checkpoints(paths, output)
    assert output.read_bytes() == b"precious"


def test_weights_that_cancel_are_refused_unless_normalize_is_false(tmp_path):
    arrays = {"a/vars/0": numpy.ones(3, "float32")}
    paths = weights_files.write_each(tmp_path, *[arrays] * 3)
    output, weights = tmp_path / "mean.weights.h5", [1e16, 1, -1e16]
    with pytest.raises(ValueError, match="must not cancel one another"):
        average_checkpoints(paths, output, weights=weights)
    average_checkpoints(paths, output, weights=weights, normalize=False)
    assert output.exists()


@pytest.mark.parametrize(
    "include", ["^encoder/", lambda path: path.startswith("encoder")]
)
def test_excluded_variables_are_copied_from_the_last_file(include, tmp_path):
    """Even if they differ in shape, or are missing in some files."""
    contents = [
        {
            "encoder/vars/0": numpy.full((2, 2), value, "float32"),
            "head/vars/0": numpy.full(size, value, "float32"),
        }
        for value, size in ((1.0, 3), (3.0, 5))
    ]
    contents[0]["old/vars/0"] = numpy.ones(1, "float32")
    paths = weights_files.write_each(tmp_path, *contents)
    output = tmp_path / "mean.weights.h5"
    report = average_checkpoints(paths, output, include=include)
    made = weights_files.read(output)
    assert made["encoder/vars/0"].tolist() == [[2.0, 2.0]] * 2
    assert made["head/vars/0"].tolist() == [3.0] * 5
    assert report.averaged == ("encoder/vars/0",)
    assert report.copied == {"head/vars/0": "not in `include`"}
    with pytest.raises(ValueError, match="must match the path of at least one"):
        average_checkpoints(paths, output, include="decoder", overwrite=True)
    with pytest.raises(ValueError, match="valid regular expression"):
        average_checkpoints(paths, output, include="(", overwrite=True)


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    arrays = {"optimizer/vars/0": numpy.array(3)}
    path = weights_files.write(tmp_path / "empty.weights.h5", arrays)
    with pytest.raises(ValueError, match=r"one weight.*empty\.weights"):
        average_checkpoints([path], tmp_path / "mean.weights.h5")


def test_attributes_end_at_their_first_nul(tmp_path):
    arrays = {"a/vars/0": numpy.ones(1, "float32")}
    path = weights_files.write(tmp_path / "a.weights.h5", arrays)
    with h5py.File(path, "a") as file:
        file["a"].attrs["name"] = "dense_7"
    path.write_bytes(path.read_bytes().replace(b"dense_7", b"dense\0x"))
    average_checkpoints([path], tmp_path / "mean.weights.h5")
    for written in (path, tmp_path / "mean.weights.h5"):
        with h5py.File(written) as file:
            assert file["a"].attrs["name"] == "dense"


def test_task_arithmetic_equals_that_of_numpy(tmp_path):
    """`base + sum(scale * (tuned - base))`."""
    rng = numpy.random.default_rng(0)
    base, *tuned = rng.normal(size=(3, 50, 20)).astype("float32")
    contents = [{"a/vars/0": array} for array in (*tuned, base)]
    paths = weights_files.write_each(tmp_path, *contents)
    scales = 0.4, -0.3
    output = tmp_path / "sum.weights.h5"
    average_checkpoints(
        paths, output, weights=[*scales, 1 - sum(scales)], normalize=False
    )
    expected = base.astype("float64")
    for scale, array in zip(scales, tuned, strict=True):
        expected = expected + scale * (array.astype("float64") - base)
    received = weights_files.read(output)["a/vars/0"]
    assert received == pytest.approx(expected.astype("float32"), rel=1e-6)


def test_an_error_without_threads_names_the_output(tmp_path, monkeypatch):
    arrays = {"a/vars/0": numpy.ones(3, "float32")}
    paths = weights_files.write_each(tmp_path, arrays, arrays)

    def submit(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(streaming.ThreadPoolExecutor, "submit", submit)
    with pytest.raises(OSError, match=r"No thread .*mean\.weights\.h5"):
        average_checkpoints(paths, tmp_path / "mean.weights.h5")
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("layers/norm/vars/3", [numpy.int64(7), numpy.int64(9)]),
        ("layers/dropout/seed_generator/vars/0", [[1, 2], [1, 3]]),
        ("layers/flip/generator/vars/0", [[1, 2], [1, 3]]),
    ],
    ids=["count", "dropout", "augmentation"],
)
def test_counts_and_seeds_are_copied_from_the_last_file(path, values, tmp_path):
    contents = [
        {
            "layers/dense/vars/0": numpy.full(2, number, "float32"),
            path: numpy.asarray(value, "uint32"),
        }
        for number, value in enumerate(values)
    ]
    paths = weights_files.write_each(tmp_path, *contents)
    output = tmp_path / "mean.weights.h5"
    report = average_checkpoints(paths, output)
    assert report.copied == {path: "integers that differ"}
    made = weights_files.read(output)
    assert made[path].tolist() == numpy.asarray(values[1]).tolist()
    assert made["layers/dense/vars/0"].tolist() == [0.5, 0.5]
