"""Fits a sum of profiles to another profile, by least squares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from keras_wavg.profile import Profile

_MAX_BINS = 20_000
_FLOAT32_ROUNDING = 2.0**-24
_MAX_ROUNDING = 1e-3  # relative to the synthesized weights


@dataclass(frozen=True)
class Solution:
    """Coefficients of profiles whose sum is closest to a target.

    Args:
        coefficients: Sequence of floats that sum to one.
        residual: Float, the distance of the sum to the target, divided by the
            norm of the target.
        condition: Float, the condition number of the least-squares problem.
    """

    coefficients: Sequence[float]
    residual: float
    condition: float

    def __repr__(self) -> str:
        return (
            f"Solution(coefficients={len(self.coefficients)}, "
            f"residual={self.residual:.3g}, condition={self.condition:.3g})"
        )

    def __str__(self) -> str:
        return (
            f"residual {self.residual:.2%}, condition number "
            f"{self.condition:.2g}"
        )


def fit_profiles(profiles: Sequence[Profile], target: Profile) -> Solution:
    """Find the coefficients of profiles whose sum is closest to a target.

    Args:
        profiles: Sequence of `Profile`s.
        target: `Profile`.

    Returns:
        A `Solution`.

    Raises:
        ValueError: If some profiles are so close to sums of the others that
            rounding errors would be visible.
    """
    products = _inner_products([*profiles, target])
    matrix, vector = products[:-1, :-1], products[:-1, -1]
    target_square = products[-1, -1]
    scale = 1 / numpy.sqrt(numpy.diag(matrix))
    scaled = matrix * numpy.outer(scale, scale)
    found = numpy.linalg.lstsq(scaled, vector * scale, rcond=1e-13)[0] * scale
    found /= found.sum()
    square = found @ matrix @ found - 2 * found @ vector + target_square
    _check_rounding(found)
    return Solution(
        found.tolist(),
        math.sqrt(max(0.0, square) / target_square),
        float(numpy.linalg.cond(scaled)),
    )


def _check_rounding(coefficients: Any) -> None:
    """Refuse coefficients that amplify the rounding errors of snapshots."""
    magnitude = float(numpy.abs(coefficients).sum())
    rounding = magnitude * _FLOAT32_ROUNDING
    if not rounding <= _MAX_ROUNDING:
        raise ValueError(
            "Snapshots must differ enough from one another for the requested "
            f"average. Received: {len(coefficients)} snapshots, with "
            f"coefficients whose magnitudes sum to {magnitude:.2g}: rounding "
            f"errors in float32 would be {rounding:.1%} of the weights. Use "
            "fewer snapshots, further apart."
        )


def _inner_products(profiles: Sequence[Profile]) -> Any:
    exponents = [profile.exponent for profile in profiles]
    if all(exponent is not None for exponent in exponents):
        ends = [float(profile.times[-1]) for profile in profiles]
        pairs = list(zip(exponents, ends, strict=True))
        return numpy.array(
            [[_power_product(*a, *b) for b in pairs] for a in pairs]
        )
    # As densities over time, constant in common intervals.
    steps = max(profile.steps for profile in profiles)
    edges = numpy.linspace(-1, steps, min(steps + 1, _MAX_BINS) + 1)
    masses = [numpy.diff(profile.cumulative(edges)) for profile in profiles]
    return numpy.array(masses) @ numpy.array(masses).T / numpy.diff(edges)[0]


def _power_product(one: Any, end: float, two: Any, other_end: float) -> float:
    """The integral of the product of two power-function profiles."""
    if end > other_end:
        one, end, two, other_end = two, other_end, one, end
    # Profile `one` ends first.
    return float(
        (one + 1)
        * (two + 1)
        / (one + two + 1)
        * (end / other_end) ** two
        / other_end
    )
