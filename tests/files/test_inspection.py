"""The contents of a checkpoint, and the difference between two."""

import hashlib
import json
import math

import h5py
import numpy
import pytest
import weights_files

from keras_wavg import (
    average_checkpoints,
    diff_checkpoints,
    inspect_checkpoint,
)
from keras_wavg.files.streaming import BLOCK


@pytest.fixture
def paths(tmp_path):
    rng = numpy.random.default_rng(0)
    return [
        weights_files.write(
            tmp_path / f"{number}.weights.h5",
            {
                "a/vars/0": rng.normal(size=(300, 1000)).astype("float32"),
                "a/vars/1": numpy.zeros(3, "float32"),
                "b/vars/0": numpy.int32(7),
            },
        )
        for number in range(2)
    ]


def test_the_variables_of_a_model_are_listed(models, tmp_path):
    model = models.fresh()
    path = tmp_path / "a.weights.h5"
    model.save_weights(path)
    found = inspect_checkpoint(path)
    weights = [a for p, a in found.arrays.items() if p.startswith("layers")]
    assert [a.shape for a in weights] == [w.shape for w in model.weights]
    assert "optimizer/vars/1" in found.arrays
    assert found.provenance is None
    text = str(found)
    assert "layers/dense/vars/0" in text
    assert "(4, 6)" in text
    assert "weights: 4 variables, 37 numbers, 148 bytes" in text


def test_the_checksum_depends_only_on_the_weights_not_on_the_format(tmp_path):
    arrays = {
        "layers/dense/vars/0": numpy.ones((4, 6), "float32"),
        "layers/dense/vars/1": numpy.zeros(6, "float32"),
    }
    found = [
        inspect_checkpoint(
            weights_files.write(tmp_path / f"a{suffix}", arrays)
        ).checksum
        for suffix in weights_files.SUFFIXES
    ]
    assert len(set(found)) == 1
    arrays["layers/dense/vars/1"][5] = 1e-9
    path = weights_files.write(tmp_path / "b.weights.h5", arrays)
    assert inspect_checkpoint(path).checksum != found[0]


def test_the_checksum_depends_on_names_shapes_and_dtypes(tmp_path):
    zeros = numpy.zeros((2, 3), "float32")
    contents = [
        {"a/vars/0": zeros},
        {"b/vars/0": zeros},
        {"a/vars/0": zeros.T},
        {"a/vars/0": zeros.view("int32")},
    ]
    paths = weights_files.write_each(tmp_path, *contents)
    checksums = {inspect_checkpoint(path).checksum for path in paths}
    assert len(checksums) == 4


def test_a_change_after_averaging_is_detected(paths, tmp_path):
    mean = tmp_path / "mean.weights.h5"
    average_checkpoints(paths, mean)
    assert "weights: unchanged since" in str(inspect_checkpoint(mean))
    with h5py.File(mean, "a") as file:
        file["a/vars/0"][7, 7] += 1
    assert "weights: CHANGED SINCE" in str(inspect_checkpoint(mean))


@pytest.mark.parametrize("swapped", [(0, 1), (4, 299)])
def test_a_change_of_order_is_detected(swapped, paths, tmp_path):
    """Of two rows in one block, and in two blocks."""
    mean = tmp_path / "mean.weights.h5"
    average_checkpoints(paths, mean)
    with h5py.File(mean, "a") as file:
        kernel = file["a/vars/0"][()]
        kernel[[*swapped]] = kernel[[*reversed(swapped)]]
        file["a/vars/0"][()] = kernel
    assert "weights: CHANGED SINCE" in str(inspect_checkpoint(mean))


