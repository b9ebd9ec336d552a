"""Small arrays concatenated into one flat array.

The cost of updating many small weights is proportional to the number of arrays
passed to the update. Therefore, the averages of small weights are kept packed.
Large weights are not, because packing copies them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras

SMALL = 16_384
"""The maximum size of an array that is packed: 64 KiB of float32."""


@dataclass(frozen=True)
class Packing:
    """Packs the small arrays of a list and unpacks them.

    Args:
        shapes: Tuple of the arrays' shapes.
        packable: Tuple of booleans, whether each array may be packed.
    """

    shapes: tuple[tuple[int, ...], ...]
    packable: tuple[bool, ...]

    @cached_property
    def small(self) -> list[int]:
        """Indices of the arrays that are packed."""
        return [
            index
            for index, shape in enumerate(self.shapes)
            if self.packable[index] and math.prod(shape) <= SMALL
        ]

    @cached_property
    def large(self) -> list[int]:
        """Indices of the arrays that are not packed."""
        return sorted(set(range(len(self.shapes))) - set(self.small))

    def pack(self, arrays: Sequence[Any]) -> list[Any]:
        """The small arrays as one flat array, followed by the large ones."""
        flat = [keras.ops.reshape(arrays[i], (-1,)) for i in self.small]
        packed = [keras.ops.concatenate(flat)] if flat else []
        return packed + [arrays[i] for i in self.large]

    def unpack(self, packed: Sequence[Any]) -> list[Any]:
        """The arrays passed to `pack`, in their original order and shapes."""
        arrays = dict(zip(reversed(self.large), reversed(packed), strict=False))
        end = 0
        for i in self.small:
            start, end = end, end + math.prod(self.shapes[i])
            arrays[i] = keras.ops.reshape(packed[0][start:end], self.shapes[i])
        return [arrays[i] for i in range(len(self.shapes))]
