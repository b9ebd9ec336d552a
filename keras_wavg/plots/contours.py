"""The plot of a score on the plane through three points."""

from collections.abc import Callable, Mapping

import keras
import numpy
from matplotlib import colors, patheffects
from matplotlib.axes import Axes

from keras_wavg.plots.plane import LossPlane, loss_plane
from keras_wavg.plots.style import axes_or_new
from keras_wavg.plots.weight_space import Array, Position, Weights

_LEVELS = 10
_POINT_MARKERS = "os^"
_MARK_MARKERS = "DPX*v<>"


def plot_loss_plane(
    model: keras.Model,
    points: Mapping[str, Weights],
    score: Callable[[], float],
    *,
    resolution: int = 21,
    margin: float = 0.25,
    marks: Mapping[str, Weights] | None = None,
    ax: Axes | None = None,
    label: str | None = None,
    verbose: str | int = "auto",
) -> Axes:
    """Draw a score on the plane through three points of weight space.

    The plot shows whether weights are in one basin of the loss, and where in it
    their average is. The axes are Euclidean distances in weight space. With the
    points `w1`, `w2`, `w3`, in their order,

    ```
    u = w2 - w1
    v = (w3 - w1) - <w3 - w1, u> / <u, u> * u
    weights(x, y) = w1 + x * u / |u| + y * v / |v|
    ```

    for the floating-point weights. Other weights keep their values.

    At each of the `resolution**2` points of a grid, `score()` is called while
    `model` has the weights of that point. The weights of the model are restored
    at the end, also after an error or Ctrl-C. The statistics of
    `BatchNormalization` do not fit weights between the points: call `update_bn`
    in `score` before you evaluate.

    Filled markers are the points, hollow markers the marks. A mark is drawn at
    its projection on the plane. The color there is its score only if it is on
    the plane, as averages of the points are.

    Args:
        model: A built Keras model.
        points: Dictionary of three names and weights, each a list of arrays as
            returned by `model.get_weights()`. They must not be on one line.
        score: Function without arguments that returns a number, such as the
            loss or error of `model` on training or test data. Values that are
            not finite are gray.
        resolution: Integer >= 2, the number of grid points along each axis.
            Defaults to `21`.
        margin: Non-negative float, the distance from the outermost points and
            marks to the edge of the plot, as a fraction of the larger of their
            two extents. Defaults to `0.25`.
        marks: Dictionary of names and weights to mark in the plot, such as
            averages. Defaults to `None`.
        ax: A matplotlib `Axes` to draw on, preferably of a figure created with
            `layout="compressed"`. Defaults to `None`, for a new figure.
        label: String, the name of the score, for the color bar. Defaults to
            `None`.
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
        ValueError: If there are not three points or they are on one line, if
            weights are not finite or do not have the shapes of the weights of
            the model, if another argument is out of its range, or if no score
            is finite.

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
    plane: LossPlane, *, ax: Axes | None = None, label: str | None = None
) -> Axes:
    """Draw a score that `loss_plane` has measured.

    The distances of the contours from the lowest score increase geometrically,
    so that contours are dense near it.

    Args:
        plane: A `LossPlane`.
        ax: A matplotlib `Axes` to draw on, preferably of a figure created with
            `layout="compressed"`. Defaults to `None`, for a new figure.
        label: String, the name of the score, for the color bar. Defaults to
            `None`.

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
    tick_labels = _tick_labels(_levels(scores.compressed()))
    ax = axes_or_new(ax, width=5, height=4)
    _draw_contours(ax, plane, scores, tick_labels, label)
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
        raise ValueError(
            "`plane` must have at least one finite score. Received: none"
        )
    lowest = scores.min()
    above = scores[scores > lowest] - lowest
    if not above.size:
        return numpy.array([lowest, lowest + (abs(lowest) or 1)])
    # Quantiles, because one corner can be orders of magnitude worse.
    smallest, largest = numpy.quantile(above, (0.02, 0.9))
    distances = numpy.geomspace(smallest, largest, _LEVELS - 1)
    return numpy.unique([lowest, *(lowest + distances)])


def _tick_labels(levels: Array) -> list[str]:
    """Return the levels with the fewest digits that distinguish them."""
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
    ax: Axes,
    plane: LossPlane,
    scores: Array,
    tick_labels: list[str],
    label: str | None,
) -> None:
    levels = [float(tick_label) for tick_label in tick_labels]
    # If the lowest level was rounded up, the minimum would be blank.
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
    color_bar = ax.figure.colorbar(filled, ax=ax, label=label, ticks=levels)
    color_bar.ax.set_yticklabels(tick_labels)


def _draw_markers(ax: Axes, plane: LossPlane) -> None:
    for marker, (name, position) in zip(
        _POINT_MARKERS, plane.points.items(), strict=True
    ):
        _draw_marker(ax, name, position, marker, "black", "white")
    for index, (name, position) in enumerate(plane.marks.items()):
        marker = _MARK_MARKERS[index % len(_MARK_MARKERS)]
        _draw_marker(ax, name, position, marker, "white", "black")


def _draw_marker(
    ax: Axes, name: str, position: Position, marker: str, face: str, edge: str
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
