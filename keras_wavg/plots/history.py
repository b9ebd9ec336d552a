"""The plot of the scores of averages during training."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy
from keras.callbacks import History
from matplotlib import ticker
from matplotlib.axes import Axes

from keras_wavg import arguments
from keras_wavg.plots.style import (
    axes_for_curves,
    curve_style,
    integer_locator,
    legend_above,
)

# Before its first update an average is the raw weights: both remain visible.
_RAW_STYLE = {"color": "0.75", "linewidth": 2.5, "zorder": 1.5}

Scores: TypeAlias = History | Mapping[str, Sequence[float]]


def plot_history(
    history: Scores,
    monitor: str = "val_loss",
    *,
    mode: str = "auto",
    ax: Axes | None = None,
) -> Axes:
    """Draw the scores of the raw weights and of each average, by epoch.

    `AverageEvaluator` writes these scores to the history. Epochs without
    evaluation (`every_epochs`) are interpolated. A dot marks the best epoch of
    each curve. For a logarithmic scale, call `set_yscale("log")` of the
    returned `Axes`.

    Args:
        history: The `History` that `fit` returns, or the dictionary in its
            `history` attribute.
        monitor: String, the name of the metric in the history without the name
            of the average: `"val_loss"` for `"raw_val_loss"`,
            `"ema_val_loss"`, and so on. Defaults to `"val_loss"`.
        mode: String, `"min"`, `"max"` or `"auto"`: whether the lowest or the
            highest score is the best. `"auto"` decides as Keras does, for a
            loss or a metric of Keras. Defaults to `"auto"`.
        ax: A matplotlib `Axes` to draw on, preferably of a figure created with
            `layout="compressed"`, because the legend is above the axes.
            Defaults to `None`, for a new figure.

    Example:

    >>> history = {
    ...     "raw_val_loss": [0.9, 0.5, 0.6],
    ...     "ema_val_loss": [0.9, 0.6, 0.4],
    ... }
    >>> ax = plot_history(history)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['raw: lowest 0.5000, epoch 2', 'ema: lowest 0.4000, epoch 3']

    Returns:
        The `Axes`.

    Raises:
        ValueError: If the history does not have these scores, if `mode` is not
            one of these strings, or if it is `"auto"` and `monitor` is not a
            loss or a metric of Keras.
    """
    is_higher_better = arguments.is_higher_better(monitor, mode)
    scores = _scores(history, monitor)
    ax = axes_for_curves(ax, len(scores))
    for index, (name, values) in enumerate(scores.items()):
        _draw(
            ax,
            name,
            _epochs(history, values),
            values,
            curve_style(index - 1) if index else _RAW_STYLE,
            is_higher_better=is_higher_better,
        )
    _label(ax, monitor)
    return ax


def _label(ax: Axes, monitor: str) -> None:
    ax.xaxis.set_major_locator(integer_locator())
    # The multiplier of the ticks would overlap the legend.
    formatter = ticker.ScalarFormatter(useOffset=False)
    formatter.set_scientific(False)
    ax.yaxis.set_major_formatter(formatter)
    ax.set_xlim(left=max(0.5, ax.get_xlim()[0]), auto=None)
    ax.set(xlabel="epoch", ylabel=monitor)
    legend_above(ax)


def _scores(history: Scores, monitor: str) -> dict[str, Any]:
    """Return the scores by name, those of the raw weights first."""
    logs = getattr(history, "history", history)
    if not isinstance(logs, Mapping):
        raise ValueError(  # noqa: TRY004
            "`history` must be the `History` that `fit` returns, or the "
            "dictionary in its `history` attribute. Received: "
            f"history={history!r}"
        )
    if f"raw_{monitor}" not in logs:
        raise ValueError(
            "`monitor` must be a metric whose scores an `AverageEvaluator` has "
            f"written to the history, as `raw_{monitor}` here. Received: "
            f"monitor={monitor!r}, and a history of {list(logs)}. Pass an "
            "`AverageEvaluator` in the `callbacks` of `fit`."
        )
    names = [
        key.removesuffix(f"_{monitor}")
        for key in logs
        if key.endswith(f"_{monitor}")
    ]
    return {
        name: numpy.asarray(logs[f"{name}_{monitor}"], "float64")
        for name in sorted(names, key=lambda name: name != "raw")
        if not _is_of_another_evaluator(name, names)
    }


def _is_of_another_evaluator(name: str, names: Sequence[str]) -> bool:
    # With "raw_big_val_loss", "ema_big" is "ema" of the evaluator "big_val".
    others = [n.removeprefix("raw") for n in names if n.startswith("raw_")]
    return name.endswith(tuple(others))


def _epochs(history: Scores, values: Any) -> Any:
    """Return the numbers of the epochs, starting from 1."""
    return 1 + numpy.asarray(getattr(history, "epoch", range(len(values))))


def _draw(
    ax: Axes,
    name: str,
    epochs: Any,
    values: Any,
    style: Any,
    *,
    is_higher_better: bool,
) -> None:
    is_evaluated = ~numpy.isnan(values)
    epochs, values = epochs[is_evaluated], values[is_evaluated]
    best = _best(values, is_higher_better=is_higher_better)
    word = "highest" if is_higher_better else "lowest"
    ax.plot(
        epochs,
        values,
        label=name + "".join(_text(word, epochs[i], values[i]) for i in best),
        marker="o",
        markevery=best,
        markersize=5.5,
        markeredgecolor="white",
        **{"linewidth": 1.2} | style,
    )


def _best(values: Any, *, is_higher_better: bool) -> list[int]:
    """Return the index of the best value, if any is finite, in a list."""
    is_finite = numpy.isfinite(values)
    losses = -values if is_higher_better else values
    order = numpy.where(is_finite, losses, numpy.inf).argsort(kind="stable")
    return [int(index) for index in order[:1] if is_finite[index]]


def _text(word: str, epoch: int, value: float) -> str:
    digits = f"{value:#.4g}".rstrip(".")
    return f": {word} {digits}, epoch {epoch}"
