"""The measurement of a score on the plane through three points."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy

from keras_wavg import arguments
from keras_wavg.ensemble import weights_restored
from keras_wavg.plots.weight_space import (
    Array,
    PlaneBasis,
    Position,
    Weights,
    WeightSpace,
)

_POINTS = 3


@dataclass(frozen=True)
class LossPlane:
    """A score on the plane through three points of weight space.

    Coordinates are Euclidean distances in weight space. The first point is the
    origin, and the second is on the x axis.

    Args:
        points: Dictionary of the names and positions of the three points.
        marks: Dictionary of the names of other weights, and the positions of
            their projections on the plane.
        x: Array, the x coordinates of the grid.
        y: Array, the y coordinates of the grid.
        scores: Array of shape `(len(y), len(x))`, the score of each grid point.
    """

    points: dict[str, Position]
    marks: dict[str, Position]
    x: Array
    y: Array
    scores: Array

    def __repr__(self) -> str:
        finite = self.scores[numpy.isfinite(self.scores)]
        scores = "none finite"
        if finite.size:
            scores = f"{finite.min():.4g} to {finite.max():.4g}"
        return (
            f"LossPlane(points={list(self.points)}, marks={list(self.marks)}, "
            f"grid={len(self.x)}x{len(self.y)}, scores={scores})"
        )


def loss_plane(
    model: keras.Model,
    points: Mapping[str, Weights],
    score: Callable[[], float],
    *,
    resolution: int = 21,
    margin: float = 0.25,
    marks: Mapping[str, Weights] | None = None,
    verbose: str | int = "auto",
) -> LossPlane:
    """Measure a score on the plane through three points of weight space.

    `plot_loss_plane` measures and draws; see there for the definition of the
    plane. The weights of the model are restored at the end, also after an error
    or Ctrl-C.

    Args:
        model: A built Keras model.
        points: Dictionary of three names and weights, each a list of arrays as
            returned by `model.get_weights()`. They must not be on one line.
        score: Function without arguments that returns a number. It is called
            once for each grid point, while `model` has the weights of that
            point.
        resolution: Integer >= 2, the number of grid points along each axis.
            Defaults to `21`.
        margin: Non-negative float, the distance from the outermost points and
            marks to the edge of the grid, as a fraction of the larger of their
            two extents. Defaults to `0.25`.
        marks: Dictionary of names and weights whose positions to compute too,
            such as averages. Defaults to `None`.
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
        A `LossPlane`, for `draw_loss_plane`.

    Raises:
        ValueError: If there are not three points or they are on one line, if
            weights are not finite or do not have the shapes of the weights of
            the model, if `score` does not return a number, or if another
            argument is out of its range.
    """
    space = WeightSpace(model)
    vectors = [space.vector(n, w) for n, w in _three(points).items()]
    basis = PlaneBasis(vectors)
    positions = dict(zip(points, basis.points, strict=True))
    projections = {
        name: basis.project(space.vector(name, weights))
        for name, weights in (marks or {}).items()
    }
    shown = [*positions.values(), *projections.values()]
    x, y = _grid(shown, margin, resolution)
    scores = _measure(space, basis, x, y, score, verbose)
    return LossPlane(positions, projections, x, y, scores)


def _three(points: Mapping[str, Weights]) -> Mapping[str, Weights]:
    if len(points) != _POINTS:
        raise ValueError(
            "`points` must be a dictionary of three points in weight space. "
            f"Received: points={list(points)}"
        )
    return points


def _grid(
    positions: Sequence[Position], margin: float, resolution: int
) -> tuple[Array, Array]:
    resolution = arguments.integer("resolution", resolution, at_least=2)
    margin = arguments.number("margin", margin, at_least=0)
    lowest, highest = numpy.min(positions, 0), numpy.max(positions, 0)
    center, extent = (lowest + highest) / 2, (highest - lowest).max()
    radius = (0.5 + margin) * extent
    grid = numpy.linspace(center - radius, center + radius, resolution)
    return grid[:, 0], grid[:, 1]


def _measure(
    space: WeightSpace,
    basis: PlaneBasis,
    x: Array,
    y: Array,
    score: Callable[[], float],
    verbose: str | int,
) -> Array:
    scores = numpy.empty((len(y), len(x)))
    progress = keras.utils.Progbar(
        scores.size,
        verbose=1 if verbose == "auto" else verbose,
        unit_name="point",
    )
    with weights_restored(space.model):
        for row, column in numpy.ndindex(scores.shape):
            space.assign(basis.vector(x[column], y[row]))
            scores[row, column] = arguments.score(score())
            progress.add(1)
    return scores
