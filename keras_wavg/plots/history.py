"""The picture of how good averages were in the course of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from matplotlib import ticker

from keras_wavg import arguments
from keras_wavg.plots.style import (
    axes_for_curves,
    curve,
    legend_above,
    whole_numbers,
)

# Before its first update an average is the raw weights: both are shown.
_RAW_STYLE = {"color": "0.75", "linewidth": 2.5, "zorder": 1.5}


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
    ['raw: lowest 0.5000, epoch 2', 'ema: lowest 0.4000, epoch 3']

    Returns:
        The `Axes`.

    Raises:
        ValueError: If the history has no such scores, or if `mode` is none of
            these.
    """
    is_higher_better = arguments.is_higher_better(metric, mode)
    scores = _scores(history, metric)
    ax = axes_for_curves(ax, len(scores))
    for index, (name, values) in enumerate(scores.items()):
        style = curve(index - 1) if index else _RAW_STYLE
        _draw(
            ax,
            name,
            _epochs(history, values),
            values,
            style,
            is_higher_better=is_higher_better,
        )
    _label(ax, metric)
    return ax


def _label(ax: Any, metric: str) -> None:
    ax.xaxis.set_major_locator(whole_numbers())
    # A factor of all ticks would be where the legend is.
    plain = ticker.ScalarFormatter(useOffset=False)
    plain.set_scientific(False)
    ax.yaxis.set_major_formatter(plain)
    ax.set_xlim(left=max(0.5, ax.get_xlim()[0]), auto=None)
    ax.set(xlabel="epoch", ylabel=metric)
    legend_above(ax)


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
    ax: Any,
    name: str,
    epochs: Any,
    values: Any,
    style: Any,
    *,
    is_higher_better: bool,
) -> None:
    there = ~numpy.isnan(values)
    epochs, values = epochs[there], values[there]
    best = _best(values, is_higher_better=is_higher_better)
    word = "highest" if is_higher_better else "lowest"
    ax.plot(
        epochs,
        values,
        label=name + "".join(_said(word, epochs[i], values[i]) for i in best),
        marker="o",
        markevery=best,
        markersize=5.5,
        markeredgecolor="white",
        **{"linewidth": 1.2} | style,
    )


def _best(values: Any, *, is_higher_better: bool) -> list[int]:
    """Where the best value is, if any is finite."""
    finite = numpy.isfinite(values)
    losses = -values if is_higher_better else values
    best = numpy.where(finite, losses, numpy.inf).argsort(kind="stable")
    return [int(index) for index in best[:1] if finite[index]]


def _said(word: str, epoch: int, value: float) -> str:
    digits = f"{value:#.4g}".rstrip(".")
    return f": {word} {digits}, epoch {epoch}"
