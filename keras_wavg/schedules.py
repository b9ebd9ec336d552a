"""How far an average moves towards each new sample of the weights.

Every average of this package is one line,

    average += coefficient * (weights - average)

and every method is a choice of coefficient: `Uniform` and `Power` by a formula,
all others by two ideas. A *decay* says which share of itself an average keeps
over an interval of steps. A *schedule* says what that share is kept of: of the
weights from before training (`FromInitial`), or of nothing but the samples so
far (`BiasCorrected`).

Steps are optimizer steps, numbered from 1, and may be floats or arrays.
`interval` is the number of steps since the average last moved, so an average
that moves every k steps fades as much as one that moves at each of them.

`ops` is a module with `expm1`, `log1p`, `minimum` and `maximum`: `numpy` for
float64 on the host, `keras.ops` for float32 inside a compiled update. Shares
are handled as logarithms because `1 - 0.9999` has lost four digits in float32,
where `expm1` loses none.
"""

import abc
import math
from dataclasses import dataclass
from typing import Any

import numpy

Number = Any
"""A float, a NumPy array, or a tensor of any backend."""


class Decay(abc.ABC):
    """Which share of itself an average keeps as steps go by."""

    @abc.abstractmethod
    def log_kept(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Logarithm of the share kept over the last `interval` of `steps`."""


@dataclass(frozen=True)
class ConstantDecay(Decay):
    """The share `decay` is kept at every step.

    Args:
        decay: Float in [0, 1).
    """

    decay: float

    def log_kept(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Logarithm of `decay**interval`."""
        del steps, ops
        return interval * _log(self.decay)


@dataclass(frozen=True)
class WarmUpDecay(Decay):
    """The share `min(decay, (1 + n) / (10 + n))` is kept at the n-th step.

    An average that forgets fast at first and slower as training goes on, the
    warm-up of `tf.train.ExponentialMovingAverage(num_updates=n)`.

    Args:
        decay: Float in [0, 1), the share once the warm-up is over.
    """

    decay: float

    @property
    def warm_up_steps(self) -> float:
        """The last step whose share is still below `decay`."""
        return float(max(0, (10 * self.decay - 1) // (1 - self.decay)))

    def log_kept(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Logarithm of the product of the shares of the last steps."""
        # No difference of two counts: float32 has no odd ones from 2**24 on.
        bound = self.warm_up_steps
        flat = ops.minimum(interval, ops.maximum(steps - bound, 0))
        # The product of (1 + i) / (10 + i) telescopes to nine factors.
        last = ops.minimum(steps, bound)
        ramp = sum(
            ops.log1p((flat - interval) / (last + j)) for j in range(2, 11)
        )
        return ramp + flat * _log(self.decay)


class Schedule(abc.ABC):
    """The coefficient of each sample."""

    starts_from_initial: bool
    """Whether the average begins at the weights from before training."""
    counts_samples = False
    """Whether time is counted in samples: a step is what led to one."""

    @abc.abstractmethod
    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Coefficient of the sample at `steps`, `interval` after the last."""


@dataclass(frozen=True)
class BiasCorrected(Schedule):
    """The weights from before training have no share in the average.

    `(1 - kept(interval)) / (1 - kept(all steps))`: with a constant decay d and
    a sample at each step, `(1 - d) / (1 - d**n)`. The first coefficient is 1.

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
        """Coefficient of the sample at `steps`, `interval` after the last."""
        moved = ops.expm1(self.decay.log_kept(steps, interval, ops))
        return moved / ops.expm1(self.decay.log_kept(steps, steps, ops))


@dataclass(frozen=True)
class FromInitial(Schedule):
    """The textbook recursion, started at the weights from before training.

    `1 - kept(interval)`: with a constant decay d and a sample at each step,
    `1 - d`.

    Args:
        decay: A `Decay`.
    """

    decay: Decay
    starts_from_initial = True

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Coefficient of the sample at `steps`, `interval` after the last."""
        return -ops.expm1(self.decay.log_kept(steps, interval, ops))


@dataclass(frozen=True)
class Power(Schedule):
    """The share of a step grows as a power of its number: `t**exponent`.

    `1 - (1 - interval / steps) ** (exponent + 1)`: the average over the last
    share of training, whatever its length. The first coefficient is 1.

    Args:
        exponent: Float, 0 or more; gamma in the paper. At 0 all steps count the
            same.

    References:
        Karras et al., 2024, https://arxiv.org/abs/2312.02696, section 3.1
    """

    exponent: float
    starts_from_initial = False

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Coefficient of the sample at `steps`, `interval` after the last."""
        kept = (self.exponent + 1) * ops.log1p(-interval / steps)
        return -ops.expm1(kept)


@dataclass(frozen=True)
class Uniform(Schedule):
    """All samples have the same share, whatever time lies between them.

    `1 / n` for the n-th sample.

    References:
        Izmailov et al., 2018, https://arxiv.org/abs/1803.05407, algorithm 1
    """

    starts_from_initial = False
    counts_samples = True

    def coefficient(
        self, steps: Number, interval: Number, ops: Any = numpy
    ) -> Number:
        """Coefficient of the sample that makes `steps` of them."""
        del ops
        return interval / steps


def decay_from_half_life(half_life: float) -> float:
    """The decay whose average forgets half of its past in `half_life` steps.

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
