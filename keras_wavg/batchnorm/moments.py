"""Combines the moments of batches to those of all data, in float64."""

from collections.abc import Callable
from typing import Any

import numpy

Moments = tuple[numpy.ndarray, numpy.ndarray]
"""Mean and variance of each channel."""


def moments_function(variance: Any) -> Callable[[Any, numpy.ndarray], Moments]:
    """Return a function from a layer and its statistics to its moments.

    The statistics have the shape `(calls, 4, channels)`: mean, rounding error
    of the mean, biased variance, and count.

    Args:
        variance: `"population"` or `"batch_mean"`, see `update_bn`.

    Returns:
        A function that raises a `ValueError` if the moments are undefined.

    Raises:
        ValueError: If `variance` is invalid.
    """
    if variance == "population":
        return _population
    if variance == "batch_mean":
        return _batch_mean
    raise ValueError(
        "`variance` must be 'population' or 'batch_mean'. "
        f"Received: variance={variance!r}"
    )


def _population(layer: Any, statistics: numpy.ndarray) -> Moments:
    means, variances, counts = _used(layer, statistics)
    fractions = counts / counts.sum(axis=0)
    mean = (fractions * means).sum(axis=0)
    # Law of total variance: variance within plus variance between batches.
    return mean, (fractions * (variances + (means - mean) ** 2)).sum(axis=0)


def _batch_mean(layer: Any, statistics: numpy.ndarray) -> Moments:
    means, variances, counts = _used(layer, statistics)
    if counts.min() == 1:
        raise ValueError(
            "`variance='batch_mean'` needs at least two elements per channel "
            "and batch, for the unbiased variance. Received: one element, in "
            f"layer '{layer.path}'"
        )
    unbiased = variances * counts / (counts - 1)
    return means.mean(axis=0), unbiased.mean(axis=0)


def _used(layer: Any, statistics: numpy.ndarray) -> list[numpy.ndarray]:
    """Means, variances and counts, each `(calls, channels)`."""
    # A replica may get no sample of the last batch, or a fully masked one.
    used = statistics[(statistics[:, -1] > 0).all(axis=1)].astype("float64")
    if not len(used):
        raise ValueError(
            f"`data` must reach the layer '{layer.path}'. Received: no element "
            "of `data` reaches it in `model(inputs)`. To keep the statistics "
            "of the layer, freeze it with `layer.trainable = False`."
        )
    means, errors, variances, counts = used.transpose(1, 0, 2)
    return [means + errors, variances, counts]
