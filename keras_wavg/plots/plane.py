"""A score, measured on the plane through three points of weight space."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy

from keras_wavg.plots.weight_space import (
    Array,
    Frame,
    Position,
    Weights,
    WeightSpace,
)

_CORNERS = 3


@dataclass(frozen=True)
class LossPlane:
    """A score on the plane through three points of weight space.

    Coordinates are Euclidean distances in weight space. The first point is the
    origin, and the second lies on the x axis.

    Args:
        points: Where the three points are, by name.
        marks: Where other weights fall on the plane, by name.
        x: The grid's x coordinates, an array.
        y: The grid's y coordinates, an array.
        scores: The score of each grid point, of shape `(len(y), len(x))`.
    """

    points: dict[str, Position]
    marks: dict[str, Position]
    x: Array
    y: Array
    scores: Array


def loss_plane(
    model: Any,
    points: Mapping[str, Weights],
    score: Callable[[], Any],
    *,
    resolution: int = 21,
    margin: float = 0.25,
    marks: Mapping[str, Weights] | None = None,
    verbose: str | int = "auto",
) -> LossPlane:
    """Measure what `plot_loss_plane`, of the same arguments, draws.

    Args:
        model: As there, and so on.
        points: As there.
        score: As there.
        resolution: As there.
        margin: As there.
        marks: As there.
        verbose: As there.

    Returns:
        A `LossPlane`: numbers to keep, and to draw again.

    Raises:
        ValueError: As there.
    """
    space = WeightSpace(model)
    frame = Frame([space.vector(n, w) for n, w in _three(points).items()])
    corners = dict(zip(points, frame.corners, strict=True))
    others = {
        name: frame.project(space.vector(name, weights))
        for name, weights in (marks or {}).items()
    }
    x, y = _grid([*corners.values(), *others.values()], margin, resolution)
    scores = _measure(space, frame, x, y, score, verbose)
    return LossPlane(corners, others, x, y, scores)


def _three(points: Mapping[str, Weights]) -> Mapping[str, Weights]:
    if len(points) != _CORNERS:
        raise ValueError(
            "`points` must name three points in weight space. "
            f"Received: points={list(points)}"
        )
    return points


def _grid(
    positions: Sequence[Position], margin: float, resolution: int
) -> tuple[Array, Array]:
    if not isinstance(resolution, numbers.Integral) or resolution <= 1:
        raise ValueError(
            "`resolution` must be an integer >= 2. "
            f"Received: resolution={resolution!r}"
        )
    if not isinstance(margin, numbers.Real) or not 0 <= margin < math.inf:
        raise ValueError(
            "`margin` must be a finite number >= 0. "
            f"Received: margin={margin!r}"
        )
    lowest, highest = numpy.min(positions, 0), numpy.max(positions, 0)
    centre, width = (lowest + highest) / 2, (highest - lowest).max()
    reach = (0.5 + margin) * width
    grid = numpy.linspace(centre - reach, centre + reach, resolution)
    return grid[:, 0], grid[:, 1]


def _measure(
    space: WeightSpace,
    frame: Frame,
    x: Array,
    y: Array,
    score: Callable[[], Any],
    verbose: str | int,
) -> Array:
    scores = numpy.empty((len(y), len(x)))
    progress = keras.utils.Progbar(
        scores.size,
        verbose=1 if verbose == "auto" else verbose,
        unit_name="point",
    )
    try:
        for row, column in numpy.ndindex(scores.shape):
            space.enter(frame.vector(x[column], y[row]))
            scores[row, column] = _number(score())
            progress.add(1)
    finally:
        space.leave()
    return scores


def _number(score: Any) -> float:
    try:
        return float(score)
    except TypeError as error:
        raise ValueError(
            f"`score` must return a number. Received: {score!r}"
        ) from error
