"""The weighted sum of blocks, in a type of sufficient precision."""

from typing import Any

import numpy

from keras_wavg.files import floats
from keras_wavg.files.buffers import Buffers
from keras_wavg.files.streaming import BLOCK


class BlockSum:
    """A weighted sum of blocks.

    A large block is processed in pieces that fit into the processor's cache.

    Args:
        count: Integer, the number of elements of a block.
        dtype: String, the type in which the elements are stored, one of
            `keras_wavg.files.floats.FLOATS`.
        buffers: The `Buffers` for the block.
    """

    def __init__(self, count: int, dtype: str, buffers: Buffers) -> None:
        self._dtype = dtype
        self._accumulator = floats.accumulator(dtype)
        self._sum = buffers.array("sum", self._accumulator, count)
        self._product = buffers.array(
            "product", self._accumulator, min(count, BLOCK)
        )
        self._pieces = [
            slice(start, min(start + BLOCK, count))
            for start in range(0, count, BLOCK)
        ]
        self._is_empty = True

    # Sums that are not finite are refused by the caller of `divide_into`.
    @numpy.errstate(invalid="ignore", over="ignore")
    def add(self, data: floats.Numbers, coefficient: float) -> None:
        """Add a block, multiplied by a coefficient.

        Args:
            data: Array of `uint8`, the stored bytes of the block.
            coefficient: Float.
        """
        stored = data.reshape(len(self._sum), -1)
        dtype = self._accumulator
        for piece in self._pieces:
            values = floats.decode(stored[piece].reshape(-1), self._dtype)
            total = self._sum[piece]
            if self._is_empty:
                numpy.multiply(values, coefficient, out=total, dtype=dtype)
                continue
            if coefficient != 1:
                product = self._product[: len(total)]
                values = numpy.multiply(
                    values, coefficient, out=product, dtype=dtype
                )
            numpy.add(total, values, out=total)
        self._is_empty = False

    @numpy.errstate(invalid="ignore", over="ignore")
    def divide_into(self, output: floats.Numbers, denominator: Any) -> bool:
        """Write the sum divided by a denominator.

        Args:
            output: Array of `uint8`, filled with the bytes to store.
            denominator: `numpy.longdouble`.

        Returns:
            Boolean, whether all elements are finite.
        """
        stored = output.reshape(len(self._sum), -1)
        is_finite = True
        for piece in self._pieces:
            total = self._sum[piece]
            total /= self._accumulator(denominator)
            encoded = floats.encode(total, self._dtype)
            is_finite &= floats.is_finite(encoded, self._dtype)
            stored[piece] = encoded.reshape(len(total), -1)
        return is_finite
