"""Reusable buffers: allocating memory for each block is slow."""

import contextlib
import errno
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy

from keras_wavg.files.floats import Numbers
from keras_wavg.files.streaming import Block

_LARGE_BLOCK, _MAX_LARGE_BLOCKS = 16 << 20, 2  # bytes, number


class Buffers:
    """Memory for the work on one block, reused for the next block."""

    def __init__(self) -> None:
        self._arrays: dict[Any, Numbers] = {}

    def bytes(self, size: int) -> Numbers:
        """Return the array of `uint8`, with the values of its last use."""
        return self.array("bytes", "uint8", size)

    def array(self, use: str, dtype: Any, count: int) -> Numbers:
        """Return the array for a use, with the values of its last use.

        Args:
            use: String, such as `"sum"`. Each use has its own array.
            dtype: Type of the elements.
            count: Integer, the number of elements.
        """
        key = use, dtype
        if key not in self._arrays or len(self._arrays[key]) < count:
            self._arrays.pop(key, None)  # Free it before the larger one exists.
            self._arrays[key] = _allocate(count, dtype)
        return self._arrays[key][:count]


def _allocate(count: int, dtype: Any) -> Numbers:
    try:
        return numpy.empty(count, dtype)
    except (MemoryError, ValueError) as error:
        raise OSError(
            errno.ENOMEM, f"Not enough memory for a chunk of {count} elements"
        ) from error


class BufferPool:
    """`Buffers` for each thread, and two more for large blocks.

    At most two large blocks are worked on at a time.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._large: SimpleQueue[Buffers] = SimpleQueue()
        for _ in range(_MAX_LARGE_BLOCKS):
            self._large.put(Buffers())

    @contextlib.contextmanager
    def buffers_for(self, block: Block) -> Iterator[Buffers]:
        """Context with the `Buffers` for the work on a block."""
        if block.nbytes > _LARGE_BLOCK:
            buffers = self._large.get()
            try:
                yield buffers
            finally:
                self._large.put(buffers)
            return
        if not hasattr(self._local, "buffers"):
            self._local.buffers = Buffers()
        yield self._local.buffers
