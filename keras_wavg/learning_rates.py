"""Learning rate schedules for averages that need samples which differ.

These schedules keep the learning rate high, or make it cyclic, as in the papers
of the averages.
"""

import math
from collections.abc import Callable
from typing import Any, Self, TypeAlias

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_wavg import arguments
from keras_wavg.representation import settings

Tensor = Any
Rate: TypeAlias = float | LearningRateSchedule

_SHAPES = ("sawtooth", "triangle")
_ANNEALS = ("cosine", "linear")


class _ScheduleAfterAnother(LearningRateSchedule):
    """A schedule with the arguments `before`, `start_step` and `name`."""

    def __init__(self, before: Rate | None, start_step: int, name: str) -> None:
        self.before = None if before is None else _checked_rate(before)
        self.start_step = arguments.integer(
            "start_step", start_step, at_least=0
        )
        self.name = name

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the schedule.

        Returns:
            Dictionary, for `from_config`.
        """
        return {
            "before": keras.saving.serialize_keras_object(self.before),
            "start_step": self.start_step,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Create a schedule from its config.

        Args:
            config: Dictionary, as returned by `get_config`.

        Returns:
            A schedule of this class.
        """
        before = keras.saving.deserialize_keras_object(config["before"])
        return cls(**{**config, "before": before})

    def __repr__(self) -> str:
        # The schedules of Keras have no `repr`.
        return settings(self, shown=(_ScheduleAfterAnother,))


