"""The weights that a user gives to checkpoints, as numbers to sum by."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from keras_wavg import arguments
from keras_wavg.files.floats import room_for_cancelling

_SAFE_EXPONENT = 100


@dataclass(frozen=True)
class Factors:
    """The numbers in `sum(multiplier * weights) / divisor`.

    Equal weights are ones, so that the mean of copies is exact.

    Args:
        multipliers: Sequence of floats.
        divisor: Float: the sum of the multipliers, or 1.
        is_mean: Boolean, which of the two it is.
    """

    multipliers: Sequence[float]
    divisor: numpy.longdouble
    is_mean: bool = True

    @property
    def coefficients(self) -> list[float]:
        """How much each counts."""
        return [float(number / self.divisor) for number in self.multipliers]


def factors(weights: Any, count: int, *, normalize: bool) -> Factors:
    """The weights that a user gave, checked.

    Args:
        weights: Sequence of floats, or `None` for equal ones.
        count: Integer, how many there must be.
        normalize: Boolean, whether they are divided by their sum.

    Returns:
        `Factors`.

    Raises:
        ValueError: If they are not as many finite numbers, or sum to zero.
    """
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise ValueError(
            "`weights` must have one number for each checkpoint. Received: "
            f"{len(given)} numbers for {count} checkpoints"
        )
    if not all(map(_is_finite, given)):
        raise ValueError(
            f"`weights` must be finite numbers. Received: weights={given}"
        )
    if not any(given):
        raise ValueError(
            f"`weights` must not all be zero. Received: weights={given}"
        )
    given = [float(weight) for weight in given]
    if not normalize:
        return Factors(given, numpy.longdouble(1), is_mean=False)
    given = _in_range(given)
    if len(set(given)) == 1:
        return Factors([1.0] * count, numpy.longdouble(count))
    if not (total := _sum(given)):
        raise ValueError(
            "`weights` must have a sum that is not zero. Received: "
            f"weights={given}. Pass `normalize=False` to use them as they are."
        )
    return Factors(given, total)


def require_exact(factors: Factors, dtypes: Iterable[str]) -> None:
    """Refuse factors that cancel, so that few digits of a mean are left.

    Args:
        factors: `Factors`.
        dtypes: Of the weights that are averaged.

    Raises:
        ValueError: If rounding errors would show in a weight.
    """
    if not factors.is_mean:
        return
    size = math.fsum(map(abs, factors.multipliers))
    cancelled = float(size / abs(factors.divisor))
    most = min(map(room_for_cancelling, dtypes))
    if cancelled > most:
        raise ValueError(
            "`weights` must not cancel one another, which leaves too few "
            f"digits. Received: weights={list(factors.multipliers)}, whose "
            f"magnitudes sum to {cancelled:.3g} times their sum, where "
            f"{most:.3g} is the most. Pass `normalize=False` for a sum."
        )


def _is_finite(weight: Any) -> bool:
    try:
        return arguments.is_number(weight) and math.isfinite(weight)
    except OverflowError:
        return False


def _in_range(weights: Sequence[float]) -> list[float]:
    """The weights, or all by one power of two, to be multiplied safely."""
    exponent = math.frexp(max(map(abs, weights)))[1]
    shift = exponent if abs(exponent) > _SAFE_EXPONENT else 0
    return [math.ldexp(weight, -shift) for weight in weights]


def _sum(terms: Sequence[float]) -> numpy.longdouble:
    """The sum, to more digits than a float has."""
    total = math.fsum(terms)
    return numpy.longdouble(total) + math.fsum([*terms, -total])
