"""Object headers: the messages that say what an object is."""

from collections.abc import Iterator

from keras_wavg.files.hdf5.window import Window

DATASPACE, DATATYPE, LAYOUT, ATTRIBUTE, GROUP = 1, 3, 8, 12, 17
FILL, CONTINUATION = 5, 16
LINK_INFO, LINK, GROUP_INFO = 2, 6, 10

# Room for more, the fill value in two versions, hints of sizes, and the time
# of the last change, which earlier versions of h5py wrote.
_IGNORED = {0, 4, FILL, GROUP_INFO, 14, 18}
_KNOWN = {DATASPACE, DATATYPE, LAYOUT, ATTRIBUTE, CONTINUATION}
_KNOWN |= {GROUP, LINK_INFO, LINK}
_FOREIGN = {
    7: "an array in an external file",
    11: "a compressed array. Load the file in the model and save it again",
}
_SHARED = 2
# `libhdf5` keeps no more than 64 KiB of attributes there.
_MAX_HEADER = 1 << 20

Message = tuple[int, bytes]


def messages(window: Window, address: int) -> list[Message]:
    """The messages of the object at an address, as kind and body."""
    version, zero, _, _, size = window.unpack("<2BH2I", address)
    if (version, zero) != (1, 0):
        window.refuse("an object is missing, or not as Keras writes it")
    found: list[Message] = []
    blocks = [(address + 16, size)]
    total = 0
    for start, length in blocks:
        total += length
        if total > _MAX_HEADER:
            window.refuse("the header of an object is too long")
        for kind, body in _block(window, window.read(start, length)):
            if kind == CONTINUATION:
                place, more = window.unpack_message("<2Q", body)
                window.visit(place)
                blocks.append((place, more))
            else:
                found.append((kind, body))
    return found


def _block(window: Window, block: bytes) -> Iterator[Message]:
    start = 0
    while start < len(block):
        kind, size, flags = window.unpack_message(
            "<2HB", block[start : start + 8]
        )
        end = start + 8 + size
        if kind in _FOREIGN:
            window.refuse(f"there is {_FOREIGN[kind]}")
        if kind not in _KNOWN | _IGNORED or flags & _SHARED or end > len(block):
            window.refuse("the header of an object is not as Keras writes it")
        if kind in _KNOWN:
            yield kind, block[start + 8 : end]
        start = end
