"""What is written can be read by h5py, and what h5py writes can be read."""

import h5py
import hypothesis
import hypothesis.strategies as st
import numpy
import pytest

from keras_wavg.files.hdf5.reading import read_structure
from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.hdf5.writing import encode, place
from keras_wavg.files.source import Source

DTYPES = [
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
]


def written(path, structure):
    """The structure as a file of zeros, and where its arrays are."""
    placed, end = place(structure)
    head, tail = encode(placed, end)
    with path.open("wb") as file:
        file.write(head)
        file.seek(end)
        file.write(tail)
    return placed


def read(path):
    with Source(path) as source:
        return read_structure(source)


def where(structure):
    """The arrays; where they are counts only if there is something."""
    return {
        name: (array.dtype, array.shape, array.offset * bool(array.nbytes))
        for name, array in structure.arrays.items()
    }


NAMES = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"),
    min_size=1,
    max_size=8,
).filter(lambda name: name not in {".", ".."})
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
ARRAYS = st.builds(Array, st.sampled_from(DTYPES), SHAPES)
TREES = st.recursive(
    ARRAYS, lambda inner: st.dictionaries(NAMES, inner, max_size=20)
)


def flat(tree, path="", structure=None):
    structure = Structure() if structure is None else structure
    if isinstance(tree, Array):
        structure.arrays[path] = tree
        return structure
    structure.groups[path] = {"name": path} if path else {}
    for name, member in tree.items():
        flat(member, f"{path}/{name}" if path else name, structure)
    return structure


@hypothesis.given(st.dictionaries(NAMES, TREES, max_size=30))
@hypothesis.settings(deadline=None, max_examples=60)
def test_h5py_reads_what_is_written(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("hdf5") / "a.h5"
    structure = flat(tree)
    placed = written(path, structure)
    assert where(read(path)) == where(placed)
    assert dict(read(path).groups) == dict(structure.groups)
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(name))
        for name, array in structure.arrays.items():
            assert file[name].shape == array.shape
            assert file[name].dtype == array.dtype
            assert not file[name][()].any()
        for name, attributes in structure.groups.items():
            assert dict(file[name or "/"].attrs) == attributes
    both = [*structure.groups, *structure.arrays]
    assert sorted(found) == sorted(name for name in both if name)


@pytest.mark.parametrize("count", [0, 1, 8, 9, 256, 257, 8192, 8193])
def test_groups_of_every_size_are_written_as_trees_that_h5py_searches(
    count, tmp_path
):
    names = [str(number) for number in range(count)]
    arrays = {f"vars/{name}": Array("float32", (1,)) for name in names}
    groups = {"": {}, "vars": {"name": "ä"}}
    placed = written(tmp_path / "a.h5", Structure(groups, arrays))
    assert read(tmp_path / "a.h5").arrays == placed.arrays
    with h5py.File(tmp_path / "a.h5") as file:
        assert list(file["vars"]) == sorted(names)
        for name in names[:: max(1, count // 99)]:
            offset = placed.arrays[f"vars/{name}"].offset
            assert file["vars"][name].id.get_offset() == offset


def test_a_file_that_was_written_can_be_changed_by_h5py(tmp_path):
    groups = {"": {"text": "x" * 100_000}, "vars": {}}
    arrays = {f"vars/{n}": Array("float32", (3,)) for n in range(20)}
    written(tmp_path / "a.h5", Structure(groups, arrays))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        assert len(file.attrs["text"]) == 100_000
        file["vars/7"][:] = 7
        file["vars/new"] = numpy.arange(5)
        file["vars"].attrs["name"] = "later"
        del file["vars/3"]
    found = read(tmp_path / "a.h5")
    assert found.groups["vars"] == {"name": "later"}
    assert found.arrays["vars/new"].dtype == "int64"
    assert "vars/3" not in found.arrays


@hypothesis.given(
    st.dictionaries(
        NAMES, st.lists(NAMES, max_size=12, unique=True), max_size=8
    )
)
@hypothesis.settings(deadline=None, max_examples=40)
def test_what_h5py_writes_is_read(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("hdf5") / "a.h5"
    rng = numpy.random.default_rng(0)
    expected = {}
    with h5py.File(path, "w") as file:
        for group, names in tree.items():
            made = file.create_group(group)
            made.attrs["name"] = group
            for name in names:
                made[name] = rng.normal(size=3)
                expected[f"{group}/{name}"] = made[name][()].tobytes()
    with Source(path) as source:
        found = read_structure(source)
        for name, array in found.arrays.items():
            data = source.read(array.offset, array.nbytes)
            assert data == expected[name]
    assert found.arrays.keys() == expected.keys()
    assert found.groups.keys() == {"", *tree}
    assert all(found.groups[name] == {"name": name} for name in tree)


@pytest.mark.parametrize("count", [9, 45, 46, 400, 1000])
def test_large_groups_with_names_that_are_not_ascii_are_read(count, tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for number in range(count):
            file[f"größe_{number}/vars/0"] = numpy.full(2, number)
    with Source(path) as source:
        found = read_structure(source)
        for number in range(count):
            array = found.arrays[f"größe_{number}/vars/0"]
            data = source.read(array.offset, array.nbytes)
            assert numpy.frombuffer(data, "int64").tolist() == [number] * 2
    assert len(found.arrays) == count
