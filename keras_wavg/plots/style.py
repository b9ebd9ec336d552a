"""Figures, colors and legends of all plots."""

from typing import Any

from matplotlib import pyplot, ticker
from matplotlib.axes import Axes

# The palette of Okabe and Ito, for color-blind readers, without yellow.
_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
_LINE_STYLES = ("-", "--", ":", "-.")
_LEGEND_ROW_INCHES = 0.17
_LEGEND_CHARACTER_INCHES = 0.07


def axes_or_new(ax: Axes | None, *, width: float, height: float) -> Axes:
    """Return `ax`, or the axes of a new figure of a size in inches."""
    if ax is None:
        _, ax = pyplot.subplots(figsize=(width, height), layout="compressed")
    return ax


def axes_for_curves(
    ax: Axes | None, count: int, *, characters: int = 0
) -> Axes:
    """Return `ax`, or new axes with space for a legend.

    Args:
        ax: A matplotlib `Axes`, or `None`.
        count: Integer, the number of rows of the legend.
        characters: Integer, the number of characters of the longest label.
            Defaults to `0`, for short ones.
    """
    ax = axes_or_new(
        ax,
        width=max(5, _LEGEND_CHARACTER_INCHES * characters),
        height=2.6 + _LEGEND_ROW_INCHES * count,
    )
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def curve_style(index: int) -> dict[str, Any]:
    """Return color and line style of one of several curves."""
    line_style = index // len(_COLORS) % len(_LINE_STYLES)
    return {
        "color": _COLORS[index % len(_COLORS)],
        "linestyle": _LINE_STYLES[line_style],
    }


def integer_locator() -> ticker.MaxNLocator:
    """Return a locator of ticks for steps or epochs."""
    return ticker.MaxNLocator(
        "auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]
    )


def legend_above(ax: Axes) -> None:
    """Draw the legend above the axes, where it hides no curve."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.3,
        borderpad=0,
        fontsize="small",
        frameon=False,
        labelspacing=0.3,
    )
