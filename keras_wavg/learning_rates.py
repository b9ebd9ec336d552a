"""Learning rates that keep the weights moving, for averages to gather.

An average needs samples that differ. These schedules hold the learning rate
up, or let it go to and fro, as the papers did whose averages they belong to.

A rate between two others is `rest * first + share * last`, with both shares
from integers: subtracting in float32 would cost the digits of a small rate
beside a large one, and float32 cannot count beyond 2**24.
"""

import math
from typing import Any, Self

import keras
from keras import ops

from keras_wavg import arguments

_ANNEALS = ("cosine", "linear")


class _BeginsWithAnother(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule whose argument `before` is a number or a schedule."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make a schedule of a config.

        Args:
            config: Dict, from `get_config`.

        Returns:
            A schedule of this class.
        """
        before = keras.saving.deserialize_keras_object(config["before"])
        return cls(**{**config, "before": before})


class _Cycle(_BeginsWithAnother):
    """Goes from one rate towards another and begins again."""

    def __init__(
        self,
        max_learning_rate: float,
        min_learning_rate: float,
        cycle_steps: int,
        *,
        before: Any = None,
        start_step: int = 0,
    ) -> None:
        self.max_learning_rate = arguments.number(
            "max_learning_rate", max_learning_rate, at_least=0
        )
        self.min_learning_rate = arguments.number(
            "min_learning_rate", min_learning_rate, at_least=0
        )
        self.cycle_steps = self._whole_cycle(cycle_steps)
        self.start_step = arguments.integer(
            "start_step", start_step, at_least=0
        )
        self.before = None if before is None else _before(before)
        self._refuse_contradictions()

    def __call__(self, step: Any) -> Any:
        """The learning rate after some optimizer steps.

        Args:
            step: Integer or integer tensor, the steps before this one.

        Returns:
            Scalar float32 tensor.
        """
        step = ops.cast(step, "int32")
        in_cycle = ops.mod(step - self.start_step, self.cycle_steps) + 1
        part, whole = self._descent(in_cycle)
        rate = _between(
            self.max_learning_rate,
            self.min_learning_rate,
            rest=_ratio(whole - part, whole),
            share=_ratio(part, whole),
        )
        if self.before is None:
            return rate
        return ops.where(
            step < self.start_step, _value(self.before, step), rate
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments, for `from_config`.

        Returns:
            Dict of what `__init__` takes.
        """
        return {
            "max_learning_rate": self.max_learning_rate,
            "min_learning_rate": self.min_learning_rate,
            "cycle_steps": self.cycle_steps,
            "before": keras.saving.serialize_keras_object(self.before),
            "start_step": self.start_step,
        }

    def _descent(self, in_cycle: Any) -> tuple[Any, int]:
        """How far down a step is, 1 the first: integer part and whole."""
        raise NotImplementedError

    @staticmethod
    def _whole_cycle(cycle_steps: Any) -> int:
        return arguments.integer("cycle_steps", cycle_steps, at_least=1)

    def _refuse_contradictions(self) -> None:
        if self.min_learning_rate > self.max_learning_rate:
            raise ValueError(
                "`min_learning_rate` must not exceed `max_learning_rate`. "
                f"Received: min_learning_rate={self.min_learning_rate}, "
                f"max_learning_rate={self.max_learning_rate}"
            )
        if self.start_step and self.before is None:
            raise ValueError(
                "`before`, the learning rate of the steps before "
                "`start_step`, is required with `start_step` > 0. Received: "
                f"start_step={self.start_step}, before=None"
            )


@keras.saving.register_keras_serializable(package="keras_wavg")
class CyclicLearningRate(_Cycle):
    """SWA's learning rate: down in a line, back up in a jump, and again.

    At the i-th step of the optimizer, i = 1, 2, ..., with `c = cycle_steps`,

    ```
    t = (mod(i - 1, c) + 1) / c
    learning_rate = (1 - t) * max_learning_rate + t * min_learning_rate
    ```

    so the last step of a cycle has `min_learning_rate`. The weights after that
    step are those to average. Steps are counted from `start_step`.

    Use it as the `learning_rate` of any Keras optimizer. Keras calls it with
    `i - 1`, the number of steps made before. That number is saved with the
    optimizer, so training that is resumed goes on within its cycle.

    With `gradient_accumulation_steps=k`, Keras (3.15) calls it with the number
    of batches rather than of optimizer steps: give `cycle_steps` and
    `start_step` in batches. Choose multiples of `k`, and the last optimizer
    step of a cycle still has `min_learning_rate`.

    Args:
        max_learning_rate: Float >= 0, which the first step of a cycle is
            already one step below.
        min_learning_rate: Float from 0 to `max_learning_rate`, the rate of the
            last step of a cycle.
        cycle_steps: Integer >= 1, the length of a cycle in optimizer steps.
            With 1 the rate is constant, `min_learning_rate`.
        before: Float or `keras.optimizers.schedules.LearningRateSchedule`, the
            rate of the steps before `start_step`. Defaults to `None`, which
            `start_step=0` allows.
        start_step: Integer, the optimizer step, counted from 0, at which the
            first cycle begins. Defaults to `0`.

    Example:

    >>> import keras_wavg
    >>> schedule = keras_wavg.CyclicLearningRate(0.05, 0.01, cycle_steps=4)
    >>> [round(float(schedule(step)), 4) for step in range(6)]
    [0.04, 0.03, 0.02, 0.01, 0.04, 0.03]

    Raises:
        ValueError: If an argument is out of its range, or `before` is missing.

    References:
        - [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), section 3.1
    """

    def _descent(self, in_cycle: Any) -> tuple[Any, int]:
        return in_cycle, self.cycle_steps


@keras.saving.register_keras_serializable(package="keras_wavg")
class TriangularLearningRate(_Cycle):
    """FGE's learning rate: down in a line, up in a line, and again.

    At the i-th step of the optimizer, i = 1, 2, ..., with `c = cycle_steps`,

    ```
    t = (mod(i - 1, c) + 1) / c
    learning_rate = (1 - 2 * t) * max_learning_rate + 2 * t * min_learning_rate
    ```

    for `t <= 1/2`, and

    ```
    learning_rate = (2 - 2 * t) * min_learning_rate
                  + (2 * t - 1) * max_learning_rate
    ```

    after. The weights after the step in mid-cycle, `t = 1/2`, whose rate is
    `min_learning_rate`, are those to gather. The last step of a cycle has
    `max_learning_rate`. Steps are counted from `start_step`.

    Use it as the `learning_rate` of any Keras optimizer. Keras calls it with
    `i - 1`, the number of steps made before. That number is saved with the
    optimizer, so training that is resumed goes on within its cycle.

    With `gradient_accumulation_steps=k`, Keras (3.15) calls it with the number
    of batches rather than of optimizer steps: give `cycle_steps` and
    `start_step` in batches. Choose a multiple of `2 * k` and one of `k`, and
    the optimizer step in mid-cycle still has `min_learning_rate`.

    Args:
        max_learning_rate: Float >= 0, the rate of the last step of a cycle.
        min_learning_rate: Float from 0 to `max_learning_rate`, the rate in
            mid-cycle.
        cycle_steps: Even integer >= 2, the length of a cycle in optimizer
            steps.
        before: Float or `keras.optimizers.schedules.LearningRateSchedule`, the
            rate of the steps before `start_step`. Defaults to `None`, which
            `start_step=0` allows.
        start_step: Integer, the optimizer step, counted from 0, at which the
            first cycle begins. Defaults to `0`.

    Example:

    >>> import keras_wavg
    >>> schedule = keras_wavg.TriangularLearningRate(0.05, 0.01, cycle_steps=4)
    >>> [round(float(schedule(step)), 4) for step in range(6)]
    [0.03, 0.01, 0.03, 0.05, 0.03, 0.01]

    Raises:
        ValueError: If an argument is out of its range, or `before` is missing.

    References:
        - [Garipov et al., 2018](https://arxiv.org/abs/1802.10026)
    """

    def _descent(self, in_cycle: Any) -> tuple[Any, int]:
        return (
            ops.minimum(in_cycle, self.cycle_steps - in_cycle),
            self.cycle_steps // 2,
        )

    @staticmethod
    def _whole_cycle(cycle_steps: Any) -> int:
        return arguments.even("cycle_steps", cycle_steps)


@keras.saving.register_keras_serializable(package="keras_wavg")
class AnnealToConstant(_BeginsWithAnother):
    """Any learning rate, then over to a constant one, where averaging begins.

    `before` holds for the first `start_step` steps of the optimizer. With
    `lr0` its value at `start_step` and `n` the number of steps made since,

    ```
    t = min(n / anneal_steps, 1)
    alpha = t                          # anneal="linear"
    alpha = (1 - cos(pi * t)) / 2      # anneal="cosine"
    learning_rate = learning_rate * alpha + lr0 * (1 - alpha)
    ```

    as in `torch.optim.swa_utils.SWALR`. SWA's authors went in a line from 50%
    to 90% of a usual training: `start_step = 0.5 * steps` and
    `anneal_steps = 0.4 * steps`.

    Use it as the `learning_rate` of any Keras optimizer. Keras calls it with
    the number of steps made before. That number is saved with the optimizer,
    so training that is resumed goes on where it was.

    With `gradient_accumulation_steps`, Keras (3.15) calls it with the number of
    batches rather than of optimizer steps: give `start_step` and
    `anneal_steps` in batches.

    Args:
        before: Float or `keras.optimizers.schedules.LearningRateSchedule`, the
            rate until `start_step`.
        learning_rate: Float >= 0, the constant rate.
        start_step: Integer >= 0, the optimizer step, counted from 0, at which
            the rate begins to leave `before`.
        anneal_steps: Integer >= 0, the number of optimizer steps from there to
            the constant rate. With 0 it is reached at `start_step`.
        anneal: `"cosine"` or `"linear"`, the way from one to the other.
            Defaults to `"cosine"`.

    Example:

    >>> import keras_wavg
    >>> schedule = keras_wavg.AnnealToConstant(
    ...     0.1, 0.05, start_step=2, anneal_steps=2, anneal="linear"
    ... )
    >>> [round(float(schedule(step)), 4) for step in range(6)]
    [0.1, 0.1, 0.1, 0.075, 0.05, 0.05]

    Raises:
        ValueError: If an argument is out of its range.

    References:
        - [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407)
    """

    def __init__(
        self,
        before: Any,
        learning_rate: float,
        *,
        start_step: int,
        anneal_steps: int,
        anneal: str = "cosine",
    ) -> None:
        self.before = _before(before)
        self.learning_rate = arguments.number(
            "learning_rate", learning_rate, at_least=0
        )
        self.start_step = arguments.integer(
            "start_step", start_step, at_least=0
        )
        self.anneal_steps = arguments.integer(
            "anneal_steps", anneal_steps, at_least=0
        )
        self.anneal = _anneal(anneal)

    def __call__(self, step: Any) -> Any:
        """The learning rate after some optimizer steps.

        Args:
            step: Integer or integer tensor, the steps before this one.

        Returns:
            Scalar float32 tensor.
        """
        step = ops.cast(step, "int32")
        whole = max(self.anneal_steps, 1)
        # No steps of annealing are one step, over when `start_step` begins.
        begin = self.start_step + self.anneal_steps - whole
        part = ops.clip(step - begin, 0, whole)
        return _between(
            _value(self.before, ops.minimum(step, self.start_step)),
            self.learning_rate,
            rest=self._alpha(_ratio(whole - part, whole)),
            share=self._alpha(_ratio(part, whole)),
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments, for `from_config`.

        Returns:
            Dict of what `__init__` takes.
        """
        return {
            "before": keras.saving.serialize_keras_object(self.before),
            "learning_rate": self.learning_rate,
            "start_step": self.start_step,
            "anneal_steps": self.anneal_steps,
            "anneal": self.anneal,
        }

    def _alpha(self, time: Any) -> Any:
        if self.anneal == "linear":
            return time
        # (1 - cos(pi * t)) / 2 without its cancellation near t = 0.
        return ops.square(ops.sin(time * (math.pi / 2)))


def _between(first: Any, last: Any, *, rest: Any, share: Any) -> Any:
    return first * rest + last * share


def _ratio(part: Any, whole: int) -> Any:
    return ops.cast(part, "float32") / whole


def _value(rate: Any, step: Any) -> Any:
    return ops.cast(rate(step) if callable(rate) else rate, "float32")


def _before(before: Any) -> Any:
    if isinstance(before, keras.optimizers.schedules.LearningRateSchedule):
        return before
    if arguments.is_number(before):
        return arguments.number("before", before, at_least=0)
    raise ValueError(
        "`before` must be a number or a `LearningRateSchedule`. "
        f"Received: before={before!r}"
    )


def _anneal(anneal: Any) -> str:
    if anneal not in _ANNEALS:
        raise ValueError(
            f"`anneal` must be one of {_ANNEALS}. Received: anneal={anneal!r}"
        )
    return str(anneal)
