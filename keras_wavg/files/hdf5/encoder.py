"""Encodes the metadata of an HDF5 file.

The arrays are stored before the metadata, so they can be written before the
attributes are known.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from keras_wavg.files.hdf5 import datatypes, headers
from keras_wavg.files.hdf5.attributes import up_to_8
from keras_wavg.files.hdf5.bounded_reader import UNDEFINED
from keras_wavg.files.hdf5.parser import (
    SIGNATURE,
    SUPERBLOCK_SIZE,
    VERSIONS,
)
from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.hdf5.symbol_tables import TABLE_RANK, TREE_RANK

_ALIGNMENT = 64
# Fill value: version 2, late allocation, written if set, zero.
_FILL = bytes([2, 2, 2, 1, 0, 0, 0, 0])
_STRINGS_IN_COLLECTION = 1000


def assign_offsets(structure: Structure) -> tuple[Structure, int]:
    """Assign each array its bytes in a new file.

    Args:
        structure: A `Structure`. Its offsets are ignored.

    Returns:
        The `Structure` with the new offsets, and the byte after the last array.
    """
    end = _aligned(SUPERBLOCK_SIZE)
    arrays = {}
    for path, array in structure.arrays.items():
        arrays[path] = replace(array, offset=end)
        end = _aligned(end + array.nbytes)
    return Structure(dict(structure.groups), arrays), end


def encode_metadata(structure: Structure, end: int) -> tuple[bytes, bytes]:
    """Encode everything but the arrays.

    Args:
        structure: A `Structure`, as returned by `assign_offsets`.
        end: Integer, the byte after the last array, as returned by
            `assign_offsets`.

    Returns:
        The bytes at the start of the file, and the bytes at `end`.
    """
    encoder = _Encoder(structure, end)
    root, *scratch = encoder.add_group("", _tree(structure))
    return (
        SIGNATURE
        + VERSIONS
        + struct.pack("<2HI", TABLE_RANK, TREE_RANK, 0)
        + struct.pack("<4Q", 0, UNDEFINED, encoder.end, UNDEFINED)
        + struct.pack("<2QI4x2Q", 0, root, 1, *scratch)
    ), bytes(encoder.body)


class _Encoder:
    def __init__(self, structure: Structure, start: int) -> None:
        self._structure = structure
        self._start = start
        self.body = bytearray()
        values = (group.values() for group in structure.groups.values())
        self._strings = self._add_strings({"bfloat16"}.union(*values))

    @property
    def end(self) -> int:
        """Address of the next bytes."""
        return self._start + len(self.body)

    def add_group(self, path: str, tree: Mapping[str, Any]) -> tuple[int, ...]:
        """Add a group; return the addresses of its header, tree and names."""
        addresses = {
            name: self._add_member(f"{path}/{name}" if path else name, members)
            for name, members in tree.items()
        }
        names = sorted(addresses, key=str.encode)
        heap, starts = self._add_names(names)
        tables = self._add_tables(
            [(starts[name], addresses[name]) for name in names]
        )
        root = self._add_tree(tables)
        message = struct.pack("<2Q", root, heap)
        attributes = self._structure.groups[path]
        header = self._add_header([(headers.SYMBOL_TABLE, message)], attributes)
        return header, root, heap

    def _add_member(self, path: str, members: Mapping[str, Any] | None) -> int:
        if members is None:
            return self._add_array(self._structure.arrays[path])
        return self.add_group(path, members)[0]

    def _add_array(self, array: Array) -> int:
        start = array.offset if array.nbytes else UNDEFINED
        rank, shape = len(array.shape), array.shape
        # The shape and the maximum shape.
        space = struct.pack(
            f"<3B5x{2 * rank}Q", 1, rank, rank > 0, *shape, *shape
        )
        layout = struct.pack("<2B2Q", 3, 1, start, array.nbytes)
        messages = [
            (headers.DATASPACE, space),
            (headers.DATATYPE, datatypes.MESSAGES[array.dtype]),
            (headers.FILL, _FILL),
            (headers.LAYOUT, layout),
        ]
        is_bfloat16 = array.dtype == "bfloat16"
        return self._add_header(
            messages, {"dtype": array.dtype} if is_bfloat16 else {}
        )

    def _add_header(
        self, messages: Sequence[headers.Message], attributes: Attributes
    ) -> int:
        messages = [
            *messages,
            *(
                (headers.ATTRIBUTE, self._attribute(name, value))
                for name, value in attributes.items()
            ),
        ]
        body = b"".join(
            struct.pack("<2HB3x", kind, up_to_8(len(message)), 0)
            + _padded(message)
            for kind, message in messages
        )
        prefix = struct.pack("<2BH2I4x", 1, 0, len(messages), 1, len(body))
        return self._add(prefix + body)

    def _attribute(self, name: str, value: str) -> bytes:
        text = name.encode("ascii") + b"\0"
        scalar = bytes([1, 0, 0, 0, 0, 0, 0, 0])
        sizes = len(text), len(datatypes.STRING), len(scalar)
        return (
            struct.pack("<Bx3H", 1, *sizes)
            + _padded(text)
            + _padded(datatypes.STRING)
            + scalar
            + struct.pack("<IQI", *self._strings[value])
        )

    def _add_strings(self, texts: set[str]) -> dict[str, tuple[int, int, int]]:
        locations: dict[str, tuple[int, int, int]] = {}
        for batch in _batches(sorted(texts), _STRINGS_IN_COLLECTION):
            body = b"".join(
                struct.pack("<2H4xQ", index, 1, len(text.encode()))
                + _padded(text.encode())
                for index, text in enumerate(batch, 1)
            )
            # The free space of a collection is its object 0.
            size = max(4096, 16 + len(body) + 16)
            free = struct.pack("<8xQ", size - 16 - len(body))
            head = struct.pack("<4sB3xQ", b"GCOL", 1, size)
            address = self._add((head + body + free).ljust(size, b"\0"))
            locations |= {
                text: (len(text.encode()), address, i)
                for i, text in enumerate(batch, 1)
            }
        return locations

    def _add_names(self, names: Sequence[str]) -> tuple[int, dict[str, int]]:
        heap, starts = bytearray(8), {}
        for name in names:
            starts[name] = len(heap)
            heap += _padded(name.encode() + b"\0")
        # The heap has no free space.
        head = struct.pack("<4sB3x2QQ", b"HEAP", 0, len(heap), 1, self.end + 32)
        return self._add(head + heap), starts

    def _add_tables(
        self, entries: Sequence[tuple[int, int]]
    ) -> list[tuple[int, int]]:
        size = 8 + 2 * TABLE_RANK * 40
        tables = []
        for batch in _batches(entries, 2 * TABLE_RANK):
            head = struct.pack("<4s2BH", b"SNOD", 1, 0, len(batch))
            body = b"".join(struct.pack("<2Q24x", *entry) for entry in batch)
            address = self._add((head + body).ljust(size, b"\0"))
            tables.append((batch[-1][0], address))
        return tables

    def _add_tree(
        self, children: Sequence[tuple[int, int]], level: int = 0
    ) -> int:
        """Add a tree over children: their last names and addresses."""
        batches = list(_batches(children, 2 * TREE_RANK)) or [[]]
        size = 24 + 2 * TREE_RANK * 16 + 8
        first, nodes = 0, []
        for number, batch in enumerate(batches):
            left = self.end - size if number else UNDEFINED
            right = self.end + size if batch is not batches[-1] else UNDEFINED
            head = struct.pack(
                "<4s2BH2Q", b"TREE", 0, level, len(batch), left, right
            )
            body = struct.pack("<Q", first)
            for last, address in batch:
                body += struct.pack("<2Q", address, last)
                first = last
            nodes.append((first, self._add((head + body).ljust(size, b"\0"))))
        return (
            nodes[0][1] if len(nodes) == 1 else self._add_tree(nodes, level + 1)
        )

    def _add(self, data: bytes) -> int:
        address = self.end
        self.body += _padded(data)
        return address


def _tree(structure: Structure) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path in sorted(structure.groups, key=lambda path: path.count("/")):
        if path:
            _at(tree, path.rpartition("/")[0])[path.rpartition("/")[2]] = {}
    for path in structure.arrays:
        _at(tree, path.rpartition("/")[0])[path.rpartition("/")[2]] = None
    return tree


def _at(tree: dict[str, Any], path: str) -> dict[str, Any]:
    for name in path.split("/") if path else ():
        tree = tree[name]
    return tree


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _padded(data: bytes) -> bytes:
    return data.ljust(up_to_8(len(data)), b"\0")


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
