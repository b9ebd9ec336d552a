"""A sum of blocks, in a type that is wide enough for it."""

from typing import Any

import numpy

from keras_wavg.files import floats
from keras_wavg.files.buffers import Buffers
from keras_wavg.files.streaming import BLOCK


class Total:
    """A sum of blocks of numbers.

    A block is worked on in pieces that stay in the cache of the processor.

    Args:
        count: Integer, how many numbers a block has.
        dtype: String, the type in which they are stored. One of
            `keras_wavg.files.floats.FLOATS`.
        buffers: `Buffers`.
    """

    def __init__(self, count: int, dtype: str, buffers: Buffers) -> None:
        self._dtype = dtype
        self._kind = floats.accumulator(dtype)
        self._sum = buffers.array("sum", self._kind, count)
        self._product = buffers.array("product", self._kind, min(count, BLOCK))
        self._pieces = [
            slice(start, min(start + BLOCK, count))
            for start in range(0, count, BLOCK)
        ]
        self._is_empty = True

    @numpy.errstate(
        invalid="ignore", over="ignore"
    )  # It is refused in the end.
    def add(self, data: floats.Numbers, factor: float) -> None:
        """Add `factor` times a block.

        Args:
            data: Array of `uint8`, the block as it is stored.
            factor: Float.
        """
        stored = data.reshape(len(self._sum), -1)
        for piece in self._pieces:
            values = floats.decode(stored[piece].reshape(-1), self._dtype)
            total = self._sum[piece]
            if self._is_empty:
                numpy.multiply(values, factor, out=total, dtype=self._kind)
                continue
            if factor != 1:
                product = self._product[: len(total)]
                values = numpy.multiply(
                    values, factor, out=product, dtype=self._kind
                )
            numpy.add(total, values, out=total)
        self._is_empty = False

    @numpy.errstate(invalid="ignore", over="ignore")
    def divide_into(self, made: floats.Numbers, divisor: Any) -> bool:
        """Write the sum, divided, as it is stored.

        Args:
            made: Array of `uint8`, to be written over.
            divisor: `numpy.longdouble`.

        Returns:
            Boolean, whether all numbers are finite.
        """
        stored = made.reshape(len(self._sum), -1)
        is_finite = True
        for piece in self._pieces:
            total = self._sum[piece]
            total /= self._kind(divisor)
            encoded = floats.encode(total, self._dtype)
            is_finite &= floats.is_finite(encoded, self._dtype)
            stored[piece] = encoded.reshape(len(total), -1)
        return is_finite