def test_a_checksum_of_an_earlier_version_is_reported_as_such(paths, tmp_path):
    """It was the SHA-256 of sums of words, which do not depend on order."""
    mean = tmp_path / "mean.weights.h5"
    average_checkpoints(paths, mean)
    kernel = weights_files.read(mean)["a/vars/0"]
    words = numpy.zeros(4, "<u8")
    flat = kernel.reshape(-1).view("<u8")
    half = BLOCK // 2
    words[:2] = [flat[:half].sum(), flat[half:].sum()]
    words[3] = 7
    kinds = [
        ["a/vars/0", "float32", [300, 1000]],
        ["a/vars/1", "float32", [3]],
        ["b/vars/0", "int32", []],
    ]
    earlier = hashlib.sha256(json.dumps(kinds).encode() + words.tobytes())
    with h5py.File(mean, "a") as file:
        saved = json.loads(file.attrs["keras_wavg"])
        saved["checksum"] = earlier.hexdigest()
        file.attrs["keras_wavg"] = json.dumps(saved)
    assert "unchanged since, or reordered" in str(inspect_checkpoint(mean))
    with h5py.File(mean, "a") as file:
        file["a/vars/1"][0] = 1
    assert "weights: CHANGED SINCE" in str(inspect_checkpoint(mean))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"sources": 1}',
        '{"sources": [{}]}',
        '{"sources": []}',
        '{"sources": [], "checksum": ' + "[" * 10**5,
        "null",
    ],
)
def test_invalid_provenance_is_ignored(text, paths):
    with h5py.File(paths[0], "a") as file:
        file.attrs["keras_wavg"] = text
    found = inspect_checkpoint(paths[0])
    assert found.provenance is None
    assert str(found)


def test_distances_follow_the_definition(paths):
    found = diff_checkpoints(*paths)
    one, two = (weights_files.read(path)["a/vars/0"] for path in paths)
    apart = (one.astype("float64") - two).ravel()
    distance = found.distances["a/vars/0"]
    norm = numpy.linalg.norm(one.astype("float64"))
    assert distance.euclidean == pytest.approx(numpy.linalg.norm(apart))
    assert distance.relative == pytest.approx(numpy.linalg.norm(apart) / norm)
    assert distance.largest == numpy.abs(apart).max()
    assert found.distances["b/vars/0"].euclidean == 0
    assert not found.weights_equal


def test_a_file_equals_itself(paths):
    found = diff_checkpoints(paths[0], paths[0])
    assert found.weights_equal
    assert "the weights are equal" in str(found)


def test_the_relative_distance_to_zeros_is_infinite(tmp_path, paths):
    other = weights_files.read(paths[0])
    other["a/vars/1"][0] = 1
    path = weights_files.write(tmp_path / "other.weights.h5", other)
    assert diff_checkpoints(paths[0], path).distances["a/vars/1"].relative == (
        math.inf
    )


def test_variables_that_do_not_match_are_named(tmp_path, paths):
    other = weights_files.read(paths[0])
    other["a/vars/1"] = numpy.zeros(4, "float32")
    del other["b/vars/0"]
    path = weights_files.write(tmp_path / "other.weights.h5", other)
    found = diff_checkpoints(paths[0], path)
    assert list(found.mismatches) == ["a/vars/1", "b/vars/0"]
    assert not found.weights_equal
    assert f"b/vars/0: only in {paths[0]}" in str(found)


def test_nan_is_a_difference(tmp_path, paths):
    other = weights_files.read(paths[0])
    other["a/vars/1"][0] = numpy.nan
    path = weights_files.write(tmp_path / "other.weights.h5", other)
    assert not diff_checkpoints(paths[0], path).weights_equal


def test_differences_are_shown_with_layer_names(tmp_path):
    """If the name is not part of the path."""
    arrays = {"layers/dense/vars/0": numpy.ones(3, "float32")}
    paths = weights_files.write_each(tmp_path, arrays, arrays)
    for path in paths:
        with h5py.File(path, "a") as file:
            file["layers/dense/vars"].attrs["name"] = "encoder_out"
    assert "layers/dense/vars/0 (encoder_out)" in str(diff_checkpoints(*paths))


def test_reports_have_a_repr_of_one_line(paths, tmp_path):
    mean = tmp_path / "mean.weights.h5"
    report = average_checkpoints(paths, mean)
    found, difference = inspect_checkpoint(mean), diff_checkpoints(*paths)
    assert repr(report).startswith(f"AverageReport(output={str(mean)!r}, ")
    assert "sources=2, averaged=2, copied=1, dropped=0" in repr(report)
    assert repr(found).startswith(f"Inspection(path={str(mean)!r}, variables=3")
    assert "is_unchanged=True" in repr(found)
    assert repr(difference) == (
        "Difference(weights_equal=False, compared=3, mismatches=0)"
    )


def test_a_progress_bar_is_shown_on_request(paths, capsys):
    for verbose, is_shown in ((1, True), (0, False), ("auto", False)):
        inspect_checkpoint(paths[0], verbose=verbose)
        assert ("reading" in capsys.readouterr().err) == is_shown
    with pytest.raises(ValueError, match="`verbose` must be 'auto', 0 or 1"):
        inspect_checkpoint(paths[0], verbose="yes")
