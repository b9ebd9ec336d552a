"""What an update makes of an average and of the two counts beside it.

Written in `keras.ops`, so that one text serves inside `jax.jit`, inside
`tf.function` and on torch tensors, and nothing is read back to the host.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_wavg.schedules import Schedule


class Counters(NamedTuple):
    """The counts beside an average, integers or integer tensors.

    Args:
        last: The time of the last update, in optimizer steps.
        steps: The optimizer steps that the average covers, or the samples,
            where the schedule counts those.
    """

    last: Any
    steps: Any


def moved_towards(average: Any, sample: Any, coefficient: Any) -> Any:
    """The average after a sample. What is not finite in one is the other.

    In one pass and without a reduction, so devices need not agree.

    Args:
        average: Floating-point tensor.
        sample: Tensor of its shape and dtype.
        coefficient: Tensor of shape `()`.
    """
    ops = keras.ops
    away = sample - average
    return ops.where(
        ops.abs(away) < math.inf,
        average + ops.cast(coefficient, sample.dtype) * away,
        ops.where(ops.abs(sample) < math.inf, sample, average),
    )


def advance(
    counters: Counters, now: Any, schedules: Sequence[Schedule]
) -> tuple[Counters, list[Any]]:
    """The counts after an update at the time `now`, and how far it goes.

    Args:
        counters: `Counters` before the update.
        now: Integer tensor of shape `()`, in optimizer steps.
        schedules: Sequence of `Schedule`s, which all count the same.

    Returns:
        `(counters, coefficients)`, one for each schedule. They are 0 if no step
        was made.
    """
    ops = keras.ops
    interval = ops.maximum(now - counters.last, 0)
    counts_samples = schedules[0].counts_samples
    covered = ops.minimum(interval, 1) if counts_samples else interval
    steps = counters.steps + covered
    times = ops.cast(steps, "float32"), ops.cast(covered, "float32")
    coefficients = [
        ops.where(interval > 0, schedule.coefficient(*times, ops), 0.0)
        for schedule in schedules
    ]
    return Counters(counters.last + interval, steps), coefficients
