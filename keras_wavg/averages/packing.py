"""Small arrays side by side in one flat array.

What an update of many small weights costs is the number of arrays it is called
with. The averages of small weights are therefore kept packed; a large one is
kept as it is, because packing copies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import keras

SMALL = 16_384
"""The largest number of elements that is packed: 64 KiB of float32."""


@dataclass(frozen=True)
class Packing:
    """Which arrays of a list are packed, and how to get them back.

    Args:
        shapes: Tuple of the arrays' shapes.
        packable: Tuple of booleans: whether an array may be packed.
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
        """Indices of the arrays that are left as they are."""
        return sorted(set(range(len(self.shapes))) - set(self.small))

    def pack(self, arrays: Sequence[Any]) -> list[Any]:
        """The small arrays as one flat array, followed by the large ones."""
        flat = [keras.ops.reshape(arrays[i], (-1,)) for i in self.small]
        packed = [keras.ops.concatenate(flat)] if flat else []
        return packed + [arrays[i] for i in self.large]

    def unpack(self, packed: Sequence[Any]) -> list[Any]:
        """The arrays that `pack` was given, in their order and shapes."""
        arrays = dict(zip(reversed(self.large), reversed(packed), strict=False))
        end = 0
        for i in self.small:
            begin, end = end, end + math.prod(self.shapes[i])
            arrays[i] = keras.ops.reshape(packed[0][begin:end], self.shapes[i])
        return [arrays[i] for i in range(len(self.shapes))]
