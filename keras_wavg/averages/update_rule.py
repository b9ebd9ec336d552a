"""The update of an average and of its counters.

It uses `keras.ops`, so that the same code runs in `jax.jit`, in `tf.function`
and on torch tensors, without reading anything back to the host.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_wavg.schedules import Schedule


class Counters(NamedTuple):
    """The counters of an average, integers or integer tensors.

    Args:
        last: The time of the last update, in optimizer steps.
        steps: The number of optimizer steps in the average, or of samples if
            the schedule counts those.
    """

    last: Any
    steps: Any


def moved_towards(average: Any, sample: Any, coefficient: Any) -> Any:
    """The average after a sample.

    Where one of the two is not finite, the result is the other one. This takes
    one pass without a reduction, so that devices need not communicate.

    Args:
        average: Floating-point tensor.
        sample: Tensor of the same shape and dtype.
        coefficient: Tensor of shape `()`.
    """
    ops = keras.ops
    difference = sample - average
    return ops.where(
        ops.abs(difference) < math.inf,
        average + ops.cast(coefficient, sample.dtype) * difference,
        ops.where(ops.abs(sample) < math.inf, sample, average),
    )


def advance(
    counters: Counters, now: Any, schedules: Sequence[Schedule]
) -> tuple[Counters, list[Any]]:
    """Compute the counters and the coefficients of an update.

    Args:
        counters: `Counters` before the update.
        now: Integer tensor of shape `()`, the time in optimizer steps.
        schedules: Sequence of `Schedule`s, which all count the same unit.

    Returns:
        Tuple `(counters, coefficients)` with one coefficient per schedule. The
        coefficients are 0 if there was no step since the last update.
    """
    ops = keras.ops
    interval = ops.maximum(now - counters.last, 0)
    counts_samples = schedules[0].counts_samples
    added = ops.minimum(interval, 1) if counts_samples else interval
    steps = counters.steps + added
    times = ops.cast(steps, "float32"), ops.cast(added, "float32")
    coefficients = [
        ops.where(interval > 0, schedule.coefficient(*times, ops), 0.0)
        for schedule in schedules
    ]
    return Counters(counters.last + interval, steps), coefficients
