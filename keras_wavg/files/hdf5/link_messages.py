"""Groups stored as links, as HDF5 does if a name is not ASCII."""

from collections.abc import Iterable, Iterator

from keras_wavg.files.hdf5.bounded_reader import UNDEFINED, BoundedReader
from keras_wavg.files.hdf5.dense_links import dense_link_messages

_HAS_ORDER, _HAS_KIND, _HAS_CHARSET = 4, 8, 16


def linked_members(
    reader: BoundedReader, info: bytes, links: Iterable[bytes]
) -> Iterator[tuple[bytes, int]]:
    """Yield the name and the address of each object in a group.

    Args:
        reader: A `BoundedReader`.
        info: Bytes, the body of the link info message.
        links: Iterable of bytes, the bodies of the link messages. Unused if
            the group has a heap.
    """
    version, flags = reader.unpack_message("<2B", info)
    if version or flags:
        reader.refuse("a group is not as Keras writes it")
    heap, tree = reader.unpack_message("<2Q", info[2:])
    if heap != UNDEFINED:
        links = dense_link_messages(reader, heap, tree)
    for link in links:
        yield _name_and_address(reader, link)


def _name_and_address(reader: BoundedReader, link: bytes) -> tuple[bytes, int]:
    version, flags = reader.unpack_message("<2B", link)
    start = 2
    if flags & _HAS_KIND:
        (kind,) = reader.unpack_message("<B", link[start:])
        if kind:
            reader.refuse("there is a link to another path or file")
        start += 1
    if version != 1 or flags & _HAS_ORDER:
        reader.refuse("a link is not as Keras writes it")
    start += bool(flags & _HAS_CHARSET)
    width = 1 << (flags & 3)
    size = int.from_bytes(link[start : start + width], "little")
    start += width
    name = link[start : start + size]
    (address,) = reader.unpack_message("<Q", link[start + size :])
    return name, address
