"""Which sum of profiles comes closest to another one, by least squares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from keras_wavg.profile import Profile

_MOST_BINS = 20_000
# Of a float32, and of the weights that are made.
_FLOAT32, _MOST_ROUNDING = 2.0**-24, 1e-3


@dataclass(frozen=True)
class Solution:
    """Coefficients whose sum of profiles comes closest to another one.

    Args:
        coefficients: Sequence of floats that sum to one.
        residual: Float, the distance that is left, as a share of the norm of
            the profile that is asked for.
        condition: Float, the condition number of the equations.
    """

    coefficients: Sequence[float]
    residual: float
    condition: float

    def __str__(self) -> str:
        return (
            f"residual {self.residual:.2%}, condition number "
            f"{self.condition:.2g}"
        )


def solve(profiles: Sequence[Profile], target: Profile) -> Solution:
    """Find the coefficients of a sum of profiles.

    Args:
        profiles: Sequence of `Profile`s.
        target: `Profile` that the sum is to be like.

    Returns:
        A `Solution`.

    Raises:
        ValueError: If some profiles are so nearly sums of the others that
            rounding errors would show.
    """
    products = _products([*profiles, target])
    matrix, wanted, norm = (
        products[:-1, :-1],
        products[:-1, -1],
        products[-1, -1],
    )
    scale = 1 / numpy.sqrt(numpy.diag(matrix))
    scaled = matrix * numpy.outer(scale, scale)
    found = numpy.linalg.lstsq(scaled, wanted * scale, rcond=1e-13)[0] * scale
    found /= found.sum()
    square = found @ matrix @ found - 2 * found @ wanted + norm
    _require_digits(found)
    return Solution(
        found.tolist(),
        math.sqrt(max(0.0, square) / norm),
        float(numpy.linalg.cond(scaled)),
    )


def _require_digits(coefficients: Any) -> None:
    """Refuse coefficients that blow up how snapshots were rounded."""
    size = float(numpy.abs(coefficients).sum())
    rounding = size * _FLOAT32
    if not rounding <= _MOST_ROUNDING:
        raise ValueError(
            "Snapshots must be different enough from one another for the "
            f"average that is asked for. Received: {len(coefficients)} "
            f"snapshots, with coefficients whose magnitudes sum to {size:.2g}: "
            f"what was rounded off in float32 would be {rounding:.1%} of the "
            "weights. Take fewer of them, further apart."
        )


def _products(profiles: Sequence[Profile]) -> Any:
    exponents = [profile.exponent for profile in profiles]
    if all(exponent is not None for exponent in exponents):
        ends = [float(profile.times[-1]) for profile in profiles]
        pairs = list(zip(exponents, ends, strict=True))
        return numpy.array([[_product(*a, *b) for b in pairs] for a in pairs])
    # As densities over time, on common intervals.
    steps = max(profile.steps for profile in profiles)
    edges = numpy.linspace(-1, steps, min(steps + 1, _MOST_BINS) + 1)
    masses = [numpy.diff(profile.cumulative(edges)) for profile in profiles]
    return numpy.array(masses) @ numpy.array(masses).T / numpy.diff(edges)[0]


def _product(one: Any, end: float, two: Any, other_end: float) -> float:
    """The integral of the product of two power-function profiles."""
    if end > other_end:
        one, end, two, other_end = two, other_end, one, end
    # Here `one` ends first.
    return float(
        (one + 1)
        * (two + 1)
        / (one + two + 1)
        * (end / other_end) ** two
        / other_end
    )
