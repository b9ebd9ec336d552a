"""Groups of the old kind: names in a heap, addresses in a B-tree of tables."""

import struct
from collections.abc import Iterator

from keras_wavg.files.hdf5.window import Window

# How many children a table and a node of the tree have at most, halved.
TABLE_RANK, TREE_RANK = 4, 16


def members(window: Window, message: bytes) -> Iterator[tuple[bytes, int]]:
    """The names in a group and the addresses of their objects."""
    tree, heap = window.unpack_message("<2Q", message)
    names = _heap(window, heap)
    for table in _tables(window, tree):
        for start, address in _entries(window, table):
            end = names.find(b"\0", start)
            if end < 0:
                window.refuse("a name in a group has no end")
            yield names[start:end], address


def _heap(window: Window, address: int) -> bytes:
    window.visit(address)
    signature, size, _, start = window.unpack("<4s4x3Q", address)
    if signature != b"HEAP":
        window.refuse("the names in a group are missing")
    return window.read(start, size)


def _tables(
    window: Window, address: int, expected: int | None = None
) -> Iterator[int]:
    window.visit(address)
    signature, kind, level, used = window.unpack("<4s2BH", address)
    if signature != b"TREE" or kind or expected not in (None, level):
        window.refuse("the tree of a group is damaged")
    pairs = window.read(address + 24, 16 * used)
    for _, child in struct.iter_unpack("<2Q", pairs):
        if level:
            yield from _tables(window, child, level - 1)
        else:
            yield child


def _entries(window: Window, address: int) -> Iterator[tuple[int, int]]:
    window.visit(address)
    signature, version, used = window.unpack("<4sBxH", address)
    if (signature, version) != (b"SNOD", 1):
        window.refuse("the table of a group is damaged")
    entries = window.read(address + 8, 40 * used)
    for start, place, kind in struct.iter_unpack("<2QI20x", entries):
        if kind not in (0, 1):
            window.refuse("there is a link")
        yield start, place
