"""String attributes, whose values are stored in global heap collections."""

import functools
import itertools
import struct

from keras_wavg.files.hdf5 import datatypes
from keras_wavg.files.hdf5.bounded_reader import BoundedReader


class AttributeReader:
    """Reads attributes, and each collection of strings only once.

    Args:
        reader: A `BoundedReader`.
    """

    def __init__(self, reader: BoundedReader) -> None:
        self._reader = reader
        # A million attributes may refer to one string: they share one object.
        self._string = functools.cache(self._read_string)
        self._collection = functools.cache(self._read_collection)

    def read(self, message: bytes) -> tuple[str, str]:
        """Return the name and the value in an attribute message."""
        version, *sizes = self._reader.unpack_message("<Bx3H", message)
        starts = itertools.accumulate(map(up_to_8, sizes), initial=8)
        name, datatype, space, value = starts
        kind = message[datatype:space].rstrip(b"\0")
        if (
            version != 1
            or kind != datatypes.STRING.rstrip(b"\0")
            or message[space + 1 : space + 2] != b"\0"
        ):
            self._reader.refuse("an attribute is not a string")
        _, address, index = self._reader.unpack_message("<IQI", message[value:])
        text = message[name:datatype].rstrip(b"\0").decode("ascii", "replace")
        if not (text and text.isascii() and text.isprintable()):
            self._reader.refuse(
                "the name of an attribute is not printable ASCII"
            )
        return text, self._string(address, index)

    def _read_string(self, address: int, index: int) -> str:
        try:
            # Strings end at their first NUL, as in h5py.
            return self._collection(address)[index].split(b"\0")[0].decode()
        except (KeyError, UnicodeDecodeError):
            self._reader.refuse(
                "the value of an attribute is missing or not UTF-8"
            )

    def _read_collection(self, address: int) -> dict[int, bytes]:
        signature, version, size = self._reader.unpack("<4sB3xQ", address)
        if (signature, version) != (b"GCOL", 1):
            self._reader.refuse("the value of an attribute is missing")
        collection = self._reader.read(address, size)
        strings, start = {}, 16
        while start + 16 <= len(collection):
            index, length = struct.unpack_from("<H6xQ", collection, start)
            if not index:  # the free space at the end
                break
            strings[index] = collection[start + 16 : start + 16 + length]
            start += 16 + up_to_8(length)
            if start > size:
                self._reader.refuse("the value of an attribute is cut off")
        return strings


def up_to_8(size: int) -> int:
    """Round up to a multiple of eight.

    Example:

    >>> up_to_8(9)
    16
    """
    return -(-size // 8) * 8
