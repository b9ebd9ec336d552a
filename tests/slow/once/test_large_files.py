"""Averages of thousands of files or variables."""

import h5py
import numpy
import weights_files

from keras_wavg import average_checkpoints


def test_a_thousand_files(tmp_path):
    values = numpy.arange(1000.0)
    contents = ({"vars/0": numpy.full(3, value)} for value in values)
    paths = weights_files.write_each(tmp_path, *contents)
    average_checkpoints(paths, tmp_path / "mean.weights.h5")
    got = weights_files.read(tmp_path / "mean.weights.h5")
    assert got["vars/0"].tolist() == [values.mean()] * 3


def test_a_hundred_thousand_variables(tmp_path):
    rows = numpy.random.default_rng(0).normal(size=(100_000, 2))
    path = tmp_path / "0.weights.h5"
    pair, everything = h5py.h5s.create_simple((2,)), h5py.h5s.ALL
    with h5py.File(path, "w") as file:
        for start in range(0, len(rows), 1000):
            group = file.create_group(f"layers/block_{start}/vars").id
            for key in range(1000):
                name, kind = str(key).encode(), h5py.h5t.IEEE_F64LE
                dataset = h5py.h5d.create(group, name, kind, pair)
                dataset.write(everything, everything, rows[start + key])
    report = average_checkpoints([path, path], tmp_path / "mean.weights.h5")
    assert len(report.averaged) == 100_000
    with h5py.File(tmp_path / "mean.weights.h5") as file:
        for index in range(0, 100_000, 997):
            start, key = index // 1000 * 1000, index % 1000
            got = file[f"layers/block_{start}/vars/{key}"][()]
            assert got.tolist() == rows[index].tolist()
