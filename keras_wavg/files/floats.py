"""Floating-point numbers as they are stored, and as they are summed."""

from typing import Any

import numpy

FLOATS = {"bfloat16", "float16", "float32", "float64"}

Numbers = numpy.ndarray[Any, Any]


def accumulator(dtype: str) -> type[numpy.floating[Any]]:
    """The type in which numbers of a dtype are summed.

    It is wide enough that the mean of copies equals them bit for bit.

    Example:

    >>> accumulator("bfloat16").__name__
    'float64'
    """
    return numpy.longdouble if dtype == "float64" else numpy.float64


def max_cancellation(dtype: str) -> float:
    """The largest ratio of terms to their sum that keeps the sum exact.

    Args:
        dtype: String, one of `FLOATS`.

    Returns:
        Float, the machine epsilon of the dtype divided by that of its
        accumulator.
    """
    epsilon = 2.0**-7 if dtype == "bfloat16" else numpy.finfo(dtype).eps
    ratio = float(epsilon) / float(numpy.finfo(accumulator(dtype)).eps)
    # On some platforms `longdouble` is no wider than float64.
    return max(ratio, 2.0**10)


def decode(stored: Numbers, dtype: str) -> Numbers:
    """Convert stored bytes to floating-point numbers.

    Args:
        stored: Array of `uint8`.
        dtype: String, one of `FLOATS`.

    Returns:
        Array of a type that represents each number exactly.
    """
    if dtype != "bfloat16":
        return stored.view(dtype)
    # A bfloat16 is the upper half of a float32.
    return (stored.view("uint16").astype("uint32") << 16).view("float32")


def encode(values: Numbers, dtype: str) -> Numbers:
    """Convert floating-point numbers to stored bytes, rounded to nearest.

    Args:
        values: Array of floating-point numbers.
        dtype: String, one of `FLOATS`.

    Returns:
        Array of `uint8`. Numbers beyond the range of the dtype are infinite.
    """
    if dtype != "bfloat16":
        return values.astype(dtype).view("uint8")
    bits = values.astype("float32").view("uint32")
    # Add half of the last digit that remains, with ties to even. The carry
    # would turn a NaN into a number.
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    safe = numpy.where(numpy.isnan(values), 0x7FC0, upper)
    return safe.astype("uint16").view("uint8")


def is_finite(stored: Numbers, dtype: str) -> bool:
    """Whether stored numbers contain neither NaN nor infinity."""
    return bool(numpy.isfinite(decode(stored, dtype)).all())
