"""The types of numbers that Keras saves, as HDF5 spells them, byte by byte."""


def _float(size: int, sign: int, exponent: int, bias: int) -> bytes:
    # Class 1, version 1, little endian, the leading 1 implied; then: bit
    # offset 0, all bits used, where exponent and mantissa are.
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


# An enumeration of FALSE and TRUE over one byte.
_BOOL = (
    bytes.fromhex("18020000 01000000")
    + _integer(1, signed=True)
    + b"FALSE\0\0\0TRUE\0\0\0\0\0\1"
)

MESSAGES = {
    "float16": _float(2, sign=15, exponent=10, bias=15),
    # Opaque. The attribute `dtype` says which numbers these bytes are.
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
"""From the name of a type to the body of its message."""

ITEM_SIZES = {
    name: int.from_bytes(message[4:8], "little")
    for name, message in MESSAGES.items()
}
"""From the name of a type to the bytes that a number takes."""

# Of variable length, in UTF-8.
STRING = bytes.fromhex("19010100 10000000") + _integer(1, signed=False)
"""The type of an attribute's string."""

# A message is padded with zeros.
_NAMES = {message.rstrip(b"\0"): name for name, message in MESSAGES.items()}


def dtype_of(message: bytes) -> str | None:
    """The name of the type in a message, or `None` if Keras has no such type.

    Example:

    >>> dtype_of(MESSAGES["float32"] + bytes(4))
    'float32'
    """
    return _NAMES.get(message.rstrip(b"\0"))
