"""h5py reads the files that are written, and files of h5py are read."""

import h5py
import numpy
import pytest
from file_properties import (
    check_h5py_reads_what_is_written,
    check_what_h5py_writes_is_read,
    examples,
    structure_in,
    written,
)

from keras_wavg.files.hdf5.parser import parse_structure
from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.input_file import InputFile

test_h5py_reads_what_is_written = examples(check_h5py_reads_what_is_written)
test_what_h5py_writes_is_read = examples(check_what_h5py_writes_is_read)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 256, 257, 8192, 8193])
def test_h5py_finds_the_members_of_written_groups_of_every_size(
    count, tmp_path
):
    names = [str(number) for number in range(count)]
    arrays = {f"vars/{name}": Array("float32", (1,)) for name in names}
    groups = {"": {}, "vars": {"name": "ä"}}
    stored = written(tmp_path / "a.h5", Structure(groups, arrays))
    assert structure_in(tmp_path / "a.h5").arrays == stored.arrays
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file["vars"]) == sorted(names)
        for name in names[:: max(1, count // 99)]:
            offset = stored.arrays[f"vars/{name}"].offset
            assert file["vars"][name].id.get_offset() == offset


def test_h5py_can_change_a_written_file(tmp_path):
    groups = {"": {"text": "x" * 100_000}, "vars": {}}
    arrays = {f"vars/{n}": Array("float32", (3,)) for n in range(20)}
    written(tmp_path / "a.h5", Structure(groups, arrays))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        assert len(file.attrs["text"]) == 100_000
        file["vars/7"][:] = 7
        file["vars/new"] = numpy.arange(5)
        file["vars"].attrs["name"] = "later"
        del file["vars/3"]
    found = structure_in(tmp_path / "a.h5")
    assert found.groups["vars"] == {"name": "later"}
    assert found.arrays["vars/new"].dtype == "int64"
    assert "vars/3" not in found.arrays


@pytest.mark.parametrize("count", [9, 45, 46, 400, 1000])
def test_large_groups_with_names_beyond_ascii_are_read(count, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for number in range(count):
            file[f"größe_{number}/vars/0"] = numpy.full(2, number)
    with InputFile(path) as stored:
        found = parse_structure(stored)
        for number in range(count):
            array = found.arrays[f"größe_{number}/vars/0"]
            data = stored.read(array.offset, array.nbytes)
            assert numpy.frombuffer(data, "int64").tolist() == [number] * 2
    assert len(found.arrays) == count
