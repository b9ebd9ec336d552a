"""What is in a file: groups, arrays and where their bytes are."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from keras_wavg.files.hdf5.datatypes import ITEM_SIZES

Attributes = Mapping[str, str]


@dataclass(frozen=True)
class Array:
    """An array of numbers.

    Args:
        dtype: String, its name as in Keras.
        shape: Tuple of integers.
        offset: Integer, the byte of the file at which it begins, where it is
            stored as a whole.
        chunks: Tuple of integers, the shape of the chunks that it is stored
            in, or `None`.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    chunks: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """How many bytes a number takes."""
        return ITEM_SIZES[self.dtype]

    @functools.cached_property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return self.count * self.itemsize


@dataclass(frozen=True)
class Structure:
    """A tree of groups and arrays, each by its path, such as `a/vars/0`.

    Args:
        groups: Dict from the path of each group to its attributes. The root,
            whose path is empty, is one.
        arrays: Dict from the path of each array to an `Array`.
    """

    groups: dict[str, Attributes] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
