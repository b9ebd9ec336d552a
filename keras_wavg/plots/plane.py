"""A score, measured on the plane through three points of weight space."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy

from keras_wavg import arguments
from keras_wavg.ensemble import weights_given_back
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
    """Measure a score on the plane through three points of weight space.

    What `plot_loss_plane` draws; the plane is defined there. In the end the
    model has its own weights back, also after an error or Ctrl-C.

    Args:
        model: A built Keras model.
        points: A dictionary of three names and weights, each a list of arrays
            as from `model.get_weights()`, not on one line.
        score: A function without arguments that returns a number. It is called
            with the weights of each grid point in `model`.
        resolution: Integer >= 2, the number of grid points along each axis.
            Defaults to `21`.
        margin: Float >= 0, how far the grid goes beyond the outermost points
            and marks, as a fraction of the wider of their two extents.
            Defaults to `0.25`.
        marks: A dictionary of names and weights to be placed too, e.g.
            averages. Defaults to `None`.
        verbose: `"auto"` or 1 for a progress bar, 0 for none. Defaults to
            `"auto"`.

    Example:

    >>> import keras, numpy
    >>> from keras_wavg.plots import loss_plane
    >>> layer = keras.layers.Dense(1, use_bias=False)
    >>> model = keras.Sequential([keras.Input((2,)), layer])
    >>> plane = loss_plane(
    ...     model,
    ...     {
    ...         "a": [numpy.array([[0.0], [0.0]])],
    ...         "b": [numpy.array([[1.0], [0.0]])],
    ...         "c": [numpy.array([[0.0], [1.0]])],
    ...     },
    ...     lambda: numpy.square(model.get_weights()[0]).sum(),
    ...     resolution=3,
    ...     verbose=0,
    ... )
    >>> plane.x.tolist()
    [-0.25, 0.5, 1.25]
    >>> plane.scores[0].tolist()
    [0.125, 0.3125, 1.625]

    Returns:
        A `LossPlane`: numbers to keep, and to draw again.

    Raises:
        ValueError: If the points are not three or lie on one line, if weights
            are not of the shapes of the model's or not finite, if `score` does
            not return a number, or if another argument is out of its range.
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
    resolution = arguments.integer("resolution", resolution, at_least=2)
    margin = arguments.number("margin", margin, at_least=0)
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
    with weights_given_back(space.model):
        for row, column in numpy.ndindex(scores.shape):
            space.enter(frame.vector(x[column], y[row]))
            scores[row, column] = arguments.score(score())
            progress.add(1)
    return scores
