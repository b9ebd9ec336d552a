"""The coefficients of averages.

All averages of this package use one update rule,

    average += coefficient * (weights - average)

and differ in the coefficient. `Uniform` and `Power` are formulas. The others
combine two choices: a `Decay`, by which the average is multiplied at each step,
and where the average starts: at the weights from before training
(`FromInitial`), or at the first sample (`BiasCorrected`).

Steps are optimizer steps, numbered from 1. They may be floats or arrays.
`interval` is the number of steps since the last update, so that an average that
is updated every k steps decays as fast as one that is updated at every step.

`ops` is a module with `expm1`, `log1p`, `minimum` and `maximum`: `numpy` for
float64 on the host, `keras.ops` for float32 in a compiled update. Decays are
computed as logarithms, because in float32 `1 - 0.9999` loses four digits and
`expm1` none.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any

import numpy

Number = Any
"""A float, a NumPy array, or a tensor of any backend."""


class Decay(abc.ABC):
    """The number by which an average is multiplied at each step."""

    @abc.abstractmethod
    def log_decay(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the logarithm of the decay of the last `interval` steps."""


@dataclass(frozen=True)
class ConstantDecay(Decay):
    """The same decay at every step.

    Args:
        decay: Float in [0, 1).
    """

    decay: float

    def log_decay(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the logarithm of `decay**interval`."""
        del steps, ops
        return interval * _log(self.decay)


@dataclass(frozen=True)
class WarmupDecay(Decay):
    """The decay `min(decay, (1 + n) / (10 + n))` at the n-th step.

    The average is short at first and becomes longer during training, as in
    `tf.train.ExponentialMovingAverage(num_updates=n)`.

    Args:
        decay: Float in [0, 1), the decay after the warmup.
    """

    decay: float

    @property
    def warmup_steps(self) -> float:
        """The last step whose decay is below `decay`."""
        return float(max(0, (10 * self.decay - 1) // (1 - self.decay)))

    def log_decay(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the logarithm of the product of the last decays."""
        # Counts are not subtracted: float32 has no odd ones from 2**24 on.
        warmup_steps = self.warmup_steps
        constant = ops.minimum(interval, ops.maximum(steps - warmup_steps, 0))
        # The product of (1 + i) / (10 + i) telescopes to nine quotients.
        last = ops.minimum(steps, warmup_steps)
        warmup = sum(
            ops.log1p((constant - interval) / (last + j)) for j in range(2, 11)
        )
        return warmup + constant * _log(self.decay)


class Schedule(abc.ABC):
    """The coefficient of each sample."""

    starts_from_initial: bool
    """Whether the average starts from the weights from before training."""
    counts_samples = False
    """Whether steps are samples instead of optimizer steps."""

    @abc.abstractmethod
    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the coefficient of the sample after `steps` steps.

        Args:
            steps: Positive number of steps.
            interval: Positive number, the steps since the last sample.
            ops: Module, `numpy` or `keras.ops`. Defaults to `numpy`.

        Returns:
            Number of the kind of the arguments.
        """


@dataclass(frozen=True)
class BiasCorrected(Schedule):
    """An exponential moving average of the samples only.

    The weights from before training have no influence. The coefficient is
    `(1 - decay over interval) / (1 - decay over all steps)`. With a constant
    decay d and a sample at each step this is `(1 - d) / (1 - d**n)`. The first
    coefficient is 1.

    Args:
        decay: A `Decay`.

    References:
        Kingma and Ba, 2015, section 3, https://arxiv.org/abs/1412.6980
    """

    decay: Decay
    starts_from_initial = False

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the coefficient of a sample. See `Schedule`."""
        last = ops.expm1(self.decay.log_decay(steps, interval, ops))
        return last / ops.expm1(self.decay.log_decay(steps, steps, ops))


@dataclass(frozen=True)
class FromInitial(Schedule):
    """An exponential moving average from the weights from before training.

    The coefficient is `1 - decay over interval`. With a constant decay d and a
    sample at each step this is `1 - d`.

    Args:
        decay: A `Decay`.
    """

    decay: Decay
    starts_from_initial = True

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the coefficient of a sample. See `Schedule`."""
        return -ops.expm1(self.decay.log_decay(steps, interval, ops))


@dataclass(frozen=True)
class Power(Schedule):
    """A power-function average: step t is weighted by `t**exponent`.

    The coefficient is `1 - (1 - interval / steps) ** (exponent + 1)`. The
    length of the average is a constant fraction of the training so far. The
    first coefficient is 1.

    Args:
        exponent: Non-negative float, gamma in the paper. With 0, all steps are
            weighted equally.

    References:
        Karras et al., 2024, https://arxiv.org/abs/2312.02696, section 3.1
    """

    exponent: float
    starts_from_initial = False

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the coefficient of a sample. See `Schedule`."""
        log_decay = (self.exponent + 1) * ops.log1p(-interval / steps)
        return -ops.expm1(log_decay)


@dataclass(frozen=True)
class Uniform(Schedule):
    """The mean of all samples, however many steps are between them.

    The coefficient of the n-th sample is `1 / n`.

    References:
        Izmailov et al., 2018, https://arxiv.org/abs/1803.05407, algorithm 1
    """

    starts_from_initial = False
    counts_samples = True

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Return the coefficient of a sample. Steps are samples."""
        del ops
        return interval / steps


def decay_from_half_life(half_life: float) -> float:
    """Return the decay with which coefficients halve in `half_life` steps.

    Args:
        half_life: Positive float, in optimizer steps.

    Example:

    >>> decay_from_half_life(1)
    0.5

    Returns:
        `2 ** (-1 / half_life)`, a float in (0, 1).
    """
    return 2.0 ** (-1.0 / half_life)


def _log(decay: float) -> float:
    return math.log(decay) if decay else -math.inf
