"""What the pictures have in common."""

from typing import Any

from matplotlib import pyplot, ticker

# Okabe and Ito's, which the colour-blind can tell apart, without yellow.
_COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
_DASHES = ("-", "--", ":", "-.")
_ROW = 0.17
"""The height of a row of the legend, in inches."""


def given_or_new(ax: Any, *, width: float, height: float) -> Any:
    """The axes given, or those of a new figure of a size in inches."""
    if ax is None:
        _, ax = pyplot.subplots(figsize=(width, height), layout="compressed")
    return ax


def axes_for_curves(ax: Any, count: int) -> Any:
    """The axes given, or new ones with room for a legend of so many rows."""
    ax = given_or_new(ax, width=5, height=2.6 + _ROW * count)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def curve(index: int) -> dict[str, Any]:
    """Colour and dashes of one curve of several."""
    dashes = index // len(_COLORS) % len(_DASHES)
    return {
        "color": _COLORS[index % len(_COLORS)],
        "linestyle": _DASHES[dashes],
    }


def whole_numbers() -> Any:
    """A locator of ticks, for steps and epochs."""
    return ticker.MaxNLocator(
        "auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]
    )


def legend_above(ax: Any) -> None:
    """Put the legend where no curve can be."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.3,
        borderpad=0,
        fontsize="small",
        frameon=False,
        labelspacing=0.3,
    )
