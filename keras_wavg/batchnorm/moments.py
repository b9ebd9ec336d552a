"""Moments of all data from the moments of its batches, in float64."""

from collections.abc import Callable
from typing import Any

import numpy

Moments = tuple[numpy.ndarray, numpy.ndarray]
"""Mean and variance of each channel."""


def combination(variance: Any) -> Callable[[Any, numpy.ndarray], Moments]:
    """The function from a layer and its rows to its moments.

    Rows are of shape `(calls, 4, channels)`: mean, its rounding error, biased
    variance, and count.

    Args:
        variance: `"population"` or `"batch_mean"`, see `update_bn`.

    Returns:
        A function, which raises a `ValueError` for rows that have no moments.

    Raises:
        ValueError: If `variance` is neither.
    """
    if variance == "population":
        return _population
    if variance == "batch_mean":
        return _batch_mean
    raise ValueError(
        "`variance` must be 'population' or 'batch_mean'. "
        f"Received: variance={variance!r}"
    )


def _population(layer: Any, rows: numpy.ndarray) -> Moments:
    means, variances, counts = _used(layer, rows)
    shares = counts / counts.sum(axis=0)
    mean = (shares * means).sum(axis=0)
    # The law of total variance: within the batches, and between them.
    return mean, (shares * (variances + (means - mean) ** 2)).sum(axis=0)


def _batch_mean(layer: Any, rows: numpy.ndarray) -> Moments:
    means, variances, counts = _used(layer, rows)
    if counts.min() == 1:
        raise ValueError(
            "`variance='batch_mean'` needs two or more elements of each "
            "channel in each batch, for its unbiased variance. Received: one, "
            f"in layer '{layer.path}'"
        )
    unbiased = variances * counts / (counts - 1)
    return means.mean(axis=0), unbiased.mean(axis=0)


def _used(layer: Any, rows: numpy.ndarray) -> list[numpy.ndarray]:
    """Means, variances and counts, each `(calls, channels)`."""
    # A replica may get no sample of the last batch, and masks may hide all.
    used = rows[(rows[:, -1] > 0).all(axis=1)].astype("float64")
    if not len(used):
        raise ValueError(
            f"The layer '{layer.path}' was never updated: no element of "
            "`data` reaches it in `model(inputs)`. Freeze it, "
            "`layer.trainable = False`, to keep its statistics."
        )
    means, rests, variances, counts = used.transpose(1, 0, 2)
    return [means + rests, variances, counts]
