"""Dense link storage: links in a fractal heap, indexed by a B-tree.

HDF5 uses it for a group of more than eight objects if a name is not ASCII, for
example the layers of a model with a layer class named `Größe`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from keras_wavg.files.hdf5.bounded_reader import UNDEFINED, BoundedReader

_LINK_NAMES = 5  # the type of a tree that indexes links by the hash of the name
_RECORD, _HASH, _ID = 11, 4, 7  # bytes
# Columns and rows of the heap. Each row doubles the size of a block.
_MAX_ROWS = 64
_DAMAGED = "the links of a group are damaged"
_TOO_MANY = "a group has too many members"


def dense_link_messages(
    reader: BoundedReader, heap: int, tree: int
) -> Iterator[bytes]:
    """Yield the bodies of the link messages of a group.

    Args:
        reader: A `BoundedReader`.
        heap: Integer, the address of the heap.
        tree: Integer, the address of the tree.
    """
    links = _read_heap(reader, heap)
    for heap_id in _heap_ids(reader, tree):
        if heap_id[0]:
            reader.refuse("a link is not in the heap of its group")
        start = int.from_bytes(heap_id[1:5], "little")
        yield links.read(start, int.from_bytes(heap_id[5:7], "little"))


@dataclass(frozen=True)
class _Block:
    start: int
    address: int
    size: int


@dataclass(frozen=True)
class _Heap:
    reader: BoundedReader
    blocks: list[_Block]

    def read(self, start: int, size: int) -> bytes:
        for block in self.blocks:
            offset = start - block.start
            if 0 <= offset <= block.size - size:
                break
        else:
            self.reader.refuse("a link is not in the heap of its group")
        return self.reader.read(block.address + offset, size)


def _read_heap(reader: BoundedReader, address: int) -> _Heap:
    reader.visit(address)
    signature, version, id_size, filters = reader.unpack("<4sB2H", address)
    width, first, largest, bits = reader.unpack("<H2QH", address + 110)
    root, rows = reader.unpack("<QH", address + 132)
    if (signature, version, id_size, filters) != (b"FRHP", 0, _ID, 0) or (
        bits != 32  # noqa: PLR2004
    ):
        reader.refuse("the links of a group are not as Keras writes them")
    if not rows:
        return _Heap(reader, [_read_block(reader, root, 0, first)])
    if not first or max(width, rows) > _MAX_ROWS:
        reader.refuse(_TOO_MANY)
    sizes = [first * 2 ** max(0, row - 1) for row in range(rows)]
    if sizes[-1] > largest:
        reader.refuse(_TOO_MANY)
    signature, _, _, start = reader.unpack("<4sBQI", root)
    if signature != b"FHIB" or start:
        reader.refuse(_DAMAGED)
    blocks, entry = [], root + 17
    for size in (size for size in sizes for _ in range(width)):
        (child,) = reader.unpack("<Q", entry)
        if child != UNDEFINED:
            blocks.append(_read_block(reader, child, start, size))
        start += size
        entry += 8
    return _Heap(reader, blocks)


def _read_block(
    reader: BoundedReader, address: int, start: int, size: int
) -> _Block:
    reader.visit(address)
    signature, _, _, stored_start = reader.unpack("<4sBQI", address)
    if (signature, stored_start) != (b"FHDB", start):
        reader.refuse(_DAMAGED)
    return _Block(start, address, size)


def _heap_ids(reader: BoundedReader, address: int) -> Iterator[bytes]:
    """Yield the location of each link in the heap."""
    reader.visit(address)
    header = reader.unpack("<4s2B4x2H", address)
    root, used = reader.unpack("<QH", address + 16)
    *versions, depth = header
    if versions != [b"BTHD", 0, _LINK_NAMES, _RECORD] or depth > 1:
        reader.refuse(f"{_TOO_MANY} with names not in ASCII")
    if not depth:
        yield from _records(reader, root, b"BTLF", used)
        return
    yield from _records(reader, root, b"BTIN", used)
    children = root + 6 + _RECORD * used
    for number in range(used + 1):
        child, count = reader.unpack("<QB", children + 9 * number)
        yield from _records(reader, child, b"BTLF", count)


def _records(
    reader: BoundedReader, address: int, expected: bytes, used: int
) -> Iterator[bytes]:
    if not used:
        return
    reader.visit(address)
    signature, _, kind = reader.unpack("<4s2B", address)
    if (signature, kind) != (expected, _LINK_NAMES):
        reader.refuse(_DAMAGED)
    records = reader.read(address + 6, _RECORD * used)
    for start in range(0, len(records), _RECORD):
        yield records[start + _HASH : start + _RECORD]
