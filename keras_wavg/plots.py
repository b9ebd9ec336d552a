"""Pictures of where averages lie: a score around three points of weight space.

`loss_plane` measures, `draw_loss_plane` draws, `plot_loss_plane` does both.
They need matplotlib, which `pip install "keras-wavg[plots]"` brings along.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy

try:
    from matplotlib import colors, patheffects, pyplot
except ImportError as error:
    raise ImportError(
        'Plots need matplotlib. Run: pip install "keras-wavg[plots]"'
    ) from error

Array = Any
Weights = Sequence[Array]
"""Arrays in the order of `model.get_weights()`."""
Position = tuple[float, float]

_CORNERS = 3
_LEVELS = 10
_POINT_MARKERS = "os^"
_MARK_MARKERS = "DPX*v<>"


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


def plot_loss_plane(
    model: Any,
    points: Mapping[str, Weights],
    score: Callable[[], Any],
    *,
    resolution: int = 21,
    margin: float = 0.25,
    marks: Mapping[str, Weights] | None = None,
    ax: Any = None,
    label: str | None = None,
    verbose: str | int = "auto",
) -> Any:
    """Draw a score on the plane through three points of weight space.

    It shows whether weights lie in one basin, and where in it an average of
    them lies. The axes are Euclidean distances in weight space: with `w1`,
    `w2`, `w3` the points in their order,

    ```
    u = w2 - w1
    v = (w3 - w1) - <w3 - w1, u> / <u, u> * u
    weights(x, y) = w1 + x * u / |u| + y * v / |v|
    ```

    over the floating-point weights. Others stay what they are in the model.

    At each point of a grid, `resolution**2` times in all, `model` gets the
    weights of that point, and `score()` is called. Then `model` gets its own
    weights back, also after an error or Ctrl-C. `BatchNormalization` has
    statistics of its own at each point of the plane; those between the three
    points are mixtures, so let `score` measure them anew before it evaluates.

    Filled markers are the points, hollow ones the marks. A mark is drawn where
    it falls on the plane, and its own score is that of the plane only if it
    lies in it, as an average of the points does.

    Args:
        model: A built Keras model.
        points: A dictionary of three names and weights, each a list of arrays
            as from `model.get_weights()`, not on one line.
        score: A function without arguments that returns a number, e.g. the
            loss or the error of `model` on the training or the test data. What
            is not finite is left blank.
        resolution: Integer >= 2, the number of grid points along each axis.
            Defaults to `21`.
        margin: Float >= 0, how far the square of the picture goes beyond the
            outermost points and marks, as a fraction of the wider of their two
            extents. Defaults to `0.25`.
        marks: A dictionary of names and weights to show in the picture too,
            e.g. averages. Defaults to `None`.
        ax: A matplotlib `Axes` to draw on, best in a figure made with
            `layout="compressed"`. Defaults to `None`, those of a new figure.
        label: String, what `score` is, for the colour bar. Defaults to `None`.
        verbose: `"auto"` or 1 for a progress bar, 0 for none. Defaults to
            `"auto"`.

    Example:

    ```python
    ax = plot_loss_plane(
        model,
        {"epoch 5": first, "epoch 10": second, "epoch 15": third},
        lambda: model.evaluate(x, y, verbose=0),
        marks={"average": ema.get_weights()},
        label="training loss",
    )
    ax.figure.savefig("plane.pdf")
    ```

    Returns:
        The `Axes`.

    Raises:
        ValueError: If the points are not three or lie on one line, if weights
            are not of the shapes of the model's or not finite, if another
            argument is out of its range, or if no score is finite.

    References:
        - [Garipov et al., 2018](https://arxiv.org/abs/1802.10026), figure 1
        - [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), figure 1
    """
    plane = loss_plane(
        model,
        points,
        score,
        resolution=resolution,
        margin=margin,
        marks=marks,
        verbose=verbose,
    )
    return draw_loss_plane(plane, ax=ax, label=label)


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
    space = _WeightSpace(model)
    frame = _Frame([space.vector(n, w) for n, w in _three(points).items()])
    corners = dict(zip(points, frame.corners, strict=True))
    others = {
        name: frame.project(space.vector(name, weights))
        for name, weights in (marks or {}).items()
    }
    x, y = _grid([*corners.values(), *others.values()], margin, resolution)
    scores = _measure(space, frame, x, y, score, verbose)
    return LossPlane(corners, others, x, y, scores)


def draw_loss_plane(
    plane: LossPlane, *, ax: Any = None, label: str | None = None
) -> Any:
    """Draw what `loss_plane` has measured.

    Contours lie dense near the lowest score: their distances from it grow
    geometrically.

    Args:
        plane: A `LossPlane`.
        ax: A matplotlib `Axes`. Defaults to `None`, those of a new figure.
        label: String, what the score is. Defaults to `None`.

    Returns:
        The `Axes`.

    Raises:
        ValueError: If no score is finite.
    """
    scores = numpy.ma.masked_invalid(plane.scores)
    labels = _tick_labels(_levels(scores.compressed()))
    if ax is None:
        _, ax = pyplot.subplots(figsize=(5, 4), layout="compressed")
    _draw_contours(ax, plane, scores, labels, label)
    _draw_markers(ax, plane)
    ax.set(
        aspect="equal",
        facecolor="lightgray",
        xlabel="distance in weight space",
        ylabel="distance in weight space",
    )
    return ax


class _WeightSpace:
    """The floating-point weights of a model as one vector of float64."""

    def __init__(self, model: Any) -> None:
        self.model = model
        # Copies: what Keras gives may be JAX's own memory, donated to a step.
        self.own = [numpy.array(array) for array in model.get_weights()]
        self.floating = [
            keras.backend.is_float_dtype(weight.dtype)
            for weight in model.weights
        ]

    def vector(self, name: str, weights: Weights) -> Array:
        """Weights of the user as a vector."""
        arrays = [numpy.asarray(array) for array in weights]
        received = [array.shape for array in arrays]
        expected = [array.shape for array in self.own]
        if received != expected:
            raise ValueError(
                f"The weights of '{name}' must have the shapes of the model's, "
                f"{expected}. Received: {received}"
            )
        vector = numpy.concatenate(
            [a.ravel().astype("float64") for a in self._floats_of(arrays)]
        )
        if not numpy.isfinite(vector).all():
            raise ValueError(f"The weights of '{name}' must be finite.")
        return vector

    def enter(self, vector: Array) -> None:
        """Give the model the weights of a vector."""
        sizes = [array.size for array in self._floats_of(self.own)]
        parts = iter(numpy.split(vector, numpy.cumsum(sizes)[:-1]))
        self.model.set_weights(
            [
                next(parts).reshape(array.shape) if floating else array
                for array, floating in zip(self.own, self.floating, strict=True)
            ]
        )

    def leave(self) -> None:
        """Give the model its own weights back."""
        self.model.set_weights(self.own)

    def _floats_of(self, arrays: Weights) -> list[Array]:
        both = zip(arrays, self.floating, strict=True)
        return [array for array, floating in both if floating]


class _Frame:
    """Two orthonormal directions that span the plane of three vectors."""

    def __init__(self, vectors: Sequence[Array]) -> None:
        self.origin, second, third = vectors
        along, aside = second - self.origin, third - self.origin
        base = numpy.linalg.norm(along)
        widest = max(base, numpy.linalg.norm(aside))
        self.right = along / (base or 1.0)
        upwards = aside - (aside @ self.right) * self.right
        height = numpy.linalg.norm(upwards)
        # An average in float32 of two points lies a rounding off their line.
        if min(base, height) <= 1e-4 * widest:
            raise ValueError(
                "`points` must be three points that are not on one line. "
                f"Received: points {height:.3g} off a line of {widest:.3g}"
            )
        self.up = upwards / height
        self.corners = [
            (0.0, 0.0),
            (float(base), 0.0),
            (float(aside @ self.right), float(height)),
        ]

    def project(self, vector: Array) -> Position:
        """Where a vector falls on the plane."""
        offset = vector - self.origin
        return float(offset @ self.right), float(offset @ self.up)

    def vector(self, x: float, y: float) -> Array:
        """The vector at a position on the plane."""
        return self.origin + x * self.right + y * self.up


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
    space: _WeightSpace,
    frame: _Frame,
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


def _levels(scores: Array) -> Array:
    if not scores.size:
        raise ValueError("No score is finite: there is nothing to draw.")
    lowest = scores.min()
    above = scores[scores > lowest] - lowest
    if not above.size:
        return numpy.array([lowest, lowest + (abs(lowest) or 1)])
    # Quantiles, for one corner can be worse than all the rest by magnitudes.
    nearest, farthest = numpy.quantile(above, (0.02, 0.9))
    distances = numpy.geomspace(nearest, farthest, _LEVELS - 1)
    return numpy.unique([lowest, *(lowest + distances)])


def _tick_labels(levels: Array) -> list[str]:
    """The levels with as few digits as tell them apart."""
    for digits in range(2, 18):
        labels = [_tick_label(level, digits) for level in levels]
        if len(set(labels)) == len(levels):
            break
    return labels


def _tick_label(level: float, digits: int) -> str:
    text = f"{level:#.{digits}g}".rstrip(".")
    # 150 rather than 1.5e+02.
    return f"{float(text):g}" if "e" in text else text


def _draw_contours(
    ax: Any, plane: LossPlane, scores: Array, labels: list[str], name: Any
) -> None:
    levels = [float(label) for label in labels]
    # Rounded up, the lowest level would leave the minimum blank.
    scores = numpy.ma.maximum(scores, levels[0])
    filled = ax.contourf(
        plane.x,
        plane.y,
        scores,
        levels,
        cmap="viridis_r",
        norm=colors.BoundaryNorm(levels, 256, extend="max"),
        extend="max",
    )
    lines = {"colors": "white", "linewidths": 0.4}
    ax.contour(plane.x, plane.y, scores, levels[1:], **lines)
    bar = ax.figure.colorbar(filled, ax=ax, label=name, ticks=levels)
    bar.ax.set_yticklabels(labels)


def _draw_markers(ax: Any, plane: LossPlane) -> None:
    for marker, (name, position) in zip(
        _POINT_MARKERS, plane.points.items(), strict=True
    ):
        _draw_marker(ax, name, position, marker, "black", "white")
    for index, (name, position) in enumerate(plane.marks.items()):
        marker = _MARK_MARKERS[index % len(_MARK_MARKERS)]
        _draw_marker(ax, name, position, marker, "white", "black")


def _draw_marker(
    ax: Any, name: str, position: Position, marker: str, face: str, edge: str
) -> None:
    ax.plot(
        *position,
        marker=marker,
        markersize=8,
        markerfacecolor=face,
        markeredgecolor=edge,
    )
    ax.annotate(
        name,
        position,
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        va="bottom",
        path_effects=[
            patheffects.withStroke(linewidth=2.5, foreground="white")
        ],
    )