@keras.saving.register_keras_serializable(package="keras_wavg")
class CyclicLearningRate(_ScheduleAfterAnother):
    """A cyclic learning rate, for `SWA` or `FGE`.

    At the i-th optimizer step, i = 1, 2, ..., counted from `start_step`, with
    `c = cycle_steps` and `t = (mod(i - 1, c) + 1) / c`, the learning rate is

    ```
    # shape="sawtooth", for SWA
    (1 - t) * max_learning_rate + t * min_learning_rate

    # shape="triangle", for FGE
    (1 - 2 * t) * max_learning_rate + 2 * t * min_learning_rate       # t <= 1/2
    (2 - 2 * t) * min_learning_rate + (2 * t - 1) * max_learning_rate # t > 1/2
    ```

    A sawtooth decreases to `min_learning_rate` at the last step of the cycle,
    then jumps up: average the weights after that step. A triangle decreases to
    `min_learning_rate` at the middle of the cycle, `t = 1/2`, where `FGE`
    samples its members, and increases to `max_learning_rate` at the last step.

    You can pass the schedule as the `learning_rate` of any Keras optimizer.
    Keras saves the number of steps with the optimizer, so training resumes
    within the cycle. Import this class before you load a saved model.

    With `gradient_accumulation_steps=k`, Keras (3.15) counts batches instead of
    optimizer steps: set `cycle_steps` and `start_step` in batches. If both are
    multiples of `k` (for a triangle, `cycle_steps` of `2 * k`), the optimizer
    step at the minimum still has `min_learning_rate`.

    Args:
        max_learning_rate: Non-negative float, the maximum. The first step of a
            cycle is already below it.
        min_learning_rate: Float in `[0, max_learning_rate]`, the minimum.
        cycle_steps: Positive integer, the number of optimizer steps in a
            cycle. It must be even for a triangle. A sawtooth of one step is
            constant, `min_learning_rate`.
        shape: String, `"sawtooth"` or `"triangle"`. Defaults to `"sawtooth"`.
        before: Non-negative float or
            `keras.optimizers.schedules.LearningRateSchedule`, the
            learning rate of the steps before `start_step`. Required with
            `start_step > 0`. Defaults to `None`.
        start_step: Non-negative integer, the optimizer step, counted from 0, at
            which the first cycle starts. Defaults to `0`.
        name: String, the name of the operation. Defaults to
            `"CyclicLearningRate"`.

    Example:

    >>> from keras_wavg import CyclicLearningRate
    >>> schedule = CyclicLearningRate(0.05, 0.01, cycle_steps=4)
    >>> [round(float(schedule(step)), 4) for step in range(6)]
    [0.04, 0.03, 0.02, 0.01, 0.04, 0.03]
    >>> schedule = CyclicLearningRate(
    ...     0.05, 0.01, cycle_steps=4, shape="triangle"
    ... )
    >>> [round(float(schedule(step)), 4) for step in range(6)]
    [0.03, 0.01, 0.03, 0.05, 0.03, 0.01]

    Raises:
        ValueError: If an argument is out of its range, or if `before` is
            missing.

    References:
        - [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), section
          3.1, for the sawtooth
        - [Garipov et al., 2018](https://arxiv.org/abs/1802.10026), section 4,
          for the triangle
    """

    def __init__(
        self,
        max_learning_rate: float,
        min_learning_rate: float,
        cycle_steps: int,
        *,
        shape: str = "sawtooth",
        before: Rate | None = None,
        start_step: int = 0,
        name: str = "CyclicLearningRate",
    ) -> None:
        super().__init__(before, start_step, name)
        self.max_learning_rate = arguments.number(
            "max_learning_rate", max_learning_rate, at_least=0
        )
        self.min_learning_rate = arguments.number(
            "min_learning_rate", min_learning_rate, at_least=0
        )
        self.shape = _one_of(_SHAPES, "shape", shape)
        self.cycle_steps = (
            arguments.even("cycle_steps", cycle_steps)
            if shape == "triangle"
            else arguments.integer("cycle_steps", cycle_steps, at_least=1)
        )
        self._refuse_contradictions()

    def __call__(self, step: Tensor) -> Tensor:
        """Return the learning rate of an optimizer step.

        Args:
            step: Integer or integer tensor, the number of steps before it.

        Returns:
            Scalar float32 tensor.
        """
        with keras.name_scope(self.name):
            step = ops.cast(step, "int32")
            steps = ops.mod(step - self.start_step, self.cycle_steps) + 1
            total = self.cycle_steps
            if self.shape == "triangle":
                steps, total = ops.minimum(steps, total - steps), total // 2
            rate = _interpolate(
                self.max_learning_rate, self.min_learning_rate, steps, total
            )
            if self.before is None:
                return rate
            before = _rate_at(self.before, step)
            return ops.where(step < self.start_step, before, rate)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the schedule.

        Returns:
            Dictionary, for `from_config`.
        """
        return {
            "max_learning_rate": self.max_learning_rate,
            "min_learning_rate": self.min_learning_rate,
            "cycle_steps": self.cycle_steps,
            "shape": self.shape,
            **super().get_config(),
        }

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
class AnnealToConstant(_ScheduleAfterAnother):
    """Anneal from any learning rate to a constant one, for `SWA`.

    `before` is the learning rate of the first `start_step` optimizer steps.
    With its value `lr0` at `start_step`, and after `n` more steps,

    ```
    t = min(n / anneal_steps, 1)
    alpha = t                          # anneal="linear"
    alpha = (1 - cos(pi * t)) / 2      # anneal="cosine"
    learning_rate = learning_rate * alpha + lr0 * (1 - alpha)
    ```

    as in `torch.optim.swa_utils.SWALR`. The authors of SWA anneal linearly
    from 50% to 90% of the usual training: `start_step = 0.5 * steps` and
    `anneal_steps = 0.4 * steps`.

    You can pass the schedule as the `learning_rate` of any Keras optimizer.
    Keras saves the number of steps with the optimizer, so training resumes with
    the same learning rate. Import this class before you load a saved model.

    With `gradient_accumulation_steps`, Keras (3.15) counts batches instead of
    optimizer steps: set `start_step` and `anneal_steps` in batches.

    Args:
        before: Non-negative float or
            `keras.optimizers.schedules.LearningRateSchedule`, the
            learning rate until `start_step`.
        learning_rate: Non-negative float, the constant learning rate.
        start_step: Non-negative integer, the optimizer step, counted from 0, at
            which annealing starts.
        anneal_steps: Non-negative integer, the number of optimizer steps from
            `start_step` to the constant learning rate. With 0, it is constant
            from `start_step`.
        anneal: String, `"cosine"` or `"linear"`. Defaults to `"cosine"`.
        name: String, the name of the operation. Defaults to
            `"AnnealToConstant"`.

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

    before: Rate

    def __init__(
        self,
        before: Rate,
        learning_rate: float,
        *,
        start_step: int,
        anneal_steps: int,
        anneal: str = "cosine",
        name: str = "AnnealToConstant",
    ) -> None:
        super().__init__(_checked_rate(before), start_step, name)
        self.learning_rate = arguments.number(
            "learning_rate", learning_rate, at_least=0
        )
        self.anneal_steps = arguments.integer(
            "anneal_steps", anneal_steps, at_least=0
        )
        self.anneal = _one_of(_ANNEALS, "anneal", anneal)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the learning rate of an optimizer step.

        Args:
            step: Integer or integer tensor, the number of steps before it.

        Returns:
            Scalar float32 tensor.
        """
        with keras.name_scope(self.name):
            step = ops.cast(step, "int32")
            total = max(self.anneal_steps, 1)
            # No annealing is annealing of one step that ends at `start_step`.
            start = self.start_step + self.anneal_steps - total
            return _interpolate(
                _rate_at(self.before, ops.minimum(step, self.start_step)),
                self.learning_rate,
                ops.clip(step - start, 0, total),
                total,
                alpha=_linear if self.anneal == "linear" else _cosine,
            )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the schedule.

        Returns:
            Dictionary, for `from_config`.
        """
        return {
            "learning_rate": self.learning_rate,
            "anneal_steps": self.anneal_steps,
            "anneal": self.anneal,
            **super().get_config(),
        }


def _linear(t: Tensor) -> Tensor:
    return t


def _cosine(t: Tensor) -> Tensor:
    # (1 - cos(pi * t)) / 2 without its cancellation near t = 0.
    return ops.square(ops.sin(t * (math.pi / 2)))


def _interpolate(
    start: Tensor,
    end: float,
    steps: Tensor,
    total: int,
    *,
    alpha: Callable[[Tensor], Tensor] = _linear,
) -> Tensor:
    """Return a rate between `start` (0 steps) and `end` (`total` steps)."""
    # Both coefficients are computed from integers. In float32, `1 - alpha`
    # would lose digits of a small rate, and counts above 2**24 are not exact.
    remaining = alpha(ops.cast(total - steps, "float32") / total)
    return start * remaining + end * alpha(ops.cast(steps, "float32") / total)


def _rate_at(rate: Rate, step: Tensor) -> Tensor:
    return ops.cast(rate(step) if callable(rate) else rate, "float32")


def _checked_rate(before: Any) -> Rate:
    if isinstance(before, LearningRateSchedule):
        return before
    if arguments.is_number(before):
        return arguments.number("before", before, at_least=0)
    raise ValueError(
        "`before` must be a number or a `LearningRateSchedule`. "
        f"Received: before={before!r}"
    )


def _one_of(choices: tuple[str, ...], name: str, value: Any) -> str:
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {choices}. Received: {name}={value!r}"
        )
    return str(value)
