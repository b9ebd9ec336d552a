"""The weights that a user gives to checkpoints, as numbers to sum by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from keras_wavg import arguments


@dataclass(frozen=True)
class Factors:
    """The numbers in `sum(multiplier * weights) / divisor`.

    Equal weights are ones, so that the mean of copies is exact.
    """

    multipliers: Sequence[float]
    divisor: float

    @property
    def coefficients(self) -> list[float]:
        """How much each counts."""
        return [multiplier / self.divisor for multiplier in self.multipliers]


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
        return Factors(given, 1.0)
    if len(set(given)) == 1:
        return Factors([1.0] * count, float(count))
    if not (total := _sum(given)):
        raise ValueError(
            "`weights` must have a finite sum that is not zero. Received: "
            f"weights={given}. Pass `normalize=False` to use them as they are."
        )
    return Factors(given, total)


def _is_finite(weight: Any) -> bool:
    try:
        return arguments.is_number(weight) and math.isfinite(weight)
    except OverflowError:
        return False


def _sum(terms: Sequence[float]) -> float:
    """The sum, or 0 if it is out of range."""
    try:
        return math.fsum(terms)
    except OverflowError:
        return 0.0
