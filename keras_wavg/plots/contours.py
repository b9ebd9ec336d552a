"""The picture of a score on the plane through three points."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy
from matplotlib import colors, patheffects

from keras_wavg.plots.plane import LossPlane, loss_plane
from keras_wavg.plots.style import given_or_new
from keras_wavg.plots.weight_space import Array, Position, Weights

_LEVELS = 10
_POINT_MARKERS = "os^"
_MARK_MARKERS = "DPX*v<>"


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

    Example:

    >>> import numpy
    >>> from keras_wavg.plots import LossPlane, draw_loss_plane
    >>> steps = numpy.linspace(-1.0, 2.0, 9)
    >>> plane = LossPlane(
    ...     points={"a": (0.0, 0.0), "b": (1.0, 0.0), "c": (0.0, 1.0)},
    ...     marks={"average": (1 / 3, 1 / 3)},
    ...     x=steps,
    ...     y=steps,
    ...     scores=steps**2 + steps[:, None] ** 2,
    ... )
    >>> ax = draw_loss_plane(plane, label="training loss")
    >>> [text.get_text() for text in ax.texts]
    ['a', 'b', 'c', 'average']

    Returns:
        The `Axes`.

    Raises:
        ValueError: If no score is finite.
    """
    scores = numpy.ma.masked_invalid(plane.scores)
    labels = _tick_labels(_levels(scores.compressed()))
    ax = given_or_new(ax, width=5, height=4)
    _draw_contours(ax, plane, scores, labels, label)
    _draw_markers(ax, plane)
    ax.set(
        aspect="equal",
        facecolor="lightgray",
        xlabel="distance in weight space",
        ylabel="distance in weight space",
    )
    return ax


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
