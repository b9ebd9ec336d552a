"""Reads the metadata of an HDF5 file within limits."""

import bisect
import functools
import struct
from typing import Any, NoReturn

from keras_wavg.files.input_file import InputFile

MAX_OBJECTS = 1_000_000
UNDEFINED = 2**64 - 1
"""The address that HDF5 uses for "none"."""

# A sparse file may declare names, strings or messages of gigabytes.
_MAX_READ = 1 << 24
_PAGE = 1 << 13


class BoundedReader:
    """Reads the metadata of an HDF5 file, each part only once.

    Args:
        file: An `InputFile`.
    """

    def __init__(self, file: InputFile) -> None:
        self.path = ""  # of the object that is being read, for errors
        self.size = file.size
        self._file = file
        self._visited: set[int] = {0}  # the superblock
        self._sorted: list[int] | None = None
        # Valid metadata lies in the file and is read once. Metadata that
        # refers to the same bytes again and again would never end.
        self._budget = 2 * file.size + (1 << 16)
        self._page = functools.lru_cache(maxsize=64)(self._read_page)

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`."""
        self.spend(size)
        if size > _MAX_READ:
            self.refuse("a part of its metadata is too long")
        number, start = divmod(offset, _PAGE)
        if start + size <= _PAGE and offset + size <= self.size:
            return self._page(number)[start : start + size]
        return self._file.read(offset, size)

    def spend(self, size: int) -> None:
        """Count bytes that are read, and refuse metadata that never ends."""
        self._budget -= size
        if self._budget < 0:
            self.refuse("its metadata does not end")

    def unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        """Unpack values from `offset`. See `struct` for the layout."""
        return struct.unpack(layout, self.read(offset, struct.calcsize(layout)))

    def unpack_message(self, layout: str, message: bytes) -> tuple[Any, ...]:
        """Unpack values from the start of a message."""
        if len(message) < struct.calcsize(layout):
            self.refuse("a message in a header is cut off")
        return struct.unpack_from(layout, message)

    def has_metadata_in(self, start: int, end: int) -> bool:
        """Return whether metadata that was read starts in a range of bytes."""
        if self._sorted is None:
            self._sorted = sorted(self._visited)
        index = bisect.bisect_left(self._sorted, start)
        return index < len(self._sorted) and self._sorted[index] < end

    def visit(self, address: int) -> None:
        """Mark an address as read. Refuse it if it was: an alias or a cycle."""
        if address in self._visited:
            self.refuse("an object is reachable by two paths, or in a cycle")
        if len(self._visited) >= 8 * MAX_OBJECTS:
            self.refuse(f"there are more than {MAX_OBJECTS} objects")
        self._visited.add(address)

    def refuse(self, why: str) -> NoReturn:
        """Raise the error that names the file and the path inside it."""
        self._file.refuse(why, self.path)

    def _read_page(self, number: int) -> bytes:
        start = number * _PAGE
        return self._file.read(start, min(_PAGE, self.size - start))
