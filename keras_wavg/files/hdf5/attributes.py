"""Attributes that are strings, kept in collections elsewhere in the file."""

import functools
import itertools
import struct

from keras_wavg.files.hdf5 import datatypes
from keras_wavg.files.hdf5.window import Window


class AttributeReader:
    """Reads attributes, each collection of strings once.

    Args:
        window: A `Window`.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        # One string may be pointed to a million times: one object serves all.
        self._string = functools.cache(self._read_string)
        self._collection = functools.cache(self._read_collection)

    def read(self, message: bytes) -> tuple[str, str]:
        """Name and value in the message of an attribute."""
        version, *sizes = self._window.unpack_message("<Bx3H", message)
        padded = itertools.accumulate(map(up_to_8, sizes), initial=8)
        name, datatype, space, value = padded
        kind = message[datatype:space].rstrip(b"\0")
        if (
            version != 1
            or kind != datatypes.STRING.rstrip(b"\0")
            or message[space + 1 : space + 2] != b"\0"
        ):
            self._window.refuse("an attribute is not a string")
        _, address, index = self._window.unpack_message("<IQI", message[value:])
        text = message[name:datatype].rstrip(b"\0").decode("ascii", "replace")
        if not (text and text.isascii() and text.isprintable()):
            self._window.refuse("the name of an attribute is not a plain text")
        return text, self._string(address, index)

    def _read_string(self, address: int, index: int) -> str:
        try:
            # Strings end at their first NUL, as h5py reads them.
            return self._collection(address)[index].split(b"\0")[0].decode()
        except (KeyError, UnicodeDecodeError):
            self._window.refuse(
                "the text of an attribute is missing or no text"
            )

    def _read_collection(self, address: int) -> dict[int, bytes]:
        signature, version, size = self._window.unpack("<4sB3xQ", address)
        if (signature, version) != (b"GCOL", 1):
            self._window.refuse("the text of an attribute is missing")
        collection = self._window.read(address, size)
        strings, start = {}, 16
        while start + 16 <= len(collection):
            index, length = struct.unpack_from("<H6xQ", collection, start)
            if not index:  # the free space at the end
                break
            strings[index] = collection[start + 16 : start + 16 + length]
            start += 16 + up_to_8(length)
            if start > size:
                self._window.refuse("the text of an attribute is cut short")
        return strings


def up_to_8(size: int) -> int:
    """The next multiple of eight.

    Example:

    >>> up_to_8(9)
    16
    """
    return -(-size // 8) * 8
