"""Parses the groups and arrays of an HDF5 file."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from keras_wavg.files.hdf5 import datatypes, headers
from keras_wavg.files.hdf5.attributes import AttributeReader
from keras_wavg.files.hdf5.bounded_reader import (
    MAX_OBJECTS,
    UNDEFINED,
    BoundedReader,
)
from keras_wavg.files.hdf5.link_messages import linked_members
from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.hdf5.symbol_tables import symbol_table_members
from keras_wavg.files.input_file import InputFile

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Version 0 of the superblock, the free space, the root and the shared messages;
# addresses and lengths of 8 bytes.
VERSIONS = bytes([0, 0, 0, 0, 0, 8, 8, 0])
SUPERBLOCK_SIZE = 96
MAX_DEPTH, MAX_NAME = 64, 1024
_MAX_RANK = 32
_CONTIGUOUS = 1

_ARRAY = {headers.DATASPACE, headers.DATATYPE, headers.LAYOUT}
_LINKED = {headers.LINK_INFO, headers.LINK}

Messages = Mapping[int, Sequence[bytes]]
"""From each type of message to the bodies of the messages of that type."""


def parse_structure(file: InputFile) -> Structure:
    """Parse the groups and arrays of a file.

    Args:
        file: An `InputFile` in HDF5.

    Returns:
        A `Structure`, with its paths in the order of the file.

    Raises:
        ValueError: If Keras does not write such a file. The message has the
            reason and the path inside the file.
    """
    return _Parser(BoundedReader(file)).parse()


class _Parser:
    def __init__(self, reader: BoundedReader) -> None:
        self._reader = reader
        self._attributes = AttributeReader(reader)
        self._structure = Structure()

    def parse(self) -> Structure:
        reader = self._reader
        if reader.size < SUPERBLOCK_SIZE or reader.read(0, 8) != SIGNATURE:
            reader.refuse("it does not start as an HDF5 file")
        if reader.read(8, 8) != VERSIONS:
            reader.refuse("Keras does not write this version of HDF5")
        base, _, end, driver, _, root = reader.unpack("<6Q", 24)
        if base or driver != UNDEFINED or end > reader.size:
            reader.refuse("it is cut off, or not HDF5 as Keras writes it")
        self._read_object("", root, 0)
        if "" in self._structure.arrays:
            reader.refuse("it is a single array without a name")
        self._refuse_overlaps()
        return self._structure

    def _read_object(self, path: str, address: int, depth: int) -> None:
        self._reader.path = path
        self._reader.visit(address)
        # Nested groups could make long paths out of a short file.
        self._reader.spend(len(path))
        found = _by_kind(headers.messages(self._reader, address))
        attributes = dict(
            map(self._attributes.read, found.pop(headers.ATTRIBUTE, ()))
        )
        if found.keys() == _ARRAY and max(map(len, found.values())) == 1:
            self._structure.arrays[path] = self._array(found, attributes)
        elif members := self._members(found):
            self._structure.groups[path] = attributes
            self._read_members(path, members, depth)
        else:
            self._reader.refuse("an object is neither a group nor an array")

    def _members(self, found: Messages) -> Iterator[tuple[bytes, int]] | None:
        if found.keys() == {headers.SYMBOL_TABLE}:
            table = found[headers.SYMBOL_TABLE][0]
            return symbol_table_members(self._reader, table)
        if headers.LINK_INFO in found and found.keys() <= _LINKED:
            info, links = found[headers.LINK_INFO], found.get(headers.LINK, [])
            return linked_members(self._reader, info[0], links)
        return None

    def _read_members(
        self, path: str, members: Iterator[tuple[bytes, int]], depth: int
    ) -> None:
        if depth == MAX_DEPTH:
            self._reader.refuse(f"groups are more than {MAX_DEPTH} deep")
        for raw, address in members:
            name = self._name(raw)
            child = f"{path}/{name}" if path else name
            self._require_new(child)
            self._read_object(child, address, depth + 1)
            self._reader.path = path

    def _name(self, raw: bytes) -> str:
        name = raw.decode(errors="replace")
        if (
            not 0 < len(raw) <= MAX_NAME
            or not name.isprintable()
            or name.encode() != raw
            or "/" in name
            or name in {".", ".."}
        ):
            self._reader.refuse(f"the name {raw[:40]!r} is not valid")
        return name

    def _require_new(self, path: str) -> None:
        groups, arrays = self._structure.groups, self._structure.arrays
        if path in groups or path in arrays:
            self._reader.refuse(f"two objects have the name {path!r}")
        if len(groups) + len(arrays) >= MAX_OBJECTS:
            self._reader.refuse(f"there are more than {MAX_OBJECTS} objects")

    def _array(self, found: Messages, attributes: Attributes) -> Array:
        reader = self._reader
        space, datatype, layout = (found[kind][0] for kind in sorted(_ARRAY))
        dtype = datatypes.dtype_of(datatype)
        if dtype is None:
            reader.refuse("an array has a type that Keras does not save")
        if (dtype == "bfloat16") != (attributes.get("dtype") == "bfloat16"):
            reader.refuse("an array and its attribute `dtype` do not match")
        version, kind = reader.unpack_message("<2B", layout)
        if version != 3 or kind > 2:  # noqa: PLR2004
            reader.refuse("an array is not stored as Keras writes it")
        if kind != _CONTIGUOUS:
            reader.refuse(
                "an array is not contiguous. Load the file into the model and "
                "save it again"
            )
        start, nbytes = reader.unpack_message("<2Q", layout[2:])
        array = Array(dtype, self._shape(space), start)
        if array.nbytes != nbytes or (nbytes and start + nbytes > reader.size):
            reader.refuse(
                f"an array of shape {array.shape} and dtype {dtype} needs "
                f"{array.nbytes} bytes, which are not all in the file"
            )
        return array

    def _shape(self, message: bytes) -> tuple[int, ...]:
        version, rank, flags = self._reader.unpack_message("<3B", message)
        if version != 1 or rank > _MAX_RANK or flags > 1:
            self._reader.refuse("a shape is not as Keras writes it")
        return self._reader.unpack_message(f"<{rank}Q", message[8:])

    def _refuse_overlaps(self) -> None:
        arrays = self._structure.arrays
        stored = [path for path in arrays if arrays[path].nbytes]
        stored.sort(key=lambda path: arrays[path].offset)
        for path, following in itertools.pairwise(stored):
            array = arrays[path]
            if array.offset + array.nbytes > arrays[following].offset:
                self._reader.path = following
                self._reader.refuse("two arrays share bytes")
        for path in stored:
            start = arrays[path].offset
            end = start + arrays[path].nbytes
            if self._reader.has_metadata_in(start, end):
                self._reader.path = path
                self._reader.refuse("an array and the metadata share bytes")


def _by_kind(messages: Sequence[headers.Message]) -> dict[int, list[bytes]]:
    found = defaultdict(list)
    for kind, body in messages:
        found[kind].append(body)
    return dict(found)
