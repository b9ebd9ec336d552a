"""Numbers as they are stored, as they are summed, and back."""

from typing import Any

import numpy

FLOATS = {"bfloat16", "float16", "float32", "float64"}

Numbers = numpy.ndarray[Any, Any]


def accumulator(dtype: str) -> type[numpy.floating[Any]]:
    """The type in which numbers of a type are summed.

    It has room for the mean of copies to be what they are, bit for bit.

    Example:

    >>> accumulator("bfloat16").__name__
    'float64'
    """
    return numpy.longdouble if dtype == "float64" else numpy.float64


def room_for_cancelling(dtype: str) -> float:
    """By how much more than its result a sum may be, and still be exact.

    Args:
        dtype: String, one of `FLOATS`.

    Returns:
        Float: the accuracy of the type by that of its accumulator.
    """
    digits = {"bfloat16": 2.0**-7}
    own = digits.get(dtype) or float(numpy.finfo(dtype).eps)
    most = own / float(numpy.finfo(accumulator(dtype)).eps)
    # Where `longdouble` is no wider than float64.
    return max(most, 2.0**10)


def decode(stored: Numbers, dtype: str) -> Numbers:
    """Floating-point numbers from bytes.

    Args:
        stored: Array of `uint8`.
        dtype: String, one of `FLOATS`.

    Returns:
        Array of a type that has each of these numbers.
    """
    if dtype != "bfloat16":
        return stored.view(dtype)
    # The upper half of a float32.
    return (stored.view("uint16").astype("uint32") << 16).view("float32")


def encode(values: Numbers, dtype: str) -> Numbers:
    """Floating-point numbers as they are stored, rounded to the nearest.

    Args:
        values: Array of floating-point numbers.
        dtype: String, one of `FLOATS`.

    Returns:
        Array of `uint8`. What is out of the range of the type is infinite.
    """
    if dtype != "bfloat16":
        return values.astype(dtype).view("uint8")
    bits = values.astype("float32").view("uint32")
    # Half of the last digit that stays, ties to even. This would carry a NaN
    # over into a number.
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    safe = numpy.where(numpy.isnan(values), 0x7FC0, upper)
    return safe.astype("uint16").view("uint8")


def is_finite(stored: Numbers, dtype: str) -> bool:
    """Whether neither NaN nor infinity is among stored numbers."""
    return bool(numpy.isfinite(decode(stored, dtype)).all())
