"""The groups and arrays of a file, and where their bytes are."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from keras_wavg.files.hdf5.datatypes import ITEM_SIZES

Attributes = Mapping[str, str]


@dataclass(frozen=True)
class Array:
    """Type, shape and location of an array.

    Args:
        dtype: String, the name of the type in Keras.
        shape: Tuple of integers.
        offset: Integer, the first byte of the array in its file. Unused if the
            array is stored in chunks.
        chunks: Tuple of integers, the shape of a chunk, or `None` if the array
            is not stored in chunks.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    chunks: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Size of an element in bytes."""
        return ITEM_SIZES[self.dtype]

    @functools.cached_property
    def nbytes(self) -> int:
        """Size of the array in bytes."""
        return self.count * self.itemsize


@dataclass(frozen=True)
class Structure:
    """A tree of groups and arrays, each with a path such as `a/vars/0`.

    Args:
        groups: Dict from the path of each group to its attributes, including
            the root, whose path is empty.
        arrays: Dict from the path of each array to its `Array`.
    """

    groups: dict[str, Attributes] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
