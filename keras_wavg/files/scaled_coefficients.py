"""The coefficients of checkpoints, from the `weights` that a user passes."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from keras_wavg import arguments
from keras_wavg.files.floats import max_cancellation

_MAX_EXPONENT = 100


@dataclass(frozen=True)
class ScaledCoefficients:
    """Coefficients as numerators over a common denominator.

    Equal weights have numerators of 1, which keeps the mean of copies exact.

    Args:
        numerators: Sequence of floats.
        denominator: Float, the sum of the numerators, or 1.
        is_mean: Boolean, whether it is their sum.
    """

    numerators: Sequence[float]
    denominator: numpy.longdouble
    is_mean: bool = True

    @property
    def values(self) -> list[float]:
        """The coefficients as floats."""
        return [float(number / self.denominator) for number in self.numerators]


def scaled_coefficients(
    weights: Any, count: int, *, normalize: bool
) -> ScaledCoefficients:
    """Validate the argument `weights` and make coefficients of it.

    Args:
        weights: Sequence of floats, or `None` for equal weights.
        count: Integer, the number of checkpoints.
        normalize: Boolean, whether to divide the weights by their sum.

    Returns:
        `ScaledCoefficients`.

    Raises:
        ValueError: If there are not `count` weights, if one is not finite, if
            all are zero, or if their sum is zero with `normalize`.
    """
    numbers = [1.0] * count if weights is None else list(weights)
    if len(numbers) != count:
        raise ValueError(
            "`weights` must have one number for each checkpoint. Received: "
            f"{len(numbers)} numbers for {count} checkpoints"
        )
    if not all(map(_is_finite, numbers)):
        raise ValueError(
            f"`weights` must be finite numbers. Received: weights={numbers}"
        )
    if not any(numbers):
        raise ValueError(
            f"`weights` must not all be zero. Received: weights={numbers}"
        )
    numbers = [float(weight) for weight in numbers]
    if not normalize:
        return ScaledCoefficients(numbers, numpy.longdouble(1), is_mean=False)
    numbers = _in_safe_range(numbers)
    if len(set(numbers)) == 1:
        return ScaledCoefficients([1.0] * count, numpy.longdouble(count))
    if not (total := _sum(numbers)):
        raise ValueError(
            "`weights` must not sum to zero. Received: "
            f"weights={numbers}. Pass `normalize=False` to use them unscaled."
        )
    return ScaledCoefficients(numbers, total)


def check_cancellation(
    coefficients: ScaledCoefficients, dtypes: Iterable[str]
) -> None:
    """Refuse coefficients that cancel, as few digits of the mean would remain.

    Args:
        coefficients: `ScaledCoefficients`.
        dtypes: Iterable of strings, the dtypes of the averaged variables.

    Raises:
        ValueError: If rounding errors would be visible in a variable.
    """
    if not coefficients.is_mean:
        return
    numerators = coefficients.numerators
    magnitude = math.fsum(map(abs, numerators))
    ratio = float(magnitude / abs(coefficients.denominator))
    limit = min(map(max_cancellation, dtypes))
    if ratio > limit:
        raise ValueError(
            "`weights` must not cancel one another, as too few digits remain. "
            f"Received: weights={list(numerators)}, whose magnitudes sum to "
            f"{ratio:.3g} times their sum (at most {limit:.3g}). Pass "
            "`normalize=False` for a sum."
        )


def _is_finite(weight: Any) -> bool:
    try:
        return arguments.is_number(weight) and math.isfinite(weight)
    except OverflowError:
        return False


def _in_safe_range(weights: Sequence[float]) -> list[float]:
    """Scale extreme weights by a power of two, so that products are finite."""
    exponent = math.frexp(max(map(abs, weights)))[1]
    shift = exponent if abs(exponent) > _MAX_EXPONENT else 0
    return [math.ldexp(weight, -shift) for weight in weights]


def _sum(terms: Sequence[float]) -> numpy.longdouble:
    """The sum in extended precision."""
    total = math.fsum(terms)
    return numpy.longdouble(total) + math.fsum([*terms, -total])
