"""Large groups of the newer kind: links in a fractal heap, found by a B-tree.

HDF5 makes one where more than eight members have a name among them that is not
ASCII: a model with a layer of a class named `Größe`, say.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from keras_wavg.files.hdf5.window import UNDEFINED, Window

_LINK_NAMES = 5  # the type of a tree that finds links by the hash of a name
_RECORD, _HASH, _ID = 11, 4, 7  # bytes
_MOST = 64  # columns, and rows, each of which doubles the size of a block


def link_messages(window: Window, heap: int, tree: int) -> Iterator[bytes]:
    """The messages of the links in a group.

    Args:
        window: A `Window`.
        heap: Integer, the address of the heap.
        tree: Integer, the address of the tree.
    """
    links = _heap(window, heap)
    for place in _places(window, tree):
        if place[0]:
            window.refuse("a link is not in the heap of its group")
        start = int.from_bytes(place[1:5], "little")
        yield links.read(start, int.from_bytes(place[5:7], "little"))


@dataclass(frozen=True)
class _Block:
    start: int
    address: int
    size: int


@dataclass(frozen=True)
class _Heap:
    window: Window
    blocks: list[_Block]

    def read(self, start: int, size: int) -> bytes:
        for block in self.blocks:
            place = start - block.start
            if 0 <= place <= block.size - size:
                break
        else:
            self.window.refuse("a link is not in the heap of its group")
        return self.window.read(block.address + place, size)


def _heap(window: Window, address: int) -> _Heap:
    window.visit(address)
    signature, version, id_size, filters = window.unpack("<4sB2H", address)
    width, first, largest, bits = window.unpack("<H2QH", address + 110)
    root, rows = window.unpack("<QH", address + 132)
    if (signature, version, id_size, filters) != (b"FRHP", 0, _ID, 0) or (
        bits != 32  # noqa: PLR2004
    ):
        window.refuse("the links of a group are not as Keras writes them")
    if not rows:
        return _Heap(window, [_block(window, root, 0, first)])
    if not first or max(width, rows) > _MOST:
        window.refuse("a group has too many members")
    sizes = [first * 2 ** max(0, row - 1) for row in range(rows)]
    if sizes[-1] > largest:
        window.refuse("a group has too many members")
    signature, _, _, start = window.unpack("<4sBQI", root)
    if signature != b"FHIB" or start:
        window.refuse("the links of a group are damaged")
    blocks, entry = [], root + 17
    for size in (size for size in sizes for _ in range(width)):
        (place,) = window.unpack("<Q", entry)
        if place != UNDEFINED:
            blocks.append(_block(window, place, start, size))
        start += size
        entry += 8
    return _Heap(window, blocks)


def _block(window: Window, address: int, start: int, size: int) -> _Block:
    window.visit(address)
    signature, _, _, own = window.unpack("<4sBQI", address)
    if (signature, own) != (b"FHDB", start):
        window.refuse("the links of a group are damaged")
    return _Block(start, address, size)


def _places(window: Window, address: int) -> Iterator[bytes]:
    """Where in the heap each link is."""
    window.visit(address)
    header = window.unpack("<4s2B4x2H", address)
    root, used = window.unpack("<QH", address + 16)
    *versions, depth = header
    if versions != [b"BTHD", 0, _LINK_NAMES, _RECORD] or depth > 1:
        window.refuse("a group has too many members with names not in ASCII")
    if not depth:
        yield from _records(window, root, b"BTLF", used)
        return
    yield from _records(window, root, b"BTIN", used)
    children = root + 6 + _RECORD * used
    for number in range(used + 1):
        child, count = window.unpack("<QB", children + 9 * number)
        yield from _records(window, child, b"BTLF", count)


def _records(
    window: Window, address: int, expected: bytes, used: int
) -> Iterator[bytes]:
    if not used:
        return
    window.visit(address)
    signature, _, kind = window.unpack("<4s2B", address)
    if (signature, kind) != (expected, _LINK_NAMES):
        window.refuse("the links of a group are damaged")
    records = window.read(address + 6, _RECORD * used)
    for start in range(0, len(records), _RECORD):
        yield records[start + _HASH : start + _RECORD]
