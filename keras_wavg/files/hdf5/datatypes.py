"""The datatypes that Keras saves, as HDF5 encodes them."""


def _float(size: int, sign: int, exponent: int, bias: int) -> bytes:
    # Class 1, version 1, little endian, implied leading 1; bit offset 0, full
    # precision, positions of exponent and mantissa.
    return (
        bytes([0x11, 0x20, sign, 0])
        + size.to_bytes(4, "little")
        + bytes([0, 0, 8 * size, 0, exponent, sign - exponent, 0, exponent])
        + bias.to_bytes(4, "little")
    )


def _integer(size: int, *, signed: bool) -> bytes:
    return (
        bytes([0x10, 8 * signed, 0, 0])
        + size.to_bytes(4, "little")
        + bytes([0, 0, 8 * size, 0])
    )


# An enumeration of FALSE and TRUE, stored as one byte.
_BOOL = (
    bytes.fromhex("18020000 01000000")
    + _integer(1, signed=True)
    + b"FALSE\0\0\0TRUE\0\0\0\0\0\1"
)

MESSAGES = {
    "float16": _float(2, sign=15, exponent=10, bias=15),
    # Opaque bytes. The attribute `dtype` names their type.
    "bfloat16": bytes.fromhex("15000000 02000000"),
    "float32": _float(4, sign=31, exponent=23, bias=127),
    "float64": _float(8, sign=63, exponent=52, bias=1023),
    "int8": _integer(1, signed=True),
    "int16": _integer(2, signed=True),
    "int32": _integer(4, signed=True),
    "int64": _integer(8, signed=True),
    "uint8": _integer(1, signed=False),
    "uint16": _integer(2, signed=False),
    "uint32": _integer(4, signed=False),
    "uint64": _integer(8, signed=False),
    "bool": _BOOL,
}
"""Dict from the name of each type to the body of its datatype message."""

ITEM_SIZES = {
    name: int.from_bytes(message[4:8], "little")
    for name, message in MESSAGES.items()
}
"""Dict from the name of each type to the size of an element in bytes."""

# Variable length, UTF-8.
STRING = bytes.fromhex("19010100 10000000") + _integer(1, signed=False)
"""The datatype of a string attribute."""

# Messages are padded with zeros.
_NAMES = {message.rstrip(b"\0"): name for name, message in MESSAGES.items()}


def dtype_of(message: bytes) -> str | None:
    """Return the name of a type, or `None` if Keras does not save that type.

    Args:
        message: Bytes, the body of a datatype message.

    Example:

    >>> dtype_of(MESSAGES["float32"] + bytes(4))
    'float32'
    """
    return _NAMES.get(message.rstrip(b"\0"))
