"""Groups of the newer kind, which HDF5 makes where a name is not ASCII."""

from collections.abc import Iterator, Sequence

from keras_wavg.files.hdf5.dense import link_messages
from keras_wavg.files.hdf5.window import UNDEFINED, Window

_HAS_ORDER, _HAS_KIND, _HAS_CHARSET = 4, 8, 16


def linked(
    window: Window, info: bytes, links: Sequence[bytes]
) -> Iterator[tuple[bytes, int]]:
    """The names in a group and the addresses of their objects.

    Args:
        window: A `Window`.
        info: The message about the links.
        links: The messages with a link each.
    """
    version, flags = window.unpack_message("<2B", info)
    if version or flags:
        window.refuse("a group is not as Keras writes it")
    heap, tree = window.unpack_message("<2Q", info[2:])
    if heap == UNDEFINED:
        found = iter(links)
    else:
        found = link_messages(window, heap, tree)
    for link in found:
        yield _link(window, link)


def _link(window: Window, link: bytes) -> tuple[bytes, int]:
    """Name and address in a link."""
    version, flags = window.unpack_message("<2B", link)
    start = 2
    if flags & _HAS_KIND:
        (kind,) = window.unpack_message("<B", link[start:])
        if kind:
            window.refuse("there is a link to another path or file")
        start += 1
    if version != 1 or flags & _HAS_ORDER:
        window.refuse("a link is not as Keras writes it")
    start += bool(flags & _HAS_CHARSET)
    width = 1 << (flags & 3)
    size = int.from_bytes(link[start : start + width], "little")
    start += width
    name = link[start : start + size]
    (address,) = window.unpack_message("<Q", link[start + size :])
    return name, address
