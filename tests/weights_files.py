"""Writes checkpoints like Keras, without a model, which is fast."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy

from keras_wavg import Profile

SUFFIXES = [".weights.h5", ".weights.json", ".keras"]
CONFIG = '{"class_name": "Sequential"}'
_MEMBER = "model.weights.h5"

Arrays = dict[str, numpy.ndarray]


def write(path: Path, arrays: Arrays) -> Path:
    """Write arrays, by their paths, in the format of the suffix."""
    if path.suffix == ".keras":
        _write_archive(path, arrays)
    elif path.suffix == ".json":
        _write_shards(path, arrays)
    else:
        _write_hdf5(path, arrays)
    return path


def write_each(directory: Path, *contents: Arrays) -> list[Path]:
    """Write a numbered `.weights.h5` for each of several contents."""
    return [
        write(directory / f"{number}.weights.h5", arrays)
        for number, arrays in enumerate(contents)
    ]


def write_snapshot(path: Path, arrays: Arrays, profile: Profile) -> Path:
    """Write a `.weights.h5` of an average with its profile."""
    write(path, arrays)
    with h5py.File(path, "a") as file:
        file.attrs["keras_wavg_profile"] = profile.to_json()
    return path


def read(path: Path) -> Arrays:
    """Read the arrays of a checkpoint, by their paths."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return _read_hdf5(io.BytesIO(archive.read(_MEMBER)))
    if path.suffix == ".json":
        found = {}
        for shard in shards_of(path):
            found |= _read_hdf5(shard)
        return found
    return _read_hdf5(path)


def shards_of(path: Path) -> list[Path]:
    """The shards that an index names."""
    weight_map = json.loads(path.read_text())["weight_map"]
    # A name, or a list of names. Versions of Keras differ.
    names = {
        name
        for found in weight_map.values()
        for name in ([found] if isinstance(found, str) else found)
    }
    return [path.with_name(name) for name in sorted(names)]


def equal(
    first: Sequence[numpy.ndarray], second: Sequence[numpy.ndarray]
) -> bool:
    """Return whether two lists of NumPy arrays are equal bit for bit."""
    return len(first) == len(second) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def _write_hdf5(target: Any, arrays: Arrays) -> None:
    with h5py.File(target, "w") as file:
        for name, array in arrays.items():
            parent = Path(name).parent
            group = file.require_group(str(parent))
            group.attrs["name"] = parent.parent.name or "model"
            dataset = group.create_dataset(Path(name).name, data=array)
            if array.dtype == ml_dtypes.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"


def _write_shards(path: Path, arrays: Arrays) -> None:
    """Write two shards if there are two arrays. A group may be in both."""
    names, base = list(arrays), path.name.removesuffix(".weights.json")
    half = -(-len(names) // 2)
    weight_map: dict[str, list[str]] = {}
    for number, start in enumerate(range(0, len(names), half)):
        shard = path.with_name(f"{base}_{number:05}.weights.h5")
        part = {name: arrays[name] for name in names[start : start + half]}
        _write_hdf5(shard, part)
        for group in dict.fromkeys(f"/{Path(name).parent}" for name in part):
            weight_map.setdefault(group, []).append(shard.name)
    total = float(sum(array.nbytes for array in arrays.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=4))


def _write_archive(path: Path, arrays: Arrays) -> None:
    weights = io.BytesIO()
    _write_hdf5(weights, arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", CONFIG)
        archive.writestr(_MEMBER, weights.getvalue())


def _read_hdf5(source: Any) -> Arrays:
    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            array = item[()]
            is_half = item.attrs.get("dtype") == "bfloat16"
            found[name] = array.view(ml_dtypes.bfloat16) if is_half else array

    with h5py.File(source) as file:
        file.visititems(visit)
    return found
