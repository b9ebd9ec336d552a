"""The picture of how good averages were in the course of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib import ticker

from keras_wavg import arguments
from keras_wavg.plots.style import axes_for_curves, curve, legend_above

_RAW_STYLE = {"color": "0.6", "zorder": 1.5}
_BEST = {
    False: ("lowest", numpy.nanargmin),
    True: ("highest", numpy.nanargmax),
}


def plot_history(
    history: Any,
    metric: str = "val_loss",
    *,
    mode: str = "auto",
    ax: Any = None,
) -> Any:
    """Draw the scores of the raw weights and of each average, by epoch.

    They are what `AverageEvaluator` has put into the history. Epochs that it
    left out (`every`) are bridged. The best epoch of each has a dot. For a
    logarithmic scale call `set_yscale("log")` of what is returned.

    Args:
        history: What `fit` returns, or the dictionary in its `history`.
        metric: String, the name in the history without that of the average:
            `"val_loss"` for `"raw_val_loss"`, `"ema_val_loss"`, and so on.
            Defaults to `"val_loss"`.
        mode: `"min"`, `"max"`, or `"auto"`: the higher the better if the name
            of the metric says accuracy, AUC, F1, precision or recall. Defaults
            to `"auto"`.
        ax: A matplotlib `Axes` to draw on, best in a figure made with
            `layout="compressed"`, as the legend is above them. Defaults to
            `None`, those of a new figure.

    Example:

    >>> history = {
    ...     "raw_val_loss": [0.9, 0.5, 0.6],
    ...     "ema_val_loss": [0.9, 0.6, 0.4],
    ... }
    >>> ax = plot_history(history)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['raw: lowest 0.5, epoch 2', 'ema: lowest 0.4, epoch 3']

    Returns:
        The `Axes`.

    Raises:
        ValueError: If the history has no such scores, or if `mode` is none of
            these.
    """
    best_of = _BEST[arguments.is_higher_better(metric, mode)]
    scores = _scores(history, metric)
    ax = axes_for_curves(ax, len(scores))
    for index, (name, values) in enumerate(scores.items()):
        style = _RAW_STYLE if name == "raw" else curve(index - 1)
        _draw(ax, name, _epochs(history, values), values, best_of, style)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=metric)
    legend_above(ax)
    return ax


def _scores(history: Any, metric: str) -> dict[str, Any]:
    """The scores by the names of what they are of, the raw weights first."""
    logs = getattr(history, "history", history)
    if not isinstance(logs, Mapping):
        raise ValueError(  # noqa: TRY004
            "`history` must be what `fit` returns, or the dictionary in its "
            f"`history`. Received: history={history!r}"
        )
    if f"raw_{metric}" not in logs:
        raise ValueError(
            "`metric` must be what follows `raw_` in the history of a `fit` "
            "that had an `AverageEvaluator` in its `callbacks`. Received: "
            f"metric={metric!r}, and a history of {list(logs)}"
        )
    names = [
        key.removesuffix(f"_{metric}")
        for key in logs
        if key.endswith(f"_{metric}")
    ]
    return {
        name: numpy.asarray(logs[f"{name}_{metric}"], "float64")
        for name in sorted(names, key=lambda name: name != "raw")
        if not _is_of_another_evaluator(name, names)
    }


def _is_of_another_evaluator(name: str, names: Sequence[str]) -> bool:
    """Whether it is `ema_big`, of `ema_big_val_loss`, next to `raw_big`."""
    others = [n.removeprefix("raw") for n in names if n.startswith("raw_")]
    return name.endswith(tuple(others))


def _epochs(history: Any, values: Any) -> Any:
    """The numbers of the epochs, from 1 on."""
    return 1 + numpy.asarray(getattr(history, "epoch", range(len(values))))


def _draw(
    ax: Any, name: str, epochs: Any, values: Any, best_of: Any, style: Any
) -> None:
    there = ~numpy.isnan(values)
    epochs, values = epochs[there], values[there]
    line = {"linewidth": 1.2, "markersize": 5, "markeredgecolor": "white"}
    word, argbest = best_of
    if not numpy.isfinite(values).any():
        ax.plot(epochs, values, label=f"{name}: none finite", **style)
        return
    best = argbest(numpy.where(numpy.isfinite(values), values, numpy.nan))
    label = f"{name}: {word} {values[best]:.4g}, epoch {epochs[best]}"
    ax.plot(
        epochs,
        values,
        label=label,
        marker="o",
        markevery=[int(best)],
        **line,
        **style,
    )
