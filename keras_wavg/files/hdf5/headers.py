"""Object headers: the messages that describe an object."""

from collections.abc import Iterator

from keras_wavg.files.hdf5.bounded_reader import BoundedReader

DATASPACE, DATATYPE, LAYOUT, ATTRIBUTE, SYMBOL_TABLE = 1, 3, 8, 12, 17
FILL, CONTINUATION = 5, 16
LINK_INFO, LINK, GROUP_INFO = 2, 6, 10

# Padding (0), fill values (4 and 5), size estimates (10), and the time of the
# last change (14 and 18), which earlier versions of h5py wrote.
_IGNORED = {0, 4, FILL, GROUP_INFO, 14, 18}
_KNOWN = {DATASPACE, DATATYPE, LAYOUT, ATTRIBUTE, CONTINUATION}
_KNOWN |= {SYMBOL_TABLE, LINK_INFO, LINK}
_REFUSED = {
    7: "an array in an external file",
    11: "a compressed array. Load the file into the model and save it again",
}
_SHARED = 2
# `libhdf5` stores at most 64 KiB of attributes in a header.
_MAX_HEADER = 1 << 20

Message = tuple[int, bytes]
"""The type of a message, and its body."""


def messages(reader: BoundedReader, address: int) -> list[Message]:
    """Return the messages of the object at an address."""
    version, zero, _, _, size = reader.unpack("<2BH2I", address)
    if (version, zero) != (1, 0):
        reader.refuse("an object is missing, or not as Keras writes it")
    found: list[Message] = []
    blocks = [(address + 16, size)]
    total = 0
    for start, length in blocks:
        total += length
        if total > _MAX_HEADER:
            reader.refuse("the header of an object is too long")
        for kind, body in _messages_in(reader, reader.read(start, length)):
            if kind == CONTINUATION:
                next_start, next_length = reader.unpack_message("<2Q", body)
                reader.visit(next_start)
                blocks.append((next_start, next_length))
            else:
                found.append((kind, body))
    return found


def _messages_in(reader: BoundedReader, block: bytes) -> Iterator[Message]:
    start = 0
    while start < len(block):
        kind, size, flags = reader.unpack_message(
            "<2HB", block[start : start + 8]
        )
        end = start + 8 + size
        if kind in _REFUSED:
            reader.refuse(f"there is {_REFUSED[kind]}")
        if kind not in _KNOWN | _IGNORED or flags & _SHARED or end > len(block):
            reader.refuse("the header of an object is not as Keras writes it")
        if kind in _KNOWN:
            yield kind, block[start + 8 : end]
        start = end
