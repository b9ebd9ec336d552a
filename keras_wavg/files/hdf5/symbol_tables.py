"""Groups stored as symbol tables: names in a heap, addresses in a B-tree."""

import struct
from collections.abc import Iterator

from keras_wavg.files.hdf5.bounded_reader import BoundedReader

# Half of the maximum number of entries of a table, and of a node of the tree.
TABLE_RANK, TREE_RANK = 4, 16


def symbol_table_members(
    reader: BoundedReader, message: bytes
) -> Iterator[tuple[bytes, int]]:
    """Yield the name and the address of each object in a group.

    Args:
        reader: A `BoundedReader`.
        message: Bytes, the body of the symbol table message.
    """
    tree, heap = reader.unpack_message("<2Q", message)
    names = _read_heap(reader, heap)
    for table in _tables(reader, tree):
        for start, address in _entries(reader, table):
            end = names.find(b"\0", start)
            if end < 0:
                reader.refuse("a name in a group has no end")
            yield names[start:end], address


def _read_heap(reader: BoundedReader, address: int) -> bytes:
    reader.visit(address)
    signature, size, _, start = reader.unpack("<4s4x3Q", address)
    if signature != b"HEAP":
        reader.refuse("the names in a group are missing")
    return reader.read(start, size)


def _tables(
    reader: BoundedReader, address: int, expected: int | None = None
) -> Iterator[int]:
    reader.visit(address)
    signature, kind, level, used = reader.unpack("<4s2BH", address)
    if signature != b"TREE" or kind or expected not in (None, level):
        reader.refuse("the tree of a group is damaged")
    pairs = reader.read(address + 24, 16 * used)
    for _, child in struct.iter_unpack("<2Q", pairs):
        if level:
            yield from _tables(reader, child, level - 1)
        else:
            yield child


def _entries(reader: BoundedReader, address: int) -> Iterator[tuple[int, int]]:
    reader.visit(address)
    signature, version, used = reader.unpack("<4sBxH", address)
    if (signature, version) != (b"SNOD", 1):
        reader.refuse("the table of a group is damaged")
    entries = reader.read(address + 8, 40 * used)
    for start, child, kind in struct.iter_unpack("<2QI20x", entries):
        if kind not in (0, 1):
            reader.refuse("there is a link")
        yield start, child
