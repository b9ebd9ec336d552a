"""Weights files as Keras writes them, without a model: quick to make."""

from pathlib import Path

import h5py
import ml_dtypes
import numpy


def write(path: Path, arrays: dict[str, numpy.ndarray]) -> Path:
    """A `.weights.h5` with arrays, by their paths."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            group = file.require_group(str(Path(name).parent))
            dataset = group.create_dataset(Path(name).name, data=array)
            if array.dtype == ml_dtypes.bfloat16:
                dataset.attrs["dtype"] = "bfloat16"
    return path


def read(path: Path) -> dict[str, numpy.ndarray]:
    """The arrays of a `.weights.h5`, by their paths."""
    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            array = item[()]
            is_half = item.attrs.get("dtype") == "bfloat16"
            found[name] = array.view(ml_dtypes.bfloat16) if is_half else array

    with h5py.File(path) as file:
        file.visititems(visit)
    return found
