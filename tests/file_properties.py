"""Properties of all files, checked by hypothesis with few or many examples.

`tests/files` tests each property with the default profile, `tests/slow/once`
with the profile `many`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import ml_dtypes
import numpy
import reference
import weights_files

from keras_wavg import average_checkpoints
from keras_wavg.files.hdf5.encoder import assign_offsets, encode_metadata
from keras_wavg.files.hdf5.parser import parse_structure
from keras_wavg.files.hdf5.structure import Array, Structure
from keras_wavg.files.input_file import InputFile

FLOATS = ["float32", "float16", "float64", ml_dtypes.bfloat16]
NUMBERS = [
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
]


def examples(
    check: Callable[..., None], profile: str | None = None
) -> Callable[..., None]:
    """A test of a property, with the number of examples of a profile."""
    test = hypothesis.given(**STRATEGIES[check])(check)
    return hypothesis.settings.get_profile(profile)(test) if profile else test


# Averages


@st.composite
def some_weights(draw, most=5):
    """Arrays of the same shapes and types in several files."""
    count = draw(st.integers(1, most))
    contents = [{} for _ in range(count)]
    for number in range(draw(st.integers(1, 4))):
        dtype = numpy.dtype(draw(st.sampled_from(FLOATS)))
        shape = draw(arrays_of.array_shapes(min_dims=0, max_side=5, min_side=0))
        small = st.floats(-1e4, 1e4, width=16)
        for content in contents:
            values = draw(arrays_of.arrays("float64", shape, elements=small))
            content[f"layers/é{number}/vars/0"] = values.astype(dtype)
    return contents


@st.composite
def some_finite_values(draw):
    """40 finite elements of a floating-point type, from random bits."""
    dtype = numpy.dtype(draw(st.sampled_from(FLOATS)))
    bits = draw(arrays_of.arrays(f"uint{8 * dtype.itemsize}", 40))
    values = bits.view(dtype)
    values[~numpy.isfinite(values.astype("float64"))] = 0
    return values


def averaged(directory: Path, *contents: Any, **options: Any) -> Any:
    """The averaged arrays."""
    paths = weights_files.write_each(directory, *contents)
    output = directory / "mean.weights.h5"
    average_checkpoints(paths, output, overwrite=True, **options)
    return weights_files.read(output)


def check_the_mean_is_as_defined(tmp_path_factory, contents, data):
    directory = tmp_path_factory.mktemp("files")
    weight = st.floats(0.1, 10)
    weights = [data.draw(weight) for _ in contents]
    got = averaged(directory, *contents, weights=weights)
    samples = [list(content.values()) for content in contents]
    expected = reference.weighted_mean(samples, weights)
    for name, exact in zip(contents[0], expected, strict=True):
        like = contents[0][name]
        assert got[name].dtype == like.dtype
        assert got[name].shape == like.shape
        eps = float(ml_dtypes.finfo(like.dtype).eps)
        scale = max(
            numpy.abs(c[name].astype("float64")).max(initial=0)
            for c in contents
        )
        error = numpy.abs(got[name].astype("float64") - exact)
        assert error.max(initial=0) <= (0.51 * eps + 1e-15) * scale + 1e-7 * (
            like.dtype == "float16"
        )


def check_the_order_of_the_files_does_not_matter(
    tmp_path_factory, contents, random
):
    directory = tmp_path_factory.mktemp("files")
    paths = weights_files.write_each(directory, *contents)
    weights = [random.uniform(0.1, 1) for _ in paths]
    pairs = list(zip(paths, weights, strict=True))
    results = []
    for number in range(2):
        output = directory / f"mean{number}.weights.h5"
        chosen, shuffled = zip(*pairs, strict=True)
        average_checkpoints(chosen, output, weights=shuffled)
        results.append(weights_files.read(output))
        random.shuffle(pairs)
    assert list(results[0]) == list(results[1])
    assert weights_files.equal(*(list(found.values()) for found in results))


def check_the_mean_of_copies_is_the_original(tmp_path_factory, values, count):
    directory = tmp_path_factory.mktemp("files")
    content = {"vars/0": values}
    got = averaged(directory, *[content] * count)
    assert weights_files.equal([got["vars/0"]], [values])


# HDF5


NAMES = st.text(
    st.characters(categories=["L", "N", "P", "S"], exclude_characters="/"),
    min_size=1,
    max_size=8,
).filter(lambda name: name not in {".", ".."})


@st.composite
def structures(draw):
    """Nested groups of arrays.

    Hypothesis draws the names and the number of objects. A random generator
    draws their groups: Hypothesis would take longer for these than the test.
    """
    names = draw(st.lists(NAMES, min_size=1, max_size=30, unique=True))
    rng = numpy.random.default_rng(draw(st.integers(0, 2**32)))
    structure = Structure({"": {}}, {})
    for _ in range(draw(st.integers(0, 300))):
        # Half of them in the root, whose tree then has several nodes.
        groups = list(structure.groups)
        above = groups[rng.integers(len(groups)) * rng.integers(2)]
        number = rng.integers(60)
        name = names[rng.integers(len(names))] + f"{number or ''}"
        path = f"{above}/{name}" if above else name
        if path in structure.groups or path in structure.arrays:
            continue
        if rng.integers(3):
            shape = tuple(rng.integers(0, 5, size=rng.integers(5)).tolist())
            structure.arrays[path] = Array(str(rng.choice(NUMBERS)), shape)
        else:
            structure.groups[path] = {"name": path}
    return structure


def written(path: Path, structure: Structure) -> Structure:
    """Write the structure as a file of zeros, and return it with offsets."""
    stored_structure, end = assign_offsets(structure)
    head, tail = encode_metadata(stored_structure, end)
    with path.open("wb") as file:
        file.write(head)
        file.seek(end)
        file.write(tail)
    return stored_structure


def structure_in(path: Path) -> Structure:
    """The structure of a file."""
    with InputFile(path) as file:
        return parse_structure(file)


def _arrays_of(structure: Structure) -> Any:
    """The arrays, ignoring the offsets of empty ones."""
    return {
        name: (array.dtype, array.shape, array.offset * bool(array.nbytes))
        for name, array in structure.arrays.items()
    }


def check_h5py_reads_what_is_written(tmp_path_factory, structure):
    path = tmp_path_factory.mktemp("hdf5") / "a.h5"
    stored_structure = written(path, structure)
    read = structure_in(path)
    assert _arrays_of(read) == _arrays_of(stored_structure)
    assert dict(read.groups) == dict(structure.groups)
    found = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.append(name))
        for name, array in structure.arrays.items():
            dataset = file[name]
            assert dataset.shape == array.shape
            assert dataset.dtype == array.dtype
            assert not dataset[()].any()
        for name, attributes in structure.groups.items():
            assert dict(file[name or "/"].attrs) == attributes
    both = [*structure.groups, *structure.arrays]
    assert sorted(found) == sorted(name for name in both if name)


def check_what_h5py_writes_is_read(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("hdf5") / "a.h5"
    rng = numpy.random.default_rng(0)
    expected = {}
    with h5py.File(path, "w") as file:
        for group, names in tree.items():
            created = file.create_group(group)
            created.attrs["name"] = group
            for name in names:
                created[name] = rng.normal(size=3)
                expected[f"{group}/{name}"] = created[name][()].tobytes()
    with InputFile(path) as stored:
        found = parse_structure(stored)
        for name, array in found.arrays.items():
            data = stored.read(array.offset, array.nbytes)
            assert data == expected[name]
    assert found.arrays.keys() == expected.keys()
    assert found.groups.keys() == {"", *tree}
    assert all(found.groups[name] == {"name": name} for name in tree)


STRATEGIES = {
    check_the_mean_is_as_defined: {
        "contents": some_weights(),
        "data": st.data(),
    },
    check_the_order_of_the_files_does_not_matter: {
        "contents": some_weights(),
        "random": st.randoms(),
    },
    check_the_mean_of_copies_is_the_original: {
        "values": some_finite_values(),
        "count": st.integers(1, 12),
    },
    check_h5py_reads_what_is_written: {"structure": structures()},
    check_what_h5py_writes_is_read: {
        "tree": st.dictionaries(
            NAMES, st.lists(NAMES, max_size=12, unique=True), max_size=8
        )
    },
}
"""Dict from each property to the strategies of its arguments."""
