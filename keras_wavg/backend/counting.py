"""The three counts beside an average, and what an update makes of them.

Written in `keras.ops`, so that one text serves inside `jax.jit`, inside
`tf.function` and on torch tensors, and nothing is read back to the host.
"""

from typing import Any, NamedTuple

import keras

from keras_wavg.schedules import Schedule


class Counters(NamedTuple):
    """The counts beside an average, integers or integer tensors.

    Args:
        last: The time of the last update, in optimizer steps.
        steps: The optimizer steps that the average covers, or the samples,
            where the schedule counts those.
        skipped: The updates left out because a weight was NaN or infinite.
    """

    last: Any
    steps: Any
    skipped: Any


def advance(
    counters: Counters, now: Any, finite: Any, schedule: Schedule
) -> tuple[Counters, Any, Any]:
    """The counts after an update at the time `now`, and what to do at it.

    Args:
        counters: `Counters` before the update.
        now: Integer tensor of shape `()`, in optimizer steps.
        finite: Boolean tensor of shape `()`: all weights are finite.
        schedule: A `Schedule`.

    Returns:
        `(counters, coefficient, take)`. `take` is a boolean tensor: whether the
        average moves at all. Where it is false, `coefficient` means nothing.
    """
    ops = keras.ops
    interval = ops.maximum(now - counters.last, 0)
    due = interval > 0
    take = ops.logical_and(due, finite)
    skip = ops.logical_and(due, ops.logical_not(finite))
    covered = ops.minimum(interval, 1) if schedule.counts_samples else interval
    steps = counters.steps + covered
    coefficient = schedule.coefficient(
        ops.cast(steps, "float32"), ops.cast(covered, "float32"), ops
    )
    counters = Counters(
        counters.last + interval,
        ops.where(take, steps, counters.steps),
        counters.skipped + ops.cast(skip, counters.skipped.dtype),
    )
    return counters, coefficient, take
