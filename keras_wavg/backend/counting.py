"""The two counts beside an average, and what an update makes of them.

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
    """

    last: Any
    steps: Any


def advance(
    counters: Counters, now: Any, schedule: Schedule
) -> tuple[Counters, Any]:
    """The counts after an update at the time `now`, and how far it goes.

    Args:
        counters: `Counters` before the update.
        now: Integer tensor of shape `()`, in optimizer steps.
        schedule: A `Schedule`.

    Returns:
        `(counters, coefficient)`. The coefficient is 0 if no step was made.
    """
    ops = keras.ops
    interval = ops.maximum(now - counters.last, 0)
    covered = ops.minimum(interval, 1) if schedule.counts_samples else interval
    steps = counters.steps + covered
    coefficient = schedule.coefficient(
        ops.cast(steps, "float32"), ops.cast(covered, "float32"), ops
    )
    return (
        Counters(counters.last + interval, steps),
        ops.where(interval > 0, coefficient, 0.0),
    )
