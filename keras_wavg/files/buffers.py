"""Memory to be used again and again: new memory is slow."""

import contextlib
import errno
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import numpy

from keras_wavg.files.floats import Numbers
from keras_wavg.files.streaming import Block

_LARGE, _MOST_LARGE = 16 << 20, 2


class Buffers:
    """Memory for one block, which may be written over by the next use."""

    def __init__(self) -> None:
        self._kept: dict[Any, Numbers] = {}

    def bytes(self, size: int) -> Numbers:
        """An array of `uint8`, always the same one."""
        return self.array("bytes", "uint8", size)

    def array(self, use: str, dtype: Any, count: int) -> Numbers:
        """An array for some use, always the same one."""
        key = use, dtype
        if key not in self._kept or len(self._kept[key]) < count:
            self._kept.pop(key, None)  # It is let go before there is more.
            self._kept[key] = _memory(count, dtype)
        return self._kept[key][:count]


def _memory(count: int, dtype: Any) -> Numbers:
    try:
        return numpy.empty(count, dtype)
    except (MemoryError, ValueError) as error:
        raise OSError(
            errno.ENOMEM, f"There is no memory for a chunk of {count} numbers"
        ) from error


class BufferPool:
    """`Buffers` for each thread, and two for large blocks.

    So no more than two large blocks are worked on at a time.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._large: SimpleQueue[Buffers] = SimpleQueue()
        for _ in range(_MOST_LARGE):
            self._large.put(Buffers())

    @contextlib.contextmanager
    def of(self, block: Block) -> Iterator[Buffers]:
        """Context with the `Buffers` for a block."""
        if block.nbytes > _LARGE:
            buffers = self._large.get()
            try:
                yield buffers
            finally:
                self._large.put(buffers)
            return
        if not hasattr(self._own, "buffers"):
            self._own.buffers = Buffers()
        yield self._own.buffers
