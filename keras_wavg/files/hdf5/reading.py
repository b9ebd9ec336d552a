"""From the bytes of a file to its structure, refusing whatever looks odd."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from keras_wavg.files.hdf5 import datatypes, headers
from keras_wavg.files.hdf5.attributes import AttributeReader
from keras_wavg.files.hdf5.groups import members
from keras_wavg.files.hdf5.links import linked
from keras_wavg.files.hdf5.structure import Array, Attributes, Structure
from keras_wavg.files.hdf5.window import MAX_OBJECTS, UNDEFINED, Window
from keras_wavg.files.source import Source

SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Superblock, free space, root and shared messages of version 0; 8 bytes for
# addresses and lengths.
VERSIONS = bytes([0, 0, 0, 0, 0, 8, 8, 0])
SUPERBLOCK_SIZE = 96
MAX_DEPTH, MAX_NAME = 64, 1024
_MAX_RANK = 32
_CONTIGUOUS = 1

_ARRAY = {headers.DATASPACE, headers.DATATYPE, headers.LAYOUT}
_LINKED = {headers.LINK_INFO, headers.LINK}

Messages = Mapping[int, Sequence[bytes]]


def read_structure(source: Source) -> Structure:
    """The groups and arrays of a file.

    Args:
        source: A `Source` of an HDF5 file.

    Returns:
        A `Structure`, its paths in the order of the file.

    Raises:
        ValueError: If it is not a file as Keras writes them, with the reason
            and the path inside.
    """
    return _Reader(Window(source)).read()


class _Reader:
    def __init__(self, window: Window) -> None:
        self._window = window
        self._attributes = AttributeReader(window)
        self._structure = Structure()

    def read(self) -> Structure:
        window = self._window
        if window.size < SUPERBLOCK_SIZE or window.read(0, 8) != SIGNATURE:
            window.refuse("it does not begin as an HDF5 file")
        if window.read(8, 8) != VERSIONS:
            window.refuse(
                "it is of a version of HDF5 that Keras does not write"
            )
        base, _, end, driver, _, root = window.unpack("<6Q", 24)
        if base or driver != UNDEFINED or end > window.size:
            window.refuse("it is cut off, or HDF5 as Keras does not write it")
        self._read_object("", root, 0)
        if "" in self._structure.arrays:
            window.refuse("it is one array, without a name")
        self._refuse_overlaps()
        return self._structure

    def _read_object(self, path: str, address: int, depth: int) -> None:
        self._window.path = path
        self._window.visit(address)
        # The same names over and over would be long paths in a short file.
        self._window.spend(len(path))
        found = _by_kind(headers.messages(self._window, address))
        attributes = dict(
            map(self._attributes.read, found.pop(headers.ATTRIBUTE, ()))
        )
        if found.keys() == _ARRAY and max(map(len, found.values())) == 1:
            self._structure.arrays[path] = self._array(found, attributes)
        elif members := self._members(found):
            self._structure.groups[path] = attributes
            self._read_members(path, members, depth)
        else:
            self._window.refuse("an object is neither a group nor an array")

    def _members(self, found: Messages) -> Iterator[tuple[bytes, int]] | None:
        if found.keys() == {headers.GROUP}:
            return members(self._window, found[headers.GROUP][0])
        if headers.LINK_INFO in found and found.keys() <= _LINKED:
            info, links = found[headers.LINK_INFO], found.get(headers.LINK, [])
            return linked(self._window, info[0], links)
        return None

    def _read_members(
        self, path: str, members: Iterator[tuple[bytes, int]], depth: int
    ) -> None:
        if depth == MAX_DEPTH:
            self._window.refuse(f"groups are more than {MAX_DEPTH} deep")
        for raw, address in members:
            name = self._name(raw)
            child = f"{path}/{name}" if path else name
            self._refuse_twice(child)
            self._read_object(child, address, depth + 1)
            self._window.path = path

    def _name(self, raw: bytes) -> str:
        name = raw.decode(errors="replace")
        if (
            not 0 < len(raw) <= MAX_NAME
            or not name.isprintable()
            or name.encode() != raw
            or "/" in name
            or name in {".", ".."}
        ):
            self._window.refuse(f"the name {raw[:40]!r} is not a plain text")
        return name

    def _refuse_twice(self, path: str) -> None:
        groups, arrays = self._structure.groups, self._structure.arrays
        if path in groups or path in arrays:
            self._window.refuse(f"two objects have the name {path!r}")
        if len(groups) + len(arrays) >= MAX_OBJECTS:
            self._window.refuse(f"there are more than {MAX_OBJECTS} objects")

    def _array(self, found: Messages, attributes: Attributes) -> Array:
        window = self._window
        space, datatype, layout = (found[kind][0] for kind in sorted(_ARRAY))
        dtype = datatypes.dtype_of(datatype)
        if dtype is None:
            window.refuse("an array is not of numbers as Keras saves them")
        if (dtype == "bfloat16") != (attributes.get("dtype") == "bfloat16"):
            window.refuse("an array is not what its attribute `dtype` says")
        version, kind = window.unpack_message("<2B", layout)
        if version != 3 or kind > 2:  # noqa: PLR2004
            window.refuse("an array is not stored as Keras writes it")
        if kind != _CONTIGUOUS:
            window.refuse(
                "an array is not in one piece. Load the file in the model and "
                "save it again"
            )
        start, nbytes = window.unpack_message("<2Q", layout[2:])
        array = Array(dtype, self._shape(space), start)
        if array.nbytes != nbytes or (nbytes and start + nbytes > window.size):
            window.refuse(
                f"of an array of shape {array.shape} and dtype {dtype}, not "
                f"all of the {array.nbytes} bytes are in the file"
            )
        return array

    def _shape(self, message: bytes) -> tuple[int, ...]:
        version, rank, flags = self._window.unpack_message("<3B", message)
        if version != 1 or rank > _MAX_RANK or flags > 1:
            self._window.refuse("a shape is not as Keras writes it")
        return self._window.unpack_message(f"<{rank}Q", message[8:])

    def _refuse_overlaps(self) -> None:
        arrays = self._structure.arrays
        filled = [path for path in arrays if arrays[path].nbytes]
        filled.sort(key=lambda path: arrays[path].offset)
        for path, following in itertools.pairwise(filled):
            array = arrays[path]
            if array.offset + array.nbytes > arrays[following].offset:
                self._window.path = following
                self._window.refuse("two arrays share bytes")
        for path in filled:
            array = arrays[path]
            if self._window.is_within(
                array.offset, array.offset + array.nbytes
            ):
                self._window.path = path
                self._window.refuse("an array and the structure share bytes")


def _by_kind(messages: Sequence[headers.Message]) -> dict[int, list[bytes]]:
    found = defaultdict(list)
    for kind, body in messages:
        found[kind].append(body)
    return dict(found)
