"""What the parts of the reader share: the bytes, the place, the limits."""

import bisect
import functools
import struct
from typing import Any, NoReturn

from keras_wavg.files.source import Source

MAX_OBJECTS = 1_000_000
# Names, texts or messages in one piece: a sparse file may promise gigabytes.
_MAX_PIECE = 1 << 24
UNDEFINED = 2**64 - 1
"""An address of nothing."""

_PAGE = 1 << 13


class Window:
    """The structure of a file, byte by byte, each but once.

    Args:
        source: A `Source`.
    """

    def __init__(self, source: Source) -> None:
        self.path = ""
        self.size = source.size
        self._source = source
        self._visited: set[int] = {0}  # the superblock
        self._sorted: list[int] | None = None
        # A sound structure is read once and lies in the file. One that points
        # to the same bytes over and over would never come to an end.
        self._left = 2 * source.size + (1 << 16)
        self._page = functools.lru_cache(maxsize=64)(self._read_page)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file."""
        self.spend(size)
        if size > _MAX_PIECE:
            self.refuse("a part of its structure is too long")
        number, start = divmod(offset, _PAGE)
        if start + size <= _PAGE and offset + size <= self.size:
            return self._page(number)[start : start + size]
        return self._source.read(offset, size)

    def spend(self, size: int) -> None:
        """Refuse a structure that is longer than the file."""
        self._left -= size
        if self._left < 0:
            self.refuse("its structure does not come to an end")

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        """Values of the file, see `struct`."""
        return struct.unpack(layout, self.read(offset, struct.calcsize(layout)))

    def unpack_message(self, layout: str, message: bytes) -> tuple[Any, ...]:
        """Values from the beginning of a message."""
        if len(message) < struct.calcsize(layout):
            self.refuse("a message in a header is cut off")
        return struct.unpack_from(layout, message)

    def is_within(self, start: int, end: int) -> bool:
        """Whether some of the structure that was read begins in a range."""
        if self._sorted is None:
            self._sorted = sorted(self._visited)
        place = bisect.bisect_left(self._sorted, start)
        return place < len(self._sorted) and self._sorted[place] < end

    def visit(self, address: int) -> None:
        """Refuse what has been read already: an alias, or a circle."""
        if address in self._visited:
            self.refuse("something is reachable by two paths, or in a cycle")
        if len(self._visited) >= 8 * MAX_OBJECTS:
            self.refuse(f"there are more than {MAX_OBJECTS} objects")
        self._visited.add(address)

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that names the file and the path inside."""
        self._source.refuse(why, self.path)

    def _read_page(self, number: int) -> bytes:
        start = number * _PAGE
        return self._source.read(start, min(_PAGE, self.size - start))
